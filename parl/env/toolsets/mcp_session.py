"""Sessions with MCP servers, all in the event loop of one thread; every wait has a deadline.

The first call of a session opens it. It is closed by `close`, when its server is gone or has not
answered, when nobody refers to it any more, and when the process ends; its program then ends, too.
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
"""Deadline for closing a session. A program has 2 s to end by itself and 2 s after SIGTERM, and is
then killed."""

T = TypeVar("T")


class RemoteError(Exception):
    """The server says that a request is wrong or has failed."""


class Session:
    """A session with a server, for use from any thread.

    Raises:
        ConfigError: the package `mcp` is not installed, or an environment variable is not set.
    """

    def __init__(self, config: McpConfig) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError:
            raise ConfigError(
                "env.tools.mcp needs the package mcp, which is not installed. "
                "Type: pip install 'parl-swarm[mcp]'"
            ) from None
        variables = list(config.pass_env)
        if config.api_key_env:
            variables.append(config.api_key_env)
        for variable in variables:
            if variable not in os.environ:
                raise ConfigError(
                    f"env.tools.mcp names {variable}, a variable that is not set. "
                    f"Type: export {variable}=VALUE "
                    "(with rollout.backend: ray, where the workers start)."
                )
        self._slot = _Slot(config)
        # Not at exit: `_close_all` closes all sessions then, and waits for it.
        weakref.finalize(self, self._slot.close_soon).atexit = False

    def list_tools(self) -> list[Any]:
        """Return all tools of the server (`mcp.types.Tool`)."""
        return _wait(self._slot.ask("tools/list", _all_tools))

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call a tool and return its result (`mcp.types.CallToolResult`).

        Raises:
            RemoteError: the server answered with an error.
            EnvFailure: it is gone, answered too late, or with something else.
        """
        return _wait(self._slot.ask(name, lambda client: client.call_tool(name, arguments)))

    def close(self) -> None:
        """Close the session once the calls under way have ended. The next call opens a new one."""
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
    """A session's current connection, if any; all but `close_soon` runs in the loop's thread."""

    def __init__(self, config: McpConfig) -> None:
        self._config = config
        self._connection: _Connection | None = None

    def close_soon(self) -> None:
        """Close the connection soon; for use from any thread."""
        loop().call_soon_threadsafe(self._close)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.retire()
            self._connection = None

    async def ask(self, what: str, request: Callable[[Any], Awaitable[T]]) -> T:
        """Send one request.

        Args:
            what: the request's name, for errors.
            request: client -> the awaitable answer.
        """
        import anyio
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED

        if self._connection is None or self._connection.retired:
            self._connection = _Connection(self._config)
        connection = self._connection
        deadline_s = self._config.deadline_s
        connection.num_calls += 1
        try:
            # Shielded: other calls wait for the same connection.
            client = await asyncio.shield(connection.ready)
            with anyio.fail_after(deadline_s):
                return await request(client)
        except EnvFailure:
            raise
        except TimeoutError:
            # It may hang for all later calls as well.
            connection.retire()
            raise EnvFailure("mcp_timeout", f"{what}: no answer within {deadline_s:g} s") from None
        except MCPError as error:
            if error.code != CONNECTION_CLOSED:
                raise RemoteError(error.message) from None
            connection.retire()
            raise EnvFailure(
                "mcp_unavailable", f"{what}: the server is gone{connection.last_words()}"
            ) from None
        except Exception as error:
            # Not of the protocol, or not what the tool's own schema promises.
            connection.retire()
            raise EnvFailure("mcp_malformed", f"{what}: {error!r}"[:500]) from error
        finally:
            connection.num_calls -= 1
            connection.leave_if_done()


class _Connection:
    """A connection in its own task: anyio closes a scope only in the task that opened it."""

    def __init__(self, config: McpConfig) -> None:
        self.ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.retired = False
        self.num_calls = 0
        self._config = config
        # `_live` closes it.
        log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._log = cast(TextIO, log)
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._live())
        _connections.add(self)

    def retire(self) -> None:
        """Take no new calls, and close when those under way have ended."""
        self.retired = True
        self.leave_if_done()

    def leave_if_done(self) -> None:
        """Close if the connection is retired and no call is under way."""
        if self.retired and not self.num_calls:
            self._leave.set()

    def leave(self) -> None:
        """Close now."""
        self._leave.set()

    def last_words(self) -> str:
        """Return the end of what the server's program wrote to its standard error."""
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 1000))
        text = self._log.read().strip()
        return f". It wrote: {text}" if text else ""

    async def _live(self) -> None:
        """Connect, stay until `leave`, and close, each within its deadline."""
        import anyio

        connect_s = self._config.connect_s
        problem = "the connection was closed"
        try:
            with anyio.move_on_after(connect_s) as scope:
                async with AsyncExitStack() as stack:
                    client = await _connect(self._config, self._log, stack)
                    # Connected: the scope's deadline is off until it is time to close.
                    scope.deadline = math.inf
                    self.ready.set_result(client)
                    await self._leave.wait()
                    scope.deadline = anyio.current_time() + CLOSE_S
            if not self.ready.done():
                problem = f"no connection within {connect_s:g} s"
        except Exception as error:
            problem = _first(error)
        finally:
            if not self.ready.done():
                self.ready.set_exception(
                    EnvFailure("mcp_unavailable", f"{problem}{self.last_words()}")
                )
                # Read once, since nobody may wait for it, and asyncio warns of unread exceptions.
                self.ready.exception()
            self.retired = True
            self._log.close()
            _connections.discard(self)


async def _connect(config: McpConfig, log: TextIO, stack: AsyncExitStack) -> Any:
    """Open a connection whose parts `stack` closes, and return the client."""
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
        headers = None
        if config.api_key_env:
            headers = {"Authorization": f"Bearer {os.environ[config.api_key_env]}"}
        # No limit for reading: each call has its own deadline.
        timeout = httpx2.Timeout(config.connect_s, read=None)
        http_client = httpx2.AsyncClient(headers=headers, timeout=timeout)
        await stack.enter_async_context(http_client)
        transport = streamable_http_client(config.url, http_client=http_client)
    return await stack.enter_async_context(mcp.Client(transport))


def _first(error: BaseException) -> str:
    """Return the first error inside groups of errors, as text."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return repr(error)[:500]


# --- the loop of all sessions --------------------------------------------------------------------

_connections: set[_Connection] = set()


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all sessions, in a thread of its own."""
    event_loop = asyncio.new_event_loop()
    threading.Thread(target=event_loop.run_forever, daemon=True, name="mcp").start()
    atexit.register(_close_all)
    return event_loop


def _wait(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, loop()).result()


def _close_all() -> None:
    """Close all connections, so that no program outlives the process that started it."""

    async def leave() -> None:
        tasks = [connection.task for connection in _connections]
        for connection in list(_connections):
            connection.leave()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)

    _wait(leave())
