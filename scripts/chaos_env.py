"""WideSearch as a bad day has it: tasks whose environment raises, hangs, talks nonsense, leaks, or freezes its process.

Which task does what follows from its id, so each retry meets the same fault. `scripts/chaos.py` trains on it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium

from parl.core.types import Task
from parl_envs.search.wide_search import WideSearch

FAULTS = ("raise", "hang", "garbage", "leak", "freeze")
LEAK_MB = 40


def fault_of(task_id: str) -> str | None:
    """One task in four has a fault; those that freeze the process, and so cost a worker each time, are rare."""
    draw = zlib.crc32(task_id.encode()) % 100
    return next((f for f, top in zip(FAULTS, (6, 10, 16, 24, 25), strict=True) if draw < top), None)


class Chaos(WideSearch):
    """WideSearch with faults."""

    blocking = True
    _leaked: ClassVar[list[bytearray]] = []

    def start(self, task: Task) -> None:
        super().start(task)
        fault = fault_of(task.id)
        if fault == "raise":
            raise OSError("the disk is gone")
        if fault == "hang":
            time.sleep(3600)
        if fault == "leak":
            self._leaked.append(bytearray(LEAK_MB << 20))

    def score(self, answer: str) -> Mapping[str, float]:
        outcome: dict[str, Any] = dict(super().score(answer))
        return outcome | {"score": float("nan")} if fault_of(self.task.id) == "garbage" else outcome

    def num_parts(self) -> int | None:
        if fault_of(self.task.id) == "freeze":
            time.sleep(3600)  # not in a thread: the whole process stands still
        return super().num_parts()


gymnasium.register(id="chaos/WideSearch-v0", entry_point="chaos_env:Chaos")
