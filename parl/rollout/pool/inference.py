"""Engines in other processes: as they travel, a store of them, and inference actors.

A worker has its own engines, or a `RemoteEngine` whose requests go to an inference actor, which
batches those of all workers.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayError

from parl.policy.base import Blueprint, Generation, Request
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.pool.watchdog import Watchdog

ATTEMPTS = 120
"""Calls of an inference actor before its episodes fail."""
RETRY_S = 1.0
"""Pause between two of them: Ray starts a lost actor again meanwhile."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine as it travels."""

    blueprint: Blueprint
    version: int
    """The sum of the parts' versions."""
    weights: Mapping[str, tuple[int, Any]]
    """Part (the model, adapters) -> its version and a reference into Ray's object store, so that a
    base under adapters travels once. Empty: the engine has no weights."""
    servers: tuple[Any, ...] = ()
    """Inference actors that serve it. Empty: every worker has its own engine."""


class Scores(dict[tuple[str, int], Any]):
    """(engine, version) -> the probe's log-probs under weights that an engine has just taken."""


class EngineStore:
    """The engines of one process, by name."""

    def __init__(self) -> None:
        self.engines: dict[str, Any] = {}
        self._versions: dict[str, dict[str, int]] = {}
        """Engine -> part -> version."""

    def keep(self, names: Mapping[str, Any]) -> None:
        """Forget all other engines."""
        self.engines = {name: engine for name, engine in self.engines.items() if name in names}

    async def follow(self, states: Mapping[str, EngineState], probe: Sequence[int]) -> Scores:
        """Bring engines to these weights, also while they run.

        Weights older than an engine's are ignored.

        Returns:
            the probe's log-probs in each engine that has taken weights.
        """
        scores = Scores()
        for name, state in states.items():
            if state.servers:
                remote = self.engines.setdefault(name, RemoteEngine(name, state.servers))
                scores |= await remote.follow(state, probe)
                continue
            if name not in self.engines:
                self.engines[name] = state.blueprint()
                self._versions[name] = {}
            has_changed = await self._load_newer(name, state)
            # One token alone has no log-prob.
            if has_changed and len(probe) > 1:
                scores[name, state.version] = self.engines[name].probe(probe).numpy()
        return scores

    async def _load_newer(self, name: str, state: EngineState) -> bool:
        """Load the parts that are newer than the engine's, and return whether there were any."""
        engine = self.engines[name]
        versions = self._versions[name]
        loaded: dict[str, Any] = {}
        for part, (version, reference) in state.weights.items():
            if versions.get(part, -1) < version:
                loaded[part] = await reference
        has_changed = False
        for part, weights in loaded.items():
            version, _ = state.weights[part]
            # Asked again: another call may have come first while this one waited for the weights.
            if versions.get(part, -1) < version:
                engine.load_weights(weights, version, part)
                versions[part] = version
                has_changed = True
        return has_changed


class InferenceServer:
    """An actor that generates for the agents of all workers."""

    def __init__(self, num_cpus: float, hang_timeout_s: float) -> None:
        from parl.core.machine import pin_threads

        faulthandler.enable()
        # More threads than its share of the cores would slow everybody down.
        pin_threads(max(1, int(num_cpus)))
        self._watchdog = Watchdog(hang_timeout_s)
        self._store = EngineStore()
        self._running: dict[str, asyncio.Task[Generation]] = {}
        """Session -> the turn that is being sampled."""

    async def ping(self) -> str:
        """Answer once the process has started."""
        return "pong"

    async def pid(self) -> int:
        """Return the process id, for logs and for tests that kill it."""
        return os.getpid()

    async def follow(self, states: Mapping[str, EngineState], probe: Sequence[int]) -> Scores:
        """Bring engines to these weights, also while they run."""
        return await self._store.follow(states, probe)

    async def generate(self, name: str, request: Request) -> Generation:
        """Sample one turn.

        Raises:
            LookupError: the actor is new and has no weights yet.
        """
        # Armed only while it generates: an idle loop may sleep as long as it likes.
        async with self._watchdog:
            task: asyncio.Task[Generation] = asyncio.ensure_future(
                self._store.engines[name].generate(request)
            )
            self._running[request.session] = task
            try:
                return await task
            finally:
                self._running.pop(request.session, None)

    async def release(self, name: str, session: str) -> None:
        """End an agent, and a turn that it no longer waits for (a deadline)."""
        task = self._running.pop(session, None)
        if task is not None:
            task.cancel()
        if name in self._store.engines:
            self._store.engines[name].release(session)


class RemoteEngine:
    """The engine of a worker whose policy is served elsewhere.

    An agent stays with one actor, which keeps its state. An actor that was lost comes back without
    weights and state: it gets the former here, and the context with each request, so its agents go
    on.
    """

    def __init__(self, name: str, servers: Sequence[Any]) -> None:
        self._name = name
        self._servers = servers
        self._state: EngineState | None = None

    async def follow(self, state: EngineState, probe: Sequence[int]) -> Scores:
        """Bring all actors to these weights."""
        # Without servers: to the actor it is an engine of its process.
        self._state = replace(state, servers=())
        calls = []
        for server in self._servers:
            calls.append(self._call(server, "follow", {self._name: self._state}, probe))
        # Equal weights give equal scores, so it does not matter whose are kept.
        merged = Scores()
        for scores in await asyncio.gather(*calls):
            merged.update(scores)
        return merged

    async def generate(self, request: Request) -> Generation:
        """Sample one turn.

        Raises:
            EpisodeFailure: the actor does not come back.
        """
        server = self._server(request.session)
        return await self._call(server, "generate", self._name, request)  # type: ignore[no-any-return]

    def release(self, session: str) -> None:
        """End an agent. Nobody waits for the answer."""
        self._server(session).release.remote(self._name, session)

    def _server(self, session: str) -> Any:
        # By a checksum: `hash` of a text differs between processes.
        return self._servers[zlib.crc32(session.encode()) % len(self._servers)]

    async def _call(self, server: Any, method: str, *args: Any) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                # After an error the actor may be a new one, without weights.
                if attempt and method != "follow":
                    await server.follow.remote({self._name: self._state}, ())
                return await getattr(server, method).remote(*args)
            except RayError as error:
                last_error = error
                await asyncio.sleep(RETRY_S)
        raise EpisodeFailure(
            "worker_lost", f"its inference actor did not answer {ATTEMPTS} times: {last_error!r}"
        ) from last_error
