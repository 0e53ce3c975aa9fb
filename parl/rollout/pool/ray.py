"""Episodes on Ray actors, behind the interface of `LocalPool`, and a stream of them for asynchronous training.

In: a runner whose engines live in this process, jobs. Out: their episodes. `run` gives job i to worker i mod
`num_workers`, and a worker that is lost gives its share to its successor, so a step's episodes depend neither on who
was faster nor on who died. `submit`, `poll` and `push` let episodes run while this process learns. Actors are managed
by RLlib's `FaultTolerantActorManager`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from parl.config.env import EnvSection
from parl.config.rollout import Rollout
from parl.core import ray_session
from parl.core.errors import EngineMismatch
from parl.core.types import Episode
from parl.policy.base import PolicyHandle
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.pool.inference import EngineState, InferenceServer, Scores
from parl.rollout.pool.local import Job, Sink
from parl.rollout.pool.worker import JobBatch, PolicySpec, RolloutWorker, WorkerResult
from parl.rollout.swarm import SwarmRunner, failed_episode

PROBE_TOKENS = 64
PROBE_TOLERANCE = 1e-3
"""Of a worker's log-probs against those of this process: the same weights on, perhaps, another processor."""
POLL_S = 0.1
PUSH = "push"
KEPT_PROBES = 64
SUSPECT = 2
"""A part that was lost so often runs alone on its worker, cut into single episodes: one of them may be the cause."""
MAX_LOSSES = 3


@dataclass(eq=False)
class _Part:
    """Jobs that travel together, and how often they have been lost."""

    worker: int
    jobs: Sequence[Job]
    runner: SwarmRunner
    sink: Sink
    losses: int = 0
    sent: float = field(default_factory=time.monotonic)


