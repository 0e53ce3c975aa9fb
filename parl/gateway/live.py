"""The gateway of training: agents of running episodes as endpoints of the event loop that runs them.

In: a `ChatBackend` for each agent. Out: its own base URL and key, for as long as the agent lives, so that whoever asks
there speaks for this agent of this episode and no other.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from socket import socket
from typing import TYPE_CHECKING

from parl.core.net import listen, own_names, url
from parl.gateway.chat import ApiError

if TYPE_CHECKING:
    from parl.gateway.app import ChatBackend

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an agent's policy is asked, and the key that is asked for."""

    base_url: str
    api_key: str


class Gateway:
    """Serves from the first agent that is inside `open` to the last one. It travels to other processes without them."""

    def __init__(self) -> None:
        self._speakers: dict[
            str, tuple[str, str, ChatBackend]
        ] = {}  # key -> (episode, agent, speaker)
        self._server: asyncio.Task[tuple[asyncio.Event, asyncio.Task[None], str]] | None = None

    def __reduce__(self) -> tuple[type[Gateway], tuple[()]]:
        return Gateway, ()

    @asynccontextmanager
    async def open(self, episode: str, agent: str, speaker: ChatBackend) -> AsyncIterator[Address]:
        """Give an agent its address."""
        name = re.sub(r"[^\w.-]", "_", episode)
        key = secrets.token_urlsafe(16)
        self._speakers[key] = name, agent, speaker
        if self._server is None:
            self._server = asyncio.ensure_future(self._start())
        server = self._server
        try:
            *_, root = await asyncio.shield(server)
            yield Address(f"{root}/episodes/{name}/{agent}/v1", key)
        finally:
            del self._speakers[key]
            if not self._speakers and self._server is server:
                self._server = None
                closing, serving, _ = await server
                closing.set()
                await serving

    async def _start(self) -> tuple[asyncio.Event, asyncio.Task[None], str]:
        import uvicorn

        from parl.gateway.app import ServerLimits, make_app

        closing = asyncio.Event()

        class Server(uvicorn.Server):
            """Ends at once: uvicorn's own end takes some tenths of a second, and single episodes start and end one."""

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield  # Ctrl-C is the run's, not ours

            async def main_loop(self) -> None:
                await closing.wait()

            async def shutdown(self, sockets: list[socket] | None = None) -> None:
                for server in self.servers:
                    server.close()
                for connection in list(self.server_state.connections):
                    connection.shutdown()
                await asyncio.gather(*self.server_state.tasks, return_exceptions=True)

        limits = ServerLimits(concurrent=2**31)  # as many as there are agents
        app = make_app(self._find, limits, own_names(HOST), "/episodes/{episode}/{agent}")
        listening = listen(HOST, None)
        server = Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        while not server.started:
            if serving.done():
                await serving  # raises what has gone wrong
            await asyncio.sleep(0.001)
        return closing, serving, url(HOST, listening)

    def _find(self, path: Mapping[str, str], key: str) -> ChatBackend:
        found = self._speakers.get(key)
        if found is None or found[:2] != (path["episode"], path["agent"]):
            raise ApiError(
                401, "invalid_api_key", "This agent has ended, or the key is not its own."
            )
        return found[2]
