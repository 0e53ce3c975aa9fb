"""Held-out evaluation: the same tasks under greedy and sampled decoding, as a swarm, alone, or forced to delegate.

In: a runner per decoding, tasks. Out: the numbers of `summary.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parl.config import Config
from parl.core.progress import Progress
from parl.core.types import Decoding, Episode, Mode, Task
from parl.policy.base import PolicyHandle
from parl.rollout.pool.local import Job, Pool
from parl.rollout.swarm import SwarmRunner

FORCED = '<tool_call>{"name": "create_subagent", "arguments": {"name": "'


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates policies on tasks. Never counts against budgets of training: the step budget is lifted."""

    config: Config
    pool: Pool

    def episodes(
        self,
        handles: Mapping[str, PolicyHandle],
        tasks: Sequence[Task],
        decoding: Decoding,
        mode: Mode,
        label: str,
        trials: int = 1,
        progress: Progress | None = None,
    ) -> list[Episode]:
        """`trials` episodes of each task, in the order of the tasks. `heldout_metrics` makes means of them."""
        runner = self.runner(handles, decoding, mode)
        jobs = [
            Job(
                task,
                f"{label}-{task.id}-{k}",
                task.id,
                0,
                f"{self.config.seed}/eval/{label}/{task.id}/{k}",
            )
            for task in tasks
            for k in range(trials)
        ]
        tick: Callable[[Episode], None] | None = (
            None if progress is None else lambda _: progress.advance()
        )
        return self.pool.run(runner, jobs, tick)

    def runner(
        self, handles: Mapping[str, PolicyHandle], decoding: Decoding, mode: Mode
    ) -> SwarmRunner:
        swarm = self.config.swarm.replace(
            critical_step_budget=None,
            mode="single" if mode == "single" else self.config.swarm.mode,
        )
        forced = FORCED if mode == "forced_parallel" else ""
        return SwarmRunner(handles, self.config.roles, swarm, self.config.clock, decoding, forced)


# --- `parl eval` -----------------------------------------------------------------------------------------------------