class RayPool:
    """Starts Ray (or joins the cluster of RAY_ADDRESS) and `num_workers` rollout actors.

    Args:
        env: made in every worker.
        config: the `rollout` section.
        num_cpus: of the Ray session, if none is there yet.
    """

    def __init__(self, env: EnvSection, config: Rollout, num_cpus: int) -> None:
        self._env, self._config, self._num_cpus = env, config, num_cpus
        self.lost = Counter[str]()
        """What the pool has survived, by count: `workers_lost`, `workers_recycled`, `parts_reassigned` (to another
        worker than theirs, so that a step's episodes may differ in their last bits from an undisturbed run's)."""
        self._weights: dict[str, EngineState] = {}
        self._probes: dict[
            tuple[str, int], Any
        ] = {}  # (engine, version) -> this process's log-probs of the probe
        self._manager: FaultTolerantActorManager | None = None
        self._started_ray = False
        self._waiting: list[_Part] = []
        self._running: dict[str, _Part] = {}
        self._tags = itertools.count()
        self._alive = time.monotonic()
        self._gone: dict[int, float] = {}  # lost workers, since when
        self._leaking: dict[
            int, float
        ] = {}  # workers that get nothing new until they are started anew, and their MB
        self._servers: dict[str, tuple[Any, ...]] = {}  # policy -> inference actors

    def _start(self) -> FaultTolerantActorManager:
        """The actors, started with the first episodes: an error in the input is told before Ray takes its seconds."""
        config = self._config
        self._started_ray = ray_session.connect(self._num_cpus)
        actor = ray.remote(
            num_cpus=config.num_cpus_per_worker,
            num_gpus=config.num_gpus_per_worker,
            max_restarts=-1,
            max_task_retries=0,
        )(RolloutWorker)
        workers = [actor.remote(self._env, config) for _ in range(config.num_workers)]
        for policy, served in config.inference.items():
            server = ray.remote(
                num_cpus=served.num_cpus, num_gpus=served.num_gpus, max_restarts=-1
            )(InferenceServer)
            made = (
                server.remote(served.num_cpus, config.hang_timeout_s)
                for _ in range(served.instances)
            )
            self._servers[policy] = tuple(made)
        servers = (s for group in self._servers.values() for s in group)
        ray_session.await_actors([*workers, *servers], 5 * config.hang_timeout_s)
        return FaultTolerantActorManager(workers)

    def close(self) -> None:
        """Stop the actors, and Ray if this pool has started it. What still runs is lost."""
        if self._manager is None:
            return
        self._manager.clear()
        self._manager = None
        self._waiting, self._running = [], {}
        for server in (s for servers in self._servers.values() for s in servers):
            ray.kill(server)
        self._servers = {}
        if self._started_ray:
            ray.shutdown()

    def run(
        self,
        runner: SwarmRunner,
        jobs: Sequence[Job],
        on_done: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Run all jobs. An episode that keeps losing its worker comes back as failed (`worker_lost`).

        Raises:
            RuntimeError: no worker came (back) within five times `rollout.hang_timeout_s`.
            EngineMismatch: a worker serves other weights.
        """
        done: dict[str, Episode] = {}

        def sink(job: Job, episode: Episode) -> None:
            done[job.episode_id] = episode
            if on_done is not None:
                on_done(episode)

        num = self._config.num_workers
        for worker in range(num):
            if jobs[worker::num]:
                self.submit(runner, jobs[worker::num], sink, worker)
        while len(done) < len(jobs):
            self.poll()
        return [done[job.episode_id] for job in jobs]

    # --- the stream --------------------------------------------------------------------------------------------------

    def submit(
        self, runner: SwarmRunner, jobs: Sequence[Job], sink: Sink, worker: int | None = None
    ) -> None:
        """Run jobs together on one worker (by default the one with the fewest); `sink` gets each with its episode."""
        if worker is None:
            worker = self._least_loaded(range(self._config.num_workers))
        if not self._waiting and not self._running:
            self._alive = time.monotonic()  # however long nothing was asked of the workers
        self._waiting.append(_Part(worker, jobs, runner, sink))
        self._manager = self._manager or self._start()
        self._send(self._manager)

    def poll(self) -> None:
        """Send what waits, receive what is done, replace what is lost. Takes up to POLL_S. Raises as `run`."""
        manager = self._manager = self._manager or self._start()
        self._send(manager)
        if self._running:
            self._alive = time.monotonic()
        elif self._waiting and time.monotonic() - self._alive > 5 * self._config.hang_timeout_s:
            raise RuntimeError(
                f"no rollout worker came back within {5 * self._config.hang_timeout_s:.0f} s; `ray status` tells what the "
                "cluster has left. The run goes on from its last checkpoint with --resume."
            )
        lost: dict[int, Exception] = {}  # each of a worker's calls tells of its death
        for result in manager.fetch_ready_async_reqs(timeout_seconds=POLL_S):
            if not result.ok:
                lost[result.actor_id] = result.get()
                continue
            answer: WorkerResult | Scores | Exception = result.get()
            if isinstance(answer, Exception):
                raise answer  # a bug, or engines that do not fit: not an accident of the machine
            if isinstance(answer, Scores):
                self._check(answer)
                continue
            self._check(answer.scores)
            part = self._running.pop(result.tag)
            for job, episode in zip(part.jobs, answer.episodes, strict=True):
                part.sink(job, episode)
            if answer.rss_mb > (self._config.max_worker_mb or math.inf):
                self._leaking[result.actor_id] = answer.rss_mb
        for worker, error in lost.items():
            self._lose(worker, error)
        self._recycle(manager)
        self._expire(manager)

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        """Send new weights to the workers while they work: agents in the middle of a turn go on under them."""
        if self._manager is not None:
            _, engines, probe = self._describe(policies)
            self._manager.foreach_actor_async(
                "follow", PUSH, kwargs={"engines": engines, "probe": probe}
            )

    # --- parts -------------------------------------------------------------------------------------------------------

    def _send(self, manager: FaultTolerantActorManager) -> None:
        """Send every part that may go; bring lost workers back first. Suspects go before others, and alone."""
        if any(not manager.is_actor_healthy(p.worker) for p in self._waiting):
            manager.probe_unhealthy_actors(timeout_seconds=POLL_S, mark_healthy=True)
        self._reassign(manager)
        closed: set[int] = set()
        for part in sorted(self._waiting, key=lambda p: p.losses < SUSPECT):
            others = [p for p in self._running.values() if p.worker == part.worker]
            suspect = part.losses >= SUSPECT
            if (
                part.worker in closed
                or part.worker in self._leaking
                or not manager.is_actor_healthy(part.worker)
            ):
                continue
            if (suspect and others) or any(p.losses >= SUSPECT for p in others):
                closed.add(part.worker)
                continue
            tag = str(next(self._tags))
            seats, engines, probe = self._describe(part.runner.policies)
            batch = JobBatch(part.runner.with_policies({}), seats, engines, part.jobs, probe)
            if manager.foreach_actor_async(
                "run", tag, kwargs={"batch": batch}, remote_actor_ids=[part.worker]
            ):
                self._waiting.remove(part)
                part.sent = time.monotonic()
                self._running[tag] = part

    def _reassign(self, manager: FaultTolerantActorManager) -> None:
        """Give the work of a worker that does not come back (its node is gone) to the others."""
        healthy = set(manager.healthy_actor_ids())
        now = time.monotonic()
        self._gone = {w: self._gone.get(w, now) for w in manager.actor_ids() if w not in healthy}
        for part in self._waiting:
            if healthy and now - self._gone.get(part.worker, now) > self._config.hang_timeout_s:
                part.worker = self._least_loaded(sorted(healthy))
                self.lost["parts_reassigned"] += 1

    def _least_loaded(self, workers: Sequence[int]) -> int:
        load = Counter(dict.fromkeys(workers, 0))
        for part in [*self._waiting, *self._running.values()]:
            load[part.worker] += len(part.jobs)
        return min(workers, key=lambda w: (load[w], w))

    def _lose(self, worker: int, error: Exception) -> None:
        """A worker is gone, and with it every part that it had."""
        if not isinstance(error, ray.exceptions.RayError):
            raise error
        self.lost["workers_lost"] += 1
        self._leaking.pop(worker, None)
        print(
            f"A rollout worker was lost ({type(error).__name__}); its episodes run again.",
            file=sys.stderr,
        )
        for tag, part in list(self._running.items()):
            if part.worker == worker:
                del self._running[tag]
                self._waiting += self._after_loss(part)

    def _recycle(self, manager: FaultTolerantActorManager) -> None:
        """Start workers anew that have grown too much (an environment that leaks, most likely), once they are idle."""
        for worker, rss_mb in list(self._leaking.items()):
            if any(p.worker == worker for p in self._running.values()):
                continue
            self.lost["workers_recycled"] += 1
            print(
                f"A rollout worker had grown to {rss_mb:.0f} MB and is started anew.",
                file=sys.stderr,
            )
            actor = manager.actors()[worker]
            with contextlib.suppress(
                ray.exceptions.RayError
            ):  # it ends: the old process can answer no health check
                ray.get(actor.end.remote(), timeout=self._config.hang_timeout_s)
            manager.set_actor_state(worker, healthy=False)
            del self._leaking[worker]

    def _after_loss(self, part: _Part) -> list[_Part]:
        """The part again, whole; after two losses one job at a time, so that a poisonous one fails alone."""
        losses = part.losses + 1
        if losses > self._config.max_restarts or (len(part.jobs) == 1 and losses > MAX_LOSSES):
            for job in part.jobs:
                failure = EpisodeFailure(
                    "worker_lost", f"the worker was lost {losses} times with this episode"
                )
                part.sink(
                    job, failed_episode(job.episode_id, job.task, job.group, job.step, failure)
                )
            return []
        if losses >= SUSPECT:
            return [replace(part, jobs=[job], losses=losses) for job in part.jobs]
        return [replace(part, losses=losses)]

    def _expire(self, manager: FaultTolerantActorManager) -> None:
        """Kill workers that are past any deadline: their own watchdog has failed, or their node hangs."""
        attempts = self._config.max_retries + 1
        for part in self._running.values():
            waves = -(-len(part.jobs) // self._config.max_concurrent_episodes)
            allowed = (
                waves * attempts * self._config.episode_deadline_s + 2 * self._config.hang_timeout_s
            )
            if time.monotonic() - part.sent > allowed:
                ray.kill(manager.actors()[part.worker], no_restart=False)
                part.sent = time.monotonic()

    # --- policies ----------------------------------------------------------------------------------------------------

    def _describe(
        self, policies: Mapping[str, PolicyHandle]
    ) -> tuple[dict[str, PolicySpec], dict[str, EngineState], list[int]]:
        """Seats and engines as they travel. Weights go into the object store once per version."""
        seats: dict[str, PolicySpec] = {}
        engines: dict[str, EngineState] = {}
        probe: list[int] = []
        for role, handle in policies.items():
            name = _name(handle)
            seats[role] = PolicySpec(
                handle.name, handle.renderer, handle.tools_in_prompt, name, handle.adapter
            )
            probe = probe or handle.renderer.start("probe", (), "probe")[:PROBE_TOKENS]
            if name not in engines:
                engines[name] = self._state(handle, probe)
        self._weights = engines  # older weights may leave the object store
        return seats, engines, probe

    def _state(self, handle: PolicyHandle, probe: Sequence[int]) -> EngineState:
        name, engine = _name(handle), cast(Any, handle.engine)
        if not hasattr(engine, "blueprint"):
            return EngineState(lambda: engine, 0, {})
        state = self._weights.get(name)
        if state is None or state.version != engine.version:
            before = state.weights if state is not None else {}
            weights = {
                part: before[part]
                if part in before and before[part][0] == version
                else (version, ray.put(engine.export_weights(part)))
                for part, version in engine.versions.items()
            }
            servers = self._servers.get(handle.base or handle.name, ())
            state = EngineState(engine.blueprint(), engine.version, weights, servers)
            self._probes[name, engine.version] = engine.probe(probe).numpy()
            while len(self._probes) > KEPT_PROBES:
                del self._probes[next(iter(self._probes))]
        return state

    def _check(self, scores: Scores) -> None:
        """A worker's engine must say of the probe what ours said under the same weights. Raises EngineMismatch."""
        for key, theirs in scores.items():
            ours = self._probes.get(key)
            off = float(np.abs(ours - theirs).max()) if ours is not None else 0.0
            if not off <= PROBE_TOLERANCE:
                raise EngineMismatch(
                    f"A rollout worker's log-probs of a probe differ from this process's by {off:.2e} (allowed: "
                    f"{PROBE_TOLERANCE:.0e}): it serves stale or other weights."
                )


def _name(handle: PolicyHandle) -> str:
    """Of an engine: its policy, and what tells this engine of the process from all others."""
    return f"{handle.base or handle.name}/{getattr(handle.engine, 'serial', id(handle.engine))}"
