"""Held-out episodes: the same tasks under greedy or sampled decoding, as a swarm or without one.

`parl.evaluation.metrics` turns the episodes into the numbers of summary.json.
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
"""How the orchestrator's first turn must begin in mode `forced_parallel`: with a subagent.

It measures what the policy can do when it delegates, apart from whether it decides to.
"""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Runs the episodes of evaluations, with a config's roles, clock and seed."""

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
        """Run `trials` episodes of each task.

        Args:
            handles: role -> the policy that plays it.
            tasks: the held-out tasks.
            decoding: `greedy`, or `sampled` at temperature 1.
            mode: `swarm`, `single` or `forced_parallel`.
            label: a name for this evaluation. It is a part of each episode's seed: the same label,
                task and trial give the same episode again.
            trials: episodes per task.
            progress: advances by 1 with each episode.
        Returns:
            The episodes in the order of the tasks, the trials of a task one after the other.
        """
        runner = self.runner(handles, decoding, mode)
        jobs: list[Job] = []
        for task in tasks:
            for trial in range(trials):
                job = Job(
                    task=task,
                    episode_id=f"{label}-{task.id}-{trial}",
                    group=task.id,
                    step=0,
                    seed=f"{self.config.seed}/eval/{label}/{task.id}/{trial}",
                )
                jobs.append(job)

        def advance(_: Episode) -> None:
            assert progress is not None
            progress.advance()

        on_done: Callable[[Episode], None] | None = None if progress is None else advance
        return self.pool.run(runner, jobs, on_done)

    def runner(
        self, handles: Mapping[str, PolicyHandle], decoding: Decoding, mode: Mode
    ) -> SwarmRunner:
        """Return the runner of the episodes."""
        swarm = self.config.swarm.replace(
            # The step budget puts pressure on training. An evaluation measures how many critical
            # steps the policy needs, which a budget would cut off.
            critical_step_budget=None,
            mode="single" if mode == "single" else self.config.swarm.mode,
        )
        return SwarmRunner(
            policies=handles,
            roles=self.config.roles,
            swarm=swarm,
            clock=self.config.clock,
            decoding=decoding,
            forced_prefix=FORCED if mode == "forced_parallel" else "",
        )
