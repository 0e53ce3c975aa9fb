"""An MCP server that misbehaves on demand: `python tests/support/mcp_server.py` (stdio), or with a port (streamable HTTP)."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("naughty")
counted = 0


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def count() -> str:
    """How often this was called in the life of the server's process, and which process that is."""
    global counted  # noqa: PLW0603 (the state that sessions are tested by)
    counted += 1
    return f"{counted} {os.getpid()}"


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ToolError("out of order")


@server.tool()
def hang(seconds: float = 60.0) -> str:
    """Answers late."""
    time.sleep(seconds)
    return "late"


@server.tool()
def freeze() -> str:
    """Stops the whole process."""
    os.kill(os.getpid(), 19)
    return "never"


@server.tool()
def die() -> str:
    """Ends the server's process."""
    os._exit(1)


@server.tool(structured_output=False)
def picture() -> list[Any]:
    """A text and a picture."""
    return ["look", Image(data=b"\x89PNG", format="png")]


@server.tool()
def long() -> str:
    """A text of 100,000 characters."""
    return "x" * 100_000


@server.tool()
def secret(name: str) -> str:
    """A variable of the server's environment."""
    return os.environ.get(name, "(not set)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
