"""Engines in other processes: what travels to them, a store of them, and inference actors that several workers share.

In: blueprints and weights. Out: an `Engine` for the agents of a worker: one of its own, or a `RemoteEngine` whose
requests go to an inference actor, which batches those of all workers.
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

ATTEMPTS, RETRY_S = 120, 1.0


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine as it travels. `weights` has for each part (the model, adapters) its version and a reference into
    Ray's object store, so that a base under adapters travels once; empty: the engine has none."""

    blueprint: Blueprint
    version: int
    """The sum of the parts' versions."""
    weights: Mapping[str, tuple[int, Any]]
    servers: tuple[Any, ...] = ()
    """Inference actors that serve it; none: every worker has an engine of its own."""


class Scores(dict[tuple[str, int], Any]):
    """(engine, version) -> the probe's log-probs under weights that an engine has just taken."""


class EngineStore:
    """The engines of one process, by name."""

    def __init__(self) -> None:
        self.engines: dict[str, Any] = {}
        self._versions: dict[str, dict[str, int]] = {}  # engine -> part -> version

    def keep(self, names: Mapping[str, Any]) -> None:
        """Forget all others."""
        self.engines = {n: e for n, e in self.engines.items() if n in names}

    async def follow(self, states: Mapping[str, EngineState], probe: Sequence[int]) -> Scores:
        """Bring engines to these weights, also while they run. Older weights than an engine has are ignored."""
        scores = Scores()
        for name, state in states.items():
            if state.servers:
                remote = self.engines.setdefault(name, RemoteEngine(name, state.servers))
                scores |= await remote.follow(state, probe)
                continue
            if name not in self.engines:
                self.engines[name], self._versions[name] = state.blueprint(), {}
            engine, have = self.engines[name], self._versions[name]
            newer = {p: v for p, (v, _) in state.weights.items() if have.get(p, -1) < v}
            loaded = {p: await state.weights[p][1] for p in newer}
            fresh = [
                p for p, version in newer.items() if have.get(p, -1) < version
            ]  # another call may have come first
            for part in fresh:
                engine.load_weights(loaded[part], newer[part], part)
                have[part] = newer[part]
            if fresh and len(probe) > 1:
                scores[name, state.version] = engine.probe(probe).numpy()
        return Scores(scores)


class InferenceServer:
    """An actor that generates for the agents of all workers."""

    def __init__(self, num_cpus: float, hang_timeout_s: float) -> None:
        from parl.core.machine import pin_threads

        faulthandler.enable()
        pin_threads(
            max(1, int(num_cpus))
        )  # more than its share of the cores would slow everybody down
        self._watchdog = Watchdog(hang_timeout_s)
        self._store = EngineStore()
        self._running: dict[str, asyncio.Task[Generation]] = {}

    async def ping(self) -> str:
        return "pong"

    async def pid(self) -> int:
        return os.getpid()

    async def follow(self, states: Mapping[str, EngineState], probe: Sequence[int]) -> Scores:
        return await self._store.follow(states, probe)

    async def generate(self, name: str, request: Request) -> Generation:
        """Sample one turn. Raises LookupError when the actor is new and has no weights yet."""
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
        """The agent has ended; a turn that it no longer waits for (a deadline) ends as well."""
        task = self._running.pop(session, None)
        if task is not None:
            task.cancel()
        if name in self._store.engines:
            self._store.engines[name].release(session)


class RemoteEngine:
    """The engine of a worker whose policy is served elsewhere. An agent stays with one actor, which keeps its state.

    An actor that was lost comes back without weights and state: it gets the former, and the whole context with the
    request, so its agents go on.
    """

    def __init__(self, name: str, servers: Sequence[Any]) -> None:
        self._name, self._servers = name, servers
        self._state: EngineState | None = None

    async def follow(self, state: EngineState, probe: Sequence[int]) -> Scores:
        self._state = replace(state, servers=())
        calls = [self._call(s, "follow", {self._name: self._state}, probe) for s in self._servers]
        return Scores({k: v for scores in await asyncio.gather(*calls) for k, v in scores.items()})

    async def generate(self, request: Request) -> Generation:
        """Sample one turn. Raises EpisodeFailure when the actor does not come back."""
        return await self._call(self._server(request.session), "generate", self._name, request)  # type: ignore[no-any-return]

    def release(self, session: str) -> None:
        self._server(session).release.remote(self._name, session)

    def _server(self, session: str) -> Any:
        return self._servers[zlib.crc32(session.encode()) % len(self._servers)]

    async def _call(self, server: Any, method: str, *args: Any) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                if attempt and method != "follow":
                    await server.follow.remote({self._name: self._state}, ())
                return await getattr(server, method).remote(*args)
            except RayError as error:
                last = error
                await asyncio.sleep(RETRY_S)
        raise EpisodeFailure(
            "worker_lost", f"its inference actor did not answer {ATTEMPTS} times: {last!r}"
        ) from last
