"""`env.tools`: the tools that a config adds to an environment's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from parl.config.base import ConfigModel, PositiveFloat, PositiveInt


class SqlConfig(ConfigModel):
    """The tool `sql(query)`, which reads a SQLite database."""

    database: Path
    """The file, relative to the config. It is opened read-only."""
    deadline_s: PositiveFloat = 1.0
    """Deadline of one query."""
    max_rows: PositiveInt = 50
    """Most rows of one result."""
    max_chars: PositiveInt = 4000
    """Most characters of one result."""


class McpConfig(ConfigModel):
    """A Model Context Protocol server: give `command` or `url`."""

    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """A program that talks over stdin and stdout, and its arguments, such as
    [python, -m, mcp_server_time]."""
    # Everything else in the environment (keys of other services, say) is none of the program's
    # concern.
    pass_env: tuple[str, ...] = ()
    """Names of environment variables that the program needs; it gets no others except HOME, PATH,
    USER and the like."""
    url: str | None = None
    """A running server, over streamable HTTP, such as http://127.0.0.1:8000/mcp."""
    api_key_env: str | None = None
    """Name of the environment variable with the bearer token of `url`. The key itself never stands
    in a file."""
    only: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the tools to add. null = all tools of the server."""
    session: Literal["shared", "episode"] = "shared"
    """`shared`: one session for all episodes of a process, for servers without state. `episode`:
    one for each episode (with `command`, also one program), which its agents share."""
    connect_s: PositiveFloat = 60.0
    """Deadline of a connection, the start of the program included."""
    deadline_s: PositiveFloat = 30.0
    """Deadline of one call."""
    max_chars: PositiveInt = 20_000
    """Most characters of one result; a longer one is cut."""

    @model_validator(mode="after")
    def _one_transport(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError(
                "give `command` (a program) or `url` (a server that runs), one of the two"
            )
        if self.url is None and self.api_key_env is not None:
            raise ValueError(
                "`api_key_env` goes with `url`; a `command` gets its variables by `pass_env`"
            )
        if self.command is None and self.pass_env:
            raise ValueError(
                "`pass_env` goes with `command`; a `url` gets its token by `api_key_env`"
            )
        return self


class ToolsConfig(ConfigModel):
    """Tools that every agent has in addition to the environment's own."""

    calculator: bool = False
    """Add the tool `calculator(expression)`."""
    sql: SqlConfig | None = None
    mcp: dict[str, McpConfig] = Field(default_factory=dict)
    """Servers, by names of your choice."""
