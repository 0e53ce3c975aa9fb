"""Episodes on Ray actors, behind the interface of `LocalPool`.

In: a runner whose engines live in this process, jobs. Out: their episodes, in the order of the jobs. Job i goes to
worker i mod `num_workers`, and a worker that is lost gives its batch to its successor, so a step's episodes depend
neither on who was faster nor on who died. Actors are managed by RLlib's `FaultTolerantActorManager`.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from parl.config.schema import EnvConfig, Rollout
from parl.errors import EngineMismatch
from parl.policy.base import PolicyHandle
from parl.rollout.pool import Job
from parl.rollout.swarm import EpisodeFailure, SwarmRunner, failed_episode
from parl.rollout.worker import Answer, Batch, EngineState, RolloutWorker, Seat
from parl.types import Episode

PROBE_TOKENS = 64
PROBE_TOLERANCE = 1e-3
"""Of a worker's log-probs against those of this process: the same weights on, perhaps, another processor."""
POLL_S = 0.5


@dataclass
class _Part:
    """One worker's share of a call: which jobs, and how often it has been lost with them."""

    worker: int
    jobs: list[int]
    losses: int = 0
    sent: float = field(default_factory=time.monotonic)


class RayPool:
    """Starts Ray (or joins the cluster of RAY_ADDRESS) and `num_workers` rollout actors.

    Args:
        env: made in every worker.
        config: the `rollout` section.
        threads: torch threads of each worker.
    """

    def __init__(self, env: EnvConfig, config: Rollout, threads: int) -> None:
        self._env, self._config, self._threads = env, config, threads
        self.lost = Counter[str]()
        """What the pool has survived: `worker_lost`, by count."""
        self._weights: dict[str, EngineState] = {}
        self._manager: FaultTolerantActorManager | None = None
        self._started_ray = False

    def _start(self) -> FaultTolerantActorManager:
        """The actors, started with the first episodes: an error in the input is told before Ray takes its seconds."""
        config = self._config
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            ray.init(
                address=os.environ.get("RAY_ADDRESS"),
                num_cpus=None if os.environ.get("RAY_ADDRESS") else max(config.num_workers, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        actor = ray.remote(
            num_cpus=config.num_cpus_per_worker,
            num_gpus=config.num_gpus_per_worker,
            max_restarts=-1,
            max_task_retries=0,
        )(RolloutWorker)
        workers = [actor.remote(self._env, config, self._threads) for _ in range(config.num_workers)]
        return FaultTolerantActorManager(workers, max_remote_requests_in_flight_per_actor=1)

    def close(self) -> None:
        """Stop the actors, and Ray if this pool has started it."""
        if self._manager is None:
            return
        self._manager.clear()
        self._manager = None
        if self._started_ray:
            ray.shutdown()

    def run(
        self, runner: SwarmRunner, jobs: Sequence[Job], on_done: Callable[[Episode], None] | None = None
    ) -> list[Episode]:
        """Run all jobs. An episode that keeps losing its worker comes back as failed (`worker_lost`).

        Raises:
            RuntimeError: no worker came (back) within five times `rollout.stall_s`.
            EngineMismatch: a worker serves other weights.
        """
        manager = self._manager = self._manager or self._start()
        seats, engines, probe = self._describe(runner.policies)
        plain = runner.with_policies({})
        episodes: dict[int, Episode] = {}

        def batch(part: _Part) -> Batch:
            return Batch(plain, seats, engines, [jobs[i] for i in part.jobs], probe)

        parts = [_Part(w, list(range(w, len(jobs), self._config.num_workers))) for w in range(self._config.num_workers)]
        waiting = [p for p in parts if p.jobs]
        running: dict[int, _Part] = {}
        alive = time.monotonic()
        while waiting or running:
            if running:
                alive = time.monotonic()
            elif time.monotonic() - alive > 5 * self._config.stall_s:
                raise RuntimeError(
                    f"no rollout worker came back within {5 * self._config.stall_s:.0f} s; `ray status` tells what the "
                    "cluster has left. The run goes on from its last checkpoint with --resume."
                )
            self._send(manager, waiting, running, batch)
            for result in manager.fetch_ready_async_reqs(timeout_seconds=POLL_S):
                part = running.pop(result.actor_id)
                if result.ok:
                    answer: Answer | Exception = result.get()
                    if isinstance(answer, Exception):
                        raise answer  # a bug, or engines that do not fit: not an accident of the machine
                    self._check(answer, runner.policies, probe)
                    episodes |= dict(zip(part.jobs, answer.episodes, strict=True))
                    for episode in answer.episodes if on_done else ():
                        on_done(episode)  # type: ignore[misc]
                else:
                    waiting += self._after_loss(part, jobs, episodes, result.get())
            self._expire(manager, running)
        return [episodes[i] for i in range(len(jobs))]

    # --- batches -----------------------------------------------------------------------------------------------------

    def _send(
        self,
        manager: FaultTolerantActorManager,
        waiting: list[_Part],
        running: dict[int, _Part],
        batch: Callable[[_Part], Batch],
    ) -> None:
        """Send every part whose worker is free; bring lost workers back first."""
        if waiting:
            manager.probe_unhealthy_actors(timeout_seconds=POLL_S, mark_healthy=True)
        for part in list(waiting):
            if part.worker in running or not manager.is_actor_healthy(part.worker):
                continue
            sent = manager.foreach_actor_async("run", kwargs={"batch": batch(part)}, remote_actor_ids=[part.worker])
            if sent:
                waiting.remove(part)
                part.sent = time.monotonic()
                running[part.worker] = part

    def _after_loss(
        self, part: _Part, jobs: Sequence[Job], episodes: dict[int, Episode], error: Exception
    ) -> list[_Part]:
        """The part again, whole; after two losses one job at a time, so that a poisonous one fails alone."""
        if not isinstance(error, ray.exceptions.RayError):
            raise error
        self.lost["worker_lost"] += 1
        part.losses += 1
        print(f"A rollout worker was lost ({type(error).__name__}); its episodes run again.", file=sys.stderr)
        if part.losses > self._config.max_restarts or (len(part.jobs) == 1 and part.losses > 3):
            for i in part.jobs:
                job = jobs[i]
                failure = EpisodeFailure("worker_lost", f"the worker was lost {part.losses} times with this episode")
                episodes[i] = failed_episode(job.episode_id, job.task, job.group, job.step, failure)
            return []
        if part.losses == 2 and len(part.jobs) > 1:
            return [_Part(part.worker, [i], part.losses) for i in part.jobs]
        return [part]

    def _expire(self, manager: FaultTolerantActorManager, running: Mapping[int, _Part]) -> None:
        """Kill workers that are past any deadline: their own watchdog has failed, or their node hangs."""
        attempts = self._config.max_retries + 1
        for part in running.values():
            waves = -(-len(part.jobs) // self._config.max_concurrent_episodes)
            allowed = waves * attempts * self._config.episode_deadline_s + 2 * self._config.stall_s
            if time.monotonic() - part.sent > allowed:
                ray.kill(manager.actors()[part.worker], no_restart=False)
                part.sent = time.monotonic()

    # --- policies ----------------------------------------------------------------------------------------------------

    def _describe(
        self, policies: Mapping[str, PolicyHandle]
    ) -> tuple[dict[str, Seat], dict[str, EngineState], list[int]]:
        """Seats and engines as they travel. Weights go into the object store once per version."""
        seats: dict[str, Seat] = {}
        engines: dict[str, EngineState] = {}
        probe: list[int] = []
        for role, handle in policies.items():
            name = _name(handle)
            seats[role] = Seat(handle.name, handle.renderer, handle.tools_in_prompt, name)
            probe = probe or handle.renderer.start("probe", (), "probe")[:PROBE_TOKENS]
            engines[name] = self._state(name, handle.engine)
        self._weights = engines  # older weights may leave the object store
        return seats, engines, probe

    def _state(self, name: str, engine: Any) -> EngineState:
        if not hasattr(engine, "blueprint"):
            return EngineState(lambda: engine, 0, None)
        state = self._weights.get(name)
        if state is None or state.version != engine.version:
            state = EngineState(engine.blueprint(), engine.version, ray.put(engine.export_weights()))
        return state

    def _check(self, answer: Answer, policies: Mapping[str, PolicyHandle], probe: Sequence[int]) -> None:
        """A worker's engine must say of the probe what ours says. Raises EngineMismatch."""
        for handle in policies.values():
            engine: Any = handle.engine
            theirs = answer.scores.get(_name(handle))
            if theirs is not None:
                off = float(np.abs(engine.score(probe).numpy() - theirs).max())
                if not off <= PROBE_TOLERANCE:
                    raise EngineMismatch(
                        f"A rollout worker's log-probs of a probe differ from this process's by {off:.2e} (allowed: "
                        f"{PROBE_TOLERANCE:.0e}): it serves stale or other weights."
                    )


def _name(handle: PolicyHandle) -> str:
    """Of an engine: its policy, and what tells this engine of the process from all others."""
    return f"{handle.name}/{getattr(handle.engine, 'serial', id(handle.engine))}"
