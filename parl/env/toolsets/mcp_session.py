"""Sessions with MCP servers. One thread of the process runs the event loop of all of them; every wait has a deadline.

In: where a server is. Out: results, `RemoteError` (the server answered with an error) or `EnvFailure`. A session is
opened by its first call. It is closed by `close`, when its server has not answered or is gone, when nobody refers to it
any more, and when the process ends; its program then ends, too.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import math
import os
import tempfile
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TextIO, TypeVar, cast

from parl.config.tools import McpConfig
from parl.core.errors import ConfigError, EnvFailure

CLOSE_S = 8.0
"""To close a session. A program has 2 s to end by itself, 2 s after SIGTERM, and is then killed."""

T = TypeVar("T")


class RemoteError(Exception):
    """The server says that a request is wrong or has failed."""


class Session:
    """A session of a server, for any thread. Raises ConfigError when it needs what is not there."""

    def __init__(self, config: McpConfig) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError:
            raise ConfigError(
                "env.tools.mcp needs the package mcp, which is not installed. Type: pip install 'parl-swarm[mcp]'"
            ) from None
        for variable in (*config.pass_env, *filter(None, [config.api_key_env])):
            if variable not in os.environ:
                raise ConfigError(
                    f"env.tools.mcp names {variable}, a variable that is not set. Type: export {variable}=VALUE "
                    "(with rollout.backend: ray, where the workers start)."
                )
        self._slot = _Slot(config)
        weakref.finalize(self, self._slot.close_soon).atexit = False  # `_close_all` waits for it

    def list_tools(self) -> list[Any]:
        """All tools (`mcp.types.Tool`)."""
        return _wait(self._slot.ask("tools/list", _all_tools))

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """The result of a call (`mcp.types.CallToolResult`)."""
        return _wait(self._slot.ask(name, lambda client: client.call_tool(name, arguments)))

    def close(self) -> None:
        """Close it, when the calls under way have ended. The next call opens a new one."""
        self._slot.close_soon()


async def _all_tools(client: Any) -> list[Any]:
    tools, cursor = [], None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor:
            return tools


class _Slot:
    """Where a session's connection is, if it has one. But for `close_soon` it lives in the loop's thread."""

    def __init__(self, config: McpConfig) -> None:
        self._config = config
        self._connection: _Connection | None = None

    def close_soon(self) -> None:
        loop().call_soon_threadsafe(self._close)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.retire()
            self._connection = None

    async def ask(self, what: str, request: Callable[[Any], Awaitable[T]]) -> T:
        import anyio
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED

        if self._connection is None or self._connection.retired:
            self._connection = _Connection(self._config)
        connection, deadline_s = self._connection, self._config.deadline_s
        connection.num_calls += 1
        try:
            client = await asyncio.shield(connection.ready)
            with anyio.fail_after(deadline_s):
                return await request(client)
        except EnvFailure:
            raise
        except TimeoutError:
            connection.retire()  # it may hang for all that come
            raise EnvFailure("mcp_timeout", f"{what}: no answer within {deadline_s:g} s") from None
        except MCPError as error:
            if error.code != CONNECTION_CLOSED:
                raise RemoteError(error.message) from None
            connection.retire()
            raise EnvFailure(
                "mcp_unavailable", f"{what}: the server is gone{connection.last_words()}"
            ) from None
        except (
            Exception
        ) as error:  # not of the protocol, or not what the tool's own schema promises
            connection.retire()
            raise EnvFailure("mcp_malformed", f"{what}: {error!r}"[:500]) from error
        finally:
            connection.num_calls -= 1
            connection.leave_if_done()


class _Connection:
    """A connection in a task of its own, since what it opens has to be closed where it was opened."""

    def __init__(self, config: McpConfig) -> None:
        self.ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.retired = False
        self.num_calls = 0
        self._config = config
        self._log = cast(TextIO, tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115 (`_live` closes it)
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._live())
        _connections.add(self)

    def retire(self) -> None:
        """Take no new calls; leave when those under way have ended."""
        self.retired = True
        self.leave_if_done()

    def leave_if_done(self) -> None:
        if self.retired and not self.num_calls:
            self._leave.set()

    def leave(self) -> None:
        self._leave.set()

    def last_words(self) -> str:
        """The end of what a program wrote to its standard error."""
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 1000))
        said = self._log.read().strip()
        return f". It wrote: {said}" if said else ""

    async def _live(self) -> None:
        import anyio

        connect_s, problem = self._config.connect_s, "the connection was closed"
        try:
            with anyio.move_on_after(connect_s) as scope:
                async with AsyncExitStack() as stack:
                    client = await _connected(self._config, self._log, stack)
                    scope.deadline = math.inf
                    self.ready.set_result(client)
                    await self._leave.wait()
                    scope.deadline = anyio.current_time() + CLOSE_S
            if not self.ready.done():
                problem = f"no connection within {connect_s:g} s"
        except Exception as error:  # groups of them included
            problem = _first(error)
        finally:
            if not self.ready.done():
                self.ready.set_exception(
                    EnvFailure("mcp_unavailable", f"{problem}{self.last_words()}")
                )
                self.ready.exception()  # looked at: nobody may wait for it
            self.retired = True
            self._log.close()
            _connections.discard(self)


async def _connected(config: McpConfig, log: TextIO, stack: AsyncExitStack) -> Any:
    import httpx2
    import mcp
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

    if config.command is not None:
        program, *arguments = config.command
        passed = {name: os.environ[name] for name in config.pass_env}
        server = mcp.StdioServerParameters(command=program, args=arguments, env=passed)
        transport = stdio_client(server, errlog=log)
    else:
        assert config.url is not None
        headers = (
            {"Authorization": f"Bearer {os.environ[config.api_key_env]}"}
            if config.api_key_env
            else None
        )
        http = httpx2.AsyncClient(
            headers=headers, timeout=httpx2.Timeout(config.connect_s, read=None)
        )
        transport = streamable_http_client(
            config.url, http_client=await stack.enter_async_context(http)
        )
    return await stack.enter_async_context(mcp.Client(transport))


def _first(error: BaseException) -> str:
    """The first error inside groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return repr(error)[:500]


# --- the loop of all sessions ----------------------------------------------------------------------------------------

_connections: set[_Connection] = set()


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The event loop of all sessions, in a thread of its own."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, daemon=True, name="mcp").start()
    atexit.register(_close_all)
    return made


def _wait(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, loop()).result()


def _close_all() -> None:
    """No program outlives the process that started it."""

    async def leave() -> None:
        tasks = [c.task for c in _connections]
        for connection in list(_connections):
            connection.leave()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)

    _wait(leave())
