"""A rollout worker: a Ray actor that runs many episodes at once, with its own engines.

A worker keeps nothing that matters between calls: one that was killed and started again gets its
weights with its next batch.
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
from parl.env import registry
from parl.policy.base import PolicyHandle, Renderer
from parl.rollout.pool.inference import EngineState, EngineStore, Scores
from parl.rollout.pool.local import Job, LocalPool
from parl.rollout.pool.watchdog import Watchdog
from parl.rollout.swarm import SwarmRunner


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What plays a role, without its weights, which are objects in Ray's store."""

    policy: str
    renderer: Renderer
    tools_in_prompt: bool
    engine: str
    """Name of the engine. Roles that share one share its batches."""
    adapter: str


@dataclass(frozen=True, slots=True)
class JobBatch:
    """Jobs for a worker, and all that is needed to run them."""

    runner: SwarmRunner
    """Without policies."""
    policy_specs: Mapping[str, PolicySpec]
    """By role."""
    engines: Mapping[str, EngineState]
    jobs: Sequence[Job]
    probe: Sequence[int]
    """Token ids that each engine scores when it has taken new weights."""


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """The episodes of a batch, in the order of its jobs."""

    episodes: list[Episode]
    scores: Scores
    """The probe's log-probs in every engine whose weights were new."""
    rss_mb: float
    """Memory of the worker now."""


class RolloutWorker:
    """The actor. Its methods are coroutines, so health checks are answered while episodes run."""

    def __init__(self, env: EnvSection, rollout: Rollout) -> None:
        from parl.core.machine import pin_threads

        faulthandler.enable()
        # Two workers with two torch threads each, on two cores: a rollout took 46 s in place of 2.
        pin_threads(max(1, int(rollout.num_cpus_per_worker)))
        # Registries are per process: environments, rewards and credit rules of plugins.
        registry.load()
        self._watchdog = Watchdog(rollout.hang_timeout_s)
        self._pool = LocalPool(lambda: registry.make_env(env), rollout)
        self._store = EngineStore()

    async def end(self) -> None:
        """End this process. Ray starts another in its place."""
        os._exit(1)

    async def ping(self) -> str:
        """Answer RLlib's actor manager, which asks an actor that it gave up whether it is back."""
        return "pong"

    async def pid(self) -> int:
        """Return the process id, for logs and for tests that kill it."""
        return os.getpid()

    async def apply(self, func: Callable[..., Any], **kwargs: Any) -> Any:
        """Call a function with this worker, as the actor manager does.

        Returns:
            its result, or its error as a value: raised, it would cost the actor its life.
        """
        try:
            result = func(self, **kwargs)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            return error

    async def run(self, batch: JobBatch) -> WorkerResult:
        """Run the jobs of a batch.

        Failures inside an episode are its status.

        Raises:
            RuntimeError: weights do not fit an engine.
        """
        # An environment that hangs without `blocking` stops the loop, and all episodes with it.
        async with self._watchdog:
            # Engines that these policies do not use would only hold memory.
            self._store.keep(batch.engines)
            scores = await self._store.follow(batch.engines, batch.probe)
            handles: dict[str, PolicyHandle] = {}
            for role, spec in batch.policy_specs.items():
                engine = self._store.engines[spec.engine]
                handles[role] = PolicyHandle(
                    spec.policy, spec.renderer, engine, spec.tools_in_prompt, spec.adapter
                )
            runner = batch.runner.with_policies(handles)
            episodes = await self._pool.gather(runner, batch.jobs)
        return WorkerResult(episodes, scores, rss_now_mb())

    async def follow(self, engines: Mapping[str, EngineState], probe: Sequence[int]) -> Scores:
        """Bring engines to these weights, also while they run."""
        return await self._store.follow(engines, probe)
