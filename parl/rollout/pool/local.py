"""Many episodes at once, in this process.

In: jobs (a task, an episode id, a seed). Out: their episodes, in the order of the jobs. Every episode has a deadline;
one that failed for reasons outside the policy is tried again, then returned as failed: data, not a crash.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from parl.config.rollout import Rollout
from parl.core.coroutines import run_coroutine
from parl.core.types import Episode, Task
from parl.env.base import AgentEnv
from parl.policy.base import PolicyHandle
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.swarm import SwarmRunner, failed_episode


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to run. `seed` fixes everything that is random in it."""

    task: Task
    episode_id: str
    group: str
    step: int
    seed: str


class Pool(Protocol):
    """Where episodes run is the pool's business."""

    lost: Counter[str]
    """What the pool has lost and replaced so far, by kind (`workers_lost`)."""

    def run(
        self,
        runner: SwarmRunner,
        jobs: Sequence[Job],
        on_done: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Run all jobs; their episodes in the order of the jobs. `on_done` is called as each is known to be done."""
        ...

    def close(self) -> None:
        """Stop what the pool has started."""
        ...


Sink = Callable[[Job, Episode], None]


class StreamPool(Pool, Protocol):
    """A pool whose episodes run while this process does something else."""

    def submit(self, runner: SwarmRunner, jobs: Sequence[Job], sink: Sink) -> None:
        """Start jobs. `poll` calls `sink` with each and its episode."""
        ...

    def poll(self) -> None:
        """Wait a moment for episodes, and hand out those that are done."""
        ...

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        """Give the running agents new weights."""
        ...


class LocalPool:
    """Runs episodes as coroutines of one event loop."""

    def __init__(self, make_env: Callable[[], AgentEnv], config: Rollout) -> None:
        self._make_env, self._config = make_env, config
        self.lost = Counter[str]()
        self._idle: list[AgentEnv] = []

    def run(
        self,
        runner: SwarmRunner,
        jobs: Sequence[Job],
        on_done: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Run all jobs; `on_done` is called as each one ends (progress)."""
        return run_coroutine(self.gather(runner, jobs, on_done))

    def close(self) -> None:
        """Nothing runs between calls."""

    async def gather(
        self,
        runner: SwarmRunner,
        jobs: Sequence[Job],
        on_done: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """`run` inside an event loop that is there already."""
        gate = asyncio.Semaphore(self._config.max_concurrent_episodes)

        async def one(job: Job) -> Episode:
            async with gate:
                episode = await self._attempts(runner, job)
            if on_done is not None:
                on_done(episode)
            return episode

        return list(await asyncio.gather(*(one(job) for job in jobs)))

    async def _attempts(self, runner: SwarmRunner, job: Job) -> Episode:
        for attempt in range(self._config.max_retries + 1):
            episode = await self._attempt(runner, job, attempt)
            if episode.status != "failed":
                break
        return episode

    async def _attempt(self, runner: SwarmRunner, job: Job, attempt: int) -> Episode:
        env = self._idle.pop() if self._idle else self._make_env()
        episode_id = job.episode_id if attempt == 0 else f"{job.episode_id}.{attempt}"
        run = runner.run(
            env,
            job.task,
            episode_id=episode_id,
            group=job.group,
            step=job.step,
            seed=f"{job.seed}/{attempt}",
        )
        try:
            episode = await asyncio.wait_for(run, self._config.episode_deadline_s)
        except TimeoutError:
            failure = EpisodeFailure(
                "timeout", f"no result within {self._config.episode_deadline_s} s"
            )
            return failed_episode(episode_id, job.task, job.group, job.step, failure)
        if episode.status != "failed":
            self._idle.append(env)  # a failed one may be in any state: drop it
        return episode
