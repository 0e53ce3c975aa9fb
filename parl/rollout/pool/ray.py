"""Episodes on Ray actors, with the interface of `LocalPool`, and a stream of them.

`run` gives job i to worker i mod `num_workers`, and a worker that is lost gives its share to its
successor. So a step's episodes depend neither on who was faster nor on who died. `submit`, `poll`
and `push` let episodes run while this process learns. Actors are managed by RLlib's
`FaultTolerantActorManager`.
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
"""Largest difference of a worker's log-probs from those of this process: the same weights on,
perhaps, another processor."""
MAX_PROBES = 64
"""Results of the probe that are remembered: workers may answer some versions late."""
POLL_S = 0.1
PUSH = "push"
"""Tag of the calls that send new weights."""
SUSPECT_LOSSES = 2
"""A part that was lost as often as this runs alone on its worker, cut into single episodes: one of
them may be the cause."""
MAX_LOSSES = 3
"""A single episode that was lost more often has failed."""
PATIENCE = 5
"""Times `hang_timeout_s` that the pool waits for its first worker, or for any to come back."""


@dataclass(eq=False)
class _Part:
    """Jobs that travel together."""

    worker: int
    jobs: Sequence[Job]
    runner: SwarmRunner
    sink: Sink
    losses: int = 0
    """How often they were lost with their worker."""
    sent: float = field(default_factory=time.monotonic)

    @property
    def is_suspect(self) -> bool:
        return self.losses >= SUSPECT_LOSSES


class RayPool:
    """Starts Ray (or joins the cluster of RAY_ADDRESS) and `num_workers` rollout actors.

    Args:
        env: made in every worker.
        config: the `rollout` section.
        num_cpus: of the Ray session, if there is none yet.
    """

    def __init__(self, env: EnvSection, config: Rollout, num_cpus: int) -> None:
        self._env = env
        self._config = config
        self._num_cpus = num_cpus
        self.lost = Counter[str]()
        """What the pool has survived: `workers_lost`, `workers_recycled`, `parts_reassigned` (to
        another worker than theirs, so that a step's episodes may differ in their last bits from an
        undisturbed run's)."""
        self._engines: dict[str, EngineState] = {}
        """Engines as they were sent last."""
        self._probes: dict[tuple[str, int], Any] = {}
        """(engine, version) -> log-probs of the probe in this process."""
        self._manager: FaultTolerantActorManager | None = None
        self._started_ray = False
        self._servers: dict[str, tuple[Any, ...]] = {}
        """Policy -> inference actors."""
        self._waiting: list[_Part] = []
        self._running: dict[str, _Part] = {}
        """Tag of the call -> part."""
        self._tags = itertools.count()
        self._last_sign_of_life = time.monotonic()
        self._lost_since: dict[int, float] = {}
        """Workers that do not answer -> since when."""
        self._leaking: dict[int, float] = {}
        """Workers that get nothing new until they are started again -> their MB."""

    def close(self) -> None:
        """Stop the actors, and Ray if this pool has started it. What still runs is lost."""
        if self._manager is None:
            return
        self._manager.clear()
        self._manager = None
        self._waiting = []
        self._running = {}
        for servers in self._servers.values():
            for server in servers:
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
        """Run all jobs, and return their episodes in the order of the jobs.

        An episode that keeps losing its worker comes back as failed (`worker_lost`).

        Raises:
            RuntimeError: no worker came (back) within PATIENCE times `rollout.hang_timeout_s`.
            EngineMismatch: a worker serves other weights.
        """
        episodes: dict[str, Episode] = {}

        def sink(job: Job, episode: Episode) -> None:
            episodes[job.episode_id] = episode
            if on_done is not None:
                on_done(episode)

        num_workers = self._config.num_workers
        for worker in range(num_workers):
            share = jobs[worker::num_workers]
            if share:
                self.submit(runner, share, sink, worker)
        # Each job ends in the sink, with its episode or as failed.
        while len(episodes) < len(jobs):
            self.poll()
        return [episodes[job.episode_id] for job in jobs]

    # --- the stream

    def submit(
        self, runner: SwarmRunner, jobs: Sequence[Job], sink: Sink, worker: int | None = None
    ) -> None:
        """Run jobs together on one worker. `poll` calls `sink` with each and its episode.

        Args:
            worker: by default the one with the fewest jobs.
        """
        if worker is None:
            worker = self._least_loaded(range(self._config.num_workers))
        # However long nothing was asked of the workers, their silence begins now.
        if not self._waiting and not self._running:
            self._last_sign_of_life = time.monotonic()
        self._waiting.append(_Part(worker, jobs, runner, sink))
        self._send(self._started_manager())

    def poll(self) -> None:
        """Send what waits, receive what is done, replace what is lost. Takes up to POLL_S.

        Raises:
            as `run`.
        """
        manager = self._started_manager()
        self._send(manager)
        self._check_patience()
        # Each of a worker's calls tells of its death, so deaths are counted by worker.
        lost: dict[int, Exception] = {}
        for result in manager.fetch_ready_async_reqs(timeout_seconds=POLL_S):
            if result.ok:
                self._receive(result.actor_id, result.tag, result.get())
            else:
                lost[result.actor_id] = result.get()
        for worker, error in lost.items():
            self._lose(worker, error)
        self._recycle(manager)
        self._kill_overdue(manager)

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        """Send new weights to the workers while they work.

        Agents in the middle of a turn go on under them.
        """
        # Before the first episodes nobody has weights that are old.
        if self._manager is not None:
            _, engines, probe = self._describe(policies)
            self._manager.foreach_actor_async(
                "follow", PUSH, kwargs={"engines": engines, "probe": probe}
            )

    def _started_manager(self) -> FaultTolerantActorManager:
        """Return the manager. The first call starts the actors.

        Not the constructor: an error in the input is told before Ray takes its seconds.
        """
        if self._manager is None:
            self._manager = self._start()
        return self._manager

    def _start(self) -> FaultTolerantActorManager:
        config = self._config
        self._started_ray = ray_session.connect(self._num_cpus)
        # Ray starts a lost actor again, but does not repeat its calls: a part is sent again here,
        # where its losses are counted.
        worker_class = ray.remote(
            num_cpus=config.num_cpus_per_worker,
            num_gpus=config.num_gpus_per_worker,
            max_restarts=-1,
            max_task_retries=0,
        )(RolloutWorker)
        workers = [worker_class.remote(self._env, config) for _ in range(config.num_workers)]
        actors = list(workers)
        for policy, served in config.inference.items():
            server_class = ray.remote(
                num_cpus=served.num_cpus, num_gpus=served.num_gpus, max_restarts=-1
            )(InferenceServer)
            servers = []
            for _ in range(served.instances):
                servers.append(server_class.remote(served.num_cpus, config.hang_timeout_s))
            self._servers[policy] = tuple(servers)
            actors += servers
        ray_session.await_actors(actors, PATIENCE * config.hang_timeout_s)
        return FaultTolerantActorManager(workers)

    def _check_patience(self) -> None:
        """Raise RuntimeError if no worker has come back for too long."""
        patience_s = PATIENCE * self._config.hang_timeout_s
        now = time.monotonic()
        if self._running:
            self._last_sign_of_life = now
        elif self._waiting and now - self._last_sign_of_life > patience_s:
            raise RuntimeError(
                f"no rollout worker came back within {patience_s:.0f} s; `ray status` tells what "
                "the cluster has left. The run goes on from its last checkpoint with --resume."
            )

    def _receive(
        self, worker: int, tag: str | None, result: WorkerResult | Scores | Exception
    ) -> None:
        """Take the result of a call."""
        # A bug, or weights that do not fit: not an accident of the machine.
        if isinstance(result, Exception):
            raise result
        if isinstance(result, Scores):
            self._check_scores(result)
            return
        self._check_scores(result.scores)
        assert tag is not None
        part = self._running.pop(tag)
        for job, episode in zip(part.jobs, result.episodes, strict=True):
            part.sink(job, episode)
        if result.rss_mb > (self._config.max_worker_mb or math.inf):
            self._leaking[worker] = result.rss_mb

    # --- parts

    def _send(self, manager: FaultTolerantActorManager) -> None:
        """Send every part that may go. Lost workers are brought back first."""
        if any(not manager.is_actor_healthy(part.worker) for part in self._waiting):
            manager.probe_unhealthy_actors(timeout_seconds=POLL_S, mark_healthy=True)
        self._reassign(manager)
        closed: set[int] = set()
        # Suspects first, so that they are not put off for ever.
        for part in sorted(self._waiting, key=lambda part: not part.is_suspect):
            is_ready = manager.is_actor_healthy(part.worker) and part.worker not in self._leaking
            if not is_ready or part.worker in closed:
                continue
            if not self._may_share(part):
                # Nothing later goes to this worker either: it must become free.
                closed.add(part.worker)
                continue
            self._send_part(manager, part)

    def _may_share(self, part: _Part) -> bool:
        """Whether a part may join what runs on its worker: a suspect runs alone."""
        others = [other for other in self._running.values() if other.worker == part.worker]
        if part.is_suspect and others:
            return False
        return not any(other.is_suspect for other in others)

    def _send_part(self, manager: FaultTolerantActorManager, part: _Part) -> None:
        tag = str(next(self._tags))
        specs, engines, probe = self._describe(part.runner.policies)
        # Its engines live in this process: the worker puts its own in their place.
        runner = part.runner.with_policies({})
        batch = JobBatch(runner, specs, engines, part.jobs, probe)
        num_sent = manager.foreach_actor_async(
            "run", tag, kwargs={"batch": batch}, remote_actor_ids=[part.worker]
        )
        # 0 where the worker has too many calls in flight.
        if num_sent:
            self._waiting.remove(part)
            part.sent = time.monotonic()
            self._running[tag] = part

    def _reassign(self, manager: FaultTolerantActorManager) -> None:
        """Give the work of a worker that does not come back (its node is gone) to the others."""
        healthy = set(manager.healthy_actor_ids())
        now = time.monotonic()
        lost_since: dict[int, float] = {}
        for worker in manager.actor_ids():
            if worker not in healthy:
                lost_since[worker] = self._lost_since.get(worker, now)
        self._lost_since = lost_since
        # A worker that is being started again keeps its share, so that episodes stay the same.
        for part in self._waiting:
            silence_s = now - lost_since.get(part.worker, now)
            if healthy and silence_s > self._config.hang_timeout_s:
                part.worker = self._least_loaded(sorted(healthy))
                self.lost["parts_reassigned"] += 1

    def _least_loaded(self, workers: Sequence[int]) -> int:
        """Return the worker with the fewest jobs, the first of equal ones."""
        num_jobs = Counter(dict.fromkeys(workers, 0))
        for part in [*self._waiting, *self._running.values()]:
            num_jobs[part.worker] += len(part.jobs)
        return min(workers, key=lambda worker: (num_jobs[worker], worker))

    def _lose(self, worker: int, error: Exception) -> None:
        """Book the loss of a worker, and with it of every part that it had."""
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

    def _after_loss(self, part: _Part) -> list[_Part]:
        """Return what to send again of a part that was lost.

        That is the part; after two losses, each of its jobs alone, so that an episode that takes
        its worker down fails alone.
        """
        losses = part.losses + 1
        is_single = len(part.jobs) == 1
        if losses > self._config.max_restarts or (is_single and losses > MAX_LOSSES):
            for job in part.jobs:
                failure = EpisodeFailure(
                    "worker_lost", f"the worker was lost {losses} times with this episode"
                )
                episode = failed_episode(job.episode_id, job.task, job.group, job.step, failure)
                part.sink(job, episode)
            return []
        if losses >= SUSPECT_LOSSES:
            return [replace(part, jobs=[job], losses=losses) for job in part.jobs]
        return [replace(part, losses=losses)]

    def _recycle(self, manager: FaultTolerantActorManager) -> None:
        """Start workers again that have grown too much, once they are idle.

        Most likely an environment leaks.
        """
        busy = {part.worker for part in self._running.values()}
        for worker, rss_mb in list(self._leaking.items()):
            if worker in busy:
                continue
            self.lost["workers_recycled"] += 1
            print(
                f"A rollout worker had grown to {rss_mb:.0f} MB and is started anew.",
                file=sys.stderr,
            )
            actor = manager.actors()[worker]
            # Waited for: otherwise the old process could still answer a health check, and its death
            # would count as a loss.
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(actor.end.remote(), timeout=self._config.hang_timeout_s)
            manager.set_actor_state(worker, healthy=False)
            del self._leaking[worker]

    def _kill_overdue(self, manager: FaultTolerantActorManager) -> None:
        """Kill workers that are past any deadline.

        Their own watchdog has failed, or their node hangs.
        """
        config = self._config
        for part in self._running.values():
            num_waves = math.ceil(len(part.jobs) / config.max_concurrent_episodes)
            num_attempts = config.max_retries + 1
            episodes_s = num_waves * num_attempts * config.episode_deadline_s
            allowed_s = episodes_s + 2 * config.hang_timeout_s
            if time.monotonic() - part.sent > allowed_s:
                ray.kill(manager.actors()[part.worker], no_restart=False)
                # Not again before the loss is known.
                part.sent = time.monotonic()

    # --- policies

    def _describe(
        self, policies: Mapping[str, PolicyHandle]
    ) -> tuple[dict[str, PolicySpec], dict[str, EngineState], list[int]]:
        """Return policies and engines as they travel, and the probe.

        Weights go into the object store once per version.
        """
        specs: dict[str, PolicySpec] = {}
        engines: dict[str, EngineState] = {}
        probe: list[int] = []
        for role, handle in policies.items():
            name = _engine_name(handle)
            specs[role] = PolicySpec(
                handle.name, handle.renderer, handle.tools_in_prompt, name, handle.adapter
            )
            if not probe:
                probe = handle.renderer.start("probe", (), "probe")[:PROBE_TOKENS]
            if name not in engines:
                engines[name] = self._state(name, handle, probe)
        # Older weights may leave the object store.
        self._engines = engines
        return specs, engines, probe

    def _state(self, name: str, handle: PolicyHandle, probe: Sequence[int]) -> EngineState:
        engine = cast(Any, handle.engine)
        # An endpoint or a script: it has no weights, and travels as it is.
        if not hasattr(engine, "blueprint"):
            return EngineState(lambda: engine, 0, {})
        state = self._engines.get(name)
        if state is not None and state.version == engine.version:
            return state
        sent = state.weights if state is not None else {}
        weights: dict[str, tuple[int, Any]] = {}
        for part, version in engine.versions.items():
            if part in sent and sent[part][0] == version:
                weights[part] = sent[part]
            else:
                weights[part] = (version, ray.put(engine.export_weights(part)))
        servers = self._servers.get(handle.base or handle.name, ())
        self._probes[name, engine.version] = engine.probe(probe).numpy()
        while len(self._probes) > MAX_PROBES:
            oldest = next(iter(self._probes))
            del self._probes[oldest]
        return EngineState(engine.blueprint(), engine.version, weights, servers)

    def _check_scores(self, scores: Scores) -> None:
        """Compare a worker's log-probs of the probe with this process's, under the same weights.

        Raises:
            EngineMismatch: they differ.
        """
        for key, of_worker in scores.items():
            expected = self._probes.get(key)
            # Of a version so old that it is forgotten.
            if expected is None:
                continue
            difference = float(np.abs(expected - of_worker).max())
            # Written so that NaN is refused as well.
            if not difference <= PROBE_TOLERANCE:
                raise EngineMismatch(
                    f"A rollout worker's log-probs of a probe differ from this process's by "
                    f"{difference:.2e} (allowed: {PROBE_TOLERANCE:.0e}): it serves stale or other "
                    "weights."
                )


def _engine_name(handle: PolicyHandle) -> str:
    """Return the policy of an engine, and what tells this engine of the process from all others."""
    serial = getattr(handle.engine, "serial", id(handle.engine))
    return f"{handle.base or handle.name}/{serial}"
