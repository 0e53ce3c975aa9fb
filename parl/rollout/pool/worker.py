"""A rollout worker: a Ray actor that runs many episodes at once, with engines of its own.

In: a batch of jobs, the policies as blueprints and weights. Out: their episodes, in order. A worker keeps nothing that
matters between calls: one that was killed and started again gets its weights with its next batch.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parl.config.env import EnvSection
from parl.config.rollout import Rollout
from parl.core.machine import rss_now_mb
from parl.core.types import Episode
from parl.env.registry import load, make_env
from parl.policy.base import PolicyHandle, Renderer
from parl.rollout.pool.inference import EngineState, EngineStore, Scores
from parl.rollout.pool.local import Job, LocalPool
from parl.rollout.pool.watchdog import Watchdog
from parl.rollout.swarm import SwarmRunner


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Who plays a role: everything about a policy but its weights, which are an object of the store."""

    policy: str
    renderer: Renderer
    tools_in_prompt: bool
    engine: str
    """Name of the engine; roles that share one share its batches."""
    adapter: str


@dataclass(frozen=True, slots=True)
class JobBatch:
    """What a worker gets: jobs, and all that is needed to run them."""

    runner: SwarmRunner
    seats: Mapping[str, PolicySpec]
    engines: Mapping[str, EngineState]
    jobs: Sequence[Job]
    probe: Sequence[int]


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """Episodes, and what the probe says of every engine whose weights were new."""

    episodes: list[Episode]
    scores: Scores
    rss_mb: float
    """Memory of the worker now."""


class RolloutWorker:
    """The actor's class. Its methods are coroutines: the health check is answered while episodes run."""

    def __init__(self, env: EnvSection, rollout: Rollout) -> None:
        from parl.core.machine import pin_threads

        faulthandler.enable()
        pin_threads(
            max(1, int(rollout.num_cpus_per_worker))
        )  # more than its share of the cores would slow everybody down
        load()
        self._watchdog = Watchdog(rollout.hang_timeout_s)
        self._pool = LocalPool(lambda: make_env(env), rollout)
        self._store = EngineStore()

    async def end(self) -> None:
        """End this process; Ray starts another in its place."""
        os._exit(1)

    async def ping(self) -> str:
        """What RLlib's actor manager asks of an actor that it gave up."""
        return "pong"

    async def pid(self) -> int:
        """Its process, for the logs and for tests of what happens when it dies."""
        return os.getpid()

    async def apply(self, func: Callable[..., Any], **kwargs: Any) -> Any:
        """What the manager calls. An error comes back as a value: raised, it would cost the actor its life."""
        try:
            result = func(self, **kwargs)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            return error

    async def run(self, batch: JobBatch) -> WorkerResult:
        """Run the jobs. Failures inside an episode are its status; this raises only for engines that do not fit."""
        async with self._watchdog:
            self._store.keep(batch.engines)
            scores = await self._store.follow(batch.engines, batch.probe)
            engines = self._store.engines
            handles = {
                role: PolicyHandle(
                    s.policy, s.renderer, engines[s.engine], s.tools_in_prompt, s.adapter
                )
                for role, s in batch.seats.items()
            }
            runner = batch.runner.with_policies(handles)
            episodes = await self._pool.gather(runner, batch.jobs)
        return WorkerResult(episodes, scores, rss_now_mb())

    async def follow(self, engines: Mapping[str, EngineState], probe: Sequence[int]) -> Scores:
        """Bring engines to these weights, also while they run."""
        return await self._store.follow(engines, probe)
