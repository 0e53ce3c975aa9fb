"""Tools for any environment: a calculator, SQL over a SQLite database, the tools of MCP servers.

They are added by `env.tools` of a config, or in an environment's constructor with `add_tools`.
See docs/how-to/add-tools.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from parl.config.tools import ToolsConfig
from parl.env.tools import Toolset
from parl.env.toolsets.calculator import Calculator
from parl.env.toolsets.mcp import Mcp
from parl.env.toolsets.sql import Sql

__all__ = ["Calculator", "Mcp", "Sql", "toolsets"]


def toolsets(config: ToolsConfig) -> Iterator[Toolset]:
    """Yield the toolsets of a config.

    Raises:
        ConfigError: there is no such database, or a server does not start.
    """
    if config.calculator:
        yield Calculator()
    if config.sql is not None:
        yield Sql(config.sql)
    for server in config.mcp.values():
        yield Mcp(server)
