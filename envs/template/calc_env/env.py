"""Sum numbers that only a tool can see.

In: a list of names. Each hides a number, which `lookup` tells. Out: their sum, as the last number of the answer. The
lookups are independent of each other, so an orchestrator can share the names out to subagents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from parl.core.errors import ConfigError
from parl.core.types import Task
from parl.env.base import AgentEnv
from parl.env.tools import tool

SPLITS = ("train", "validation", "test")
NAMES = [
    f"{kind}{i}"
    for kind in ("amber", "basil", "cedar", "delta", "ember", "fable")
    for i in range(5)
]
MOST = 99
RUNTIME = [
    "ok",
    "error:",
    "no",
    "name",
    "duplicate",
    "task",
    "budget",
    "exhausted",
    "stopped",
    "(turns)",
]


class CalcEnv(AgentEnv):
    """Sum numbers that are hidden behind names.

    Args:
        num: how many names a task has.
    """

    def __init__(self, *, num: int = 4) -> None:
        super().__init__()
        most = len(NAMES) // len(SPLITS)
        if not 2 <= num <= most:
            raise ConfigError(f"env.kwargs.num is {num}; give 2 to {most} names.")
        self.num = num

    # --- tasks ---------------------------------------------------------------------------------------------------

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        """The same arguments give the same tasks, and no name is in two splits."""
        if split not in SPLITS:
            raise ConfigError(f"There is no split '{split}'; choose one of {', '.join(SPLITS)}.")
        rng = np.random.default_rng([SPLITS.index(split), seed])
        names = NAMES[SPLITS.index(split) :: len(SPLITS)]
        tasks = []
        for i in range(num):
            chosen = [str(name) for name in rng.choice(names, self.num, replace=False)]
            numbers = {name: int(rng.integers(1, MOST + 1)) for name in chosen}
            prompt = f"sum : {' '.join(chosen)}"
            tasks.append(Task(f"{split}-{seed}-{i}", "calc/Calc-v0", prompt, {"numbers": numbers}))
        return tasks

    def start(self, task: Task) -> None:
        """Called by `reset`: set up whatever one episode changes."""
        self.numbers: dict[str, int] = dict(task.data["numbers"])
        self.wanted = list(self.numbers)
        self.num_lookups = 0

    # --- tools ---------------------------------------------------------------------------------------------------

    @tool
    def lookup(
        self, name: Annotated[str, Field(description="One of the names in the task.")]
    ) -> str:
        """Tell the number behind a name."""
        # Whatever the model writes arrives here as a `str`; a wrong argument was answered before the call.
        self.num_lookups += 1
        if name not in self.numbers:
            return f"error: no name '{name}'"
        return str(self.numbers[name])

    # --- results -------------------------------------------------------------------------------------------------

    def score(self, answer: str) -> Mapping[str, float]:
        """1 for the right sum. Further entries of the mapping become the metrics outcome/<key>."""
        found, sought = _last_number(answer), sum(self.numbers.values())
        return {"score": float(found == sought), "answered": float(found is not None)}

    def facts(self) -> Mapping[str, int]:
        """What rewards may want to know besides the score, as `episode.facts`."""
        return {"num_lookups": self.num_lookups}

    def num_parts(self) -> int:
        """Lookups do not depend on each other."""
        return self.num

    # --- subagents -----------------------------------------------------------------------------------------------

    def fork(self, subtask: str) -> CalcEnv:
        """A subagent shares the numbers and counts its own lookups. It is to sum the names in its prompt."""
        child = super().fork(subtask)  # a shallow copy: fine for what nobody changes
        assert isinstance(child, CalcEnv)
        child.num_lookups = 0
        child.wanted = [name for name in self.numbers if re.search(rf"\b{name}\b", subtask)]
        return child

    def check_result(self, message: str) -> bool:
        """A subagent's message is in form when it holds a number."""
        return _last_number(message) is not None

    def subtask_score(self, message: str) -> float | None:
        """1 when the subagent's last number is the sum of its names; None when its prompt named none."""
        if not self.wanted:
            return None
        return float(_last_number(message) == sum(self.numbers[name] for name in self.wanted))

    # --- a policy from nothing -----------------------------------------------------------------------------------

    def vocabulary(self) -> Sequence[str]:
        """Every word that an episode may hold, for `model: tiny`. Leave it out if your policy is a pretrained model."""
        return ["sum", ":", *RUNTIME, *NAMES, *map(str, range(self.num * MOST + 1))]


def _last_number(text: str) -> int | None:
    numbers = re.findall(r"-?\d+", text)
    return int(numbers[-1]) if numbers else None
