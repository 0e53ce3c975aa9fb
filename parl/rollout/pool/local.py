"""Many episodes at once, in this process.

Every episode has a deadline. One that failed for reasons outside the policy is tried again, then
returned as failed: data, not a crash.
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
    """One episode to run."""

    task: Task
    episode_id: str
    group: str
    step: int
    seed: str
    """Fixes everything random in the episode."""


class Pool(Protocol):
    """Runs episodes, wherever it likes."""

    lost: Counter[str]
    """What the pool has lost and replaced so far, by kind (`workers_lost`)."""

    def run(
        self,
        runner: SwarmRunner,
        jobs: Sequence[Job],
        on_done: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Run all jobs, and return their episodes in the order of the jobs.

        Args:
            on_done: called with each episode once it is known to be done (progress).
        """
        ...

    def close(self) -> None:
        """Stop what the pool has started."""
        ...


Sink = Callable[[Job, Episode], None]
"""Receives each job with its episode."""


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
    """Runs episodes as coroutines of one event loop.

    Args:
        make_env: makes an environment. Each is used for one episode at a time, then again.
    """

    def __init__(self, make_env: Callable[[], AgentEnv], config: Rollout) -> None:
        self._make_env = make_env
        self._config = config
        self.lost = Counter[str]()
        self._idle_envs: list[AgentEnv] = []

    def run(
        self,
        runner: SwarmRunner,
        jobs: Sequence[Job],
        on_done: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Run all jobs, and return their episodes in the order of the jobs.

        Args:
            on_done: called with each episode as it ends (progress).
        """
        return run_coroutine(self.gather(runner, jobs, on_done))

    def close(self) -> None:
        """Do nothing: between calls nothing runs."""

    async def gather(
        self,
        runner: SwarmRunner,
        jobs: Sequence[Job],
        on_done: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Do what `run` does, inside a running event loop."""
        # A semaphore and not rounds of episodes: a slow one holds up no others.
        slots = asyncio.Semaphore(self._config.max_concurrent_episodes)

        async def run_job(job: Job) -> Episode:
            async with slots:
                episode = await self._run_with_retries(runner, job)
            if on_done is not None:
                on_done(episode)
            return episode

        return list(await asyncio.gather(*(run_job(job) for job in jobs)))

    async def _run_with_retries(self, runner: SwarmRunner, job: Job) -> Episode:
        for attempt in range(self._config.max_retries + 1):
            episode = await self._attempt(runner, job, attempt)
            if episode.status != "failed":
                break
        return episode

    async def _attempt(self, runner: SwarmRunner, job: Job, attempt: int) -> Episode:
        # Used again where one is idle: making an environment may mean indexing a corpus.
        env = self._idle_envs.pop() if self._idle_envs else self._make_env()
        # Ids of retries differ, because engines know agents by them.
        episode_id = job.episode_id if attempt == 0 else f"{job.episode_id}.{attempt}"
        run = runner.run(
            env,
            job.task,
            episode_id=episode_id,
            group=job.group,
            step=job.step,
            # Another stream for each attempt: the same one could meet the same failure.
            seed=f"{job.seed}/{attempt}",
        )
        deadline_s = self._config.episode_deadline_s
        try:
            episode = await asyncio.wait_for(run, deadline_s)
        except TimeoutError:
            # The episode was cancelled and its agents have released their engines.
            failure = EpisodeFailure("timeout", f"no result within {deadline_s} s")
            return failed_episode(episode_id, job.task, job.group, job.step, failure)
        # The environment of a failed episode may be in any state, so it is dropped.
        if episode.status != "failed":
            self._idle_envs.append(env)
        return episode
