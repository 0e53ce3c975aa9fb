"""The tools of a Model Context Protocol server as tools of an environment. Needs the package `mcp`.

The server is a program to start (stdio) or a URL (streamable HTTP). Its tools keep their names and
schemas. A mistake of the agent, or one that a tool reports, is an error text. A server that is
gone, does not answer in time, or answers with something else fails the episode: `mcp_unavailable`,
`mcp_timeout`, `mcp_malformed`.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from parl.config.tools import McpConfig
from parl.core.errors import ConfigError, EnvFailure, did_you_mean
from parl.env.tools import Toolset, ToolSpec
from parl.env.toolsets.mcp_session import RemoteError, Session

_lock = threading.Lock()
# A server is asked for its tools once in a process: environments are made often.
_specs_by_server: dict[McpConfig, tuple[ToolSpec, ...]] = {}
# Weak, so that a server's program ends with the last environment that has its tools.
_shared_sessions: weakref.WeakValueDictionary[McpConfig, Session] = weakref.WeakValueDictionary()


class Mcp(Toolset):
    """The tools of one server.

    Raises:
        ConfigError: the server does not list its tools.
    """

    blocking = True

    def __init__(self, config: McpConfig) -> None:
        self._config = config
        with _lock:
            self._session = _session_of(config)
            if config not in _specs_by_server:
                _specs_by_server[config] = _list_tools(config, self._session)
            self._server_specs = _specs_by_server[config]

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Return the server's tools."""
        return self._server_specs

    def end_episode(self) -> None:
        """Close an `episode` session; its next call opens a new one."""
        if self._config.session == "episode":
            self._session.close()

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool.

        Raises:
            EnvFailure: the server is gone, answers too late, or with something else.
        """
        spec = next((spec for spec in self._server_specs if spec.name == name), None)
        if spec is None:
            known = [spec.name for spec in self._server_specs]
            return f"error: no tool '{name}'.{did_you_mean(name, known)}"
        problem = _problem_of(spec, arguments)
        if problem is not None:
            return f"error: {name}: {problem}"
        try:
            result = self._session.call_tool(name, dict(arguments))
        except RemoteError as error:
            return f"error: {name}: {error}"
        text = _text_of(result)
        max_chars = self._config.max_chars
        if len(text) > max_chars:
            text = f"{text[:max_chars]}\n(cut at {max_chars} characters)"
        return f"error: {name}: {text}" if result.is_error else text


def _session_of(config: McpConfig) -> Session:
    """Return the process's session with a server, or a new one where each episode has its own."""
    if config.session == "episode":
        return Session(config)
    session = _shared_sessions.get(config) or Session(config)
    _shared_sessions[config] = session
    return session


def _list_tools(config: McpConfig, session: Session) -> tuple[ToolSpec, ...]:
    server = f"The MCP server {' '.join(config.command) if config.command else config.url}"
    try:
        tools = {tool.name: tool for tool in session.list_tools()}
    except (EnvFailure, RemoteError) as error:
        raise ConfigError(
            f"{server} cannot be asked for its tools: {error}\n"
            "Correct env.tools.mcp.NAME, or start the server."
        ) from error
    finally:
        if config.session == "episode":
            session.close()
    names: Sequence[str] = list(tools) if config.only is None else config.only
    specs = []
    for name in names:
        if name not in tools:
            raise ConfigError(f"{server} has no tool '{name}' (`only`).{did_you_mean(name, tools)}")
        tool = tools[name]
        description = tool.description or tool.title or tool.name
        spec = ToolSpec(name=tool.name, description=description, parameters=tool.input_schema)
        specs.append(spec)
    return tuple(specs)


def _problem_of(spec: ToolSpec, arguments: Mapping[str, Any]) -> str | None:
    """Return what a tool's schema says against the arguments, or None.

    They are checked here because a server that fails on wrong ones would cost the whole episode.
    """
    # Imported here: every command imports this module, and few check a schema.
    import jsonschema
    from referencing import Registry

    validator_class = jsonschema.validators.validator_for(
        spec.parameters, default=jsonschema.Draft202012Validator
    )
    try:
        # An empty registry, so that nothing is loaded from the network for a schema's $ref.
        validator = validator_class(spec.parameters, registry=Registry())
        error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
    except Exception:
        # The schema itself is broken; let the server judge.
        return None
    if error is None:
        return None
    location = "".join(f"{part}: " for part in error.absolute_path)
    return f"{location}{error.message[:500]}"


def _text_of(result: Any) -> str:
    """Return a result's blocks as text; without any, its structured content."""
    if result.content:
        return "\n".join(_block_text(block) for block in result.content)
    if result.structured_content is None:
        return "(no content)"
    return json.dumps(result.structured_content)


def _block_text(block: Any) -> str:
    """Return a block of a result as text, or a note on a block that is no text."""
    match block.type:
        case "text":
            return str(block.text)
        case "resource" if hasattr(block.resource, "text"):
            return str(block.resource.text)
        case "resource":
            return f"(a resource that is not shown: {block.resource.uri})"
        case "resource_link":
            return f"(a link: {block.uri})"
        case _:
            return f"({block.type} that is not shown: {block.mime_type})"
