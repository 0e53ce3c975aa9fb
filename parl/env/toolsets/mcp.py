"""The tools of a Model Context Protocol server as tools of an environment. Needs the package `mcp`.

In: a program to start (stdio) or a URL (streamable HTTP). Out: the server's tools, under their own names and schemas.
What an agent does wrong, and what a tool says is wrong, is an error text. A server that is gone or does not answer in
time is a typed failure of the episode: `mcp_unavailable`, `mcp_timeout`; so is a reply that is none: `mcp_malformed`.
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
_listed: dict[McpConfig, tuple[ToolSpec, ...]] = {}
"""Each server is asked for its tools once in a process: environments are made often."""
_shared: weakref.WeakValueDictionary[McpConfig, Session] = weakref.WeakValueDictionary()


class Mcp(Toolset):
    """The tools of one server. Raises ConfigError when the server cannot be asked for them."""

    blocking = True

    def __init__(self, config: McpConfig) -> None:
        self._config = config
        with _lock:
            self._session = (
                Session(config)
                if config.session == "episode"
                else _shared.get(config) or Session(config)
            )
            if config.session == "shared":
                _shared[config] = self._session
            if config not in _listed:
                _listed[config] = _list_tools(config, self._session)
            self._listed = _listed[config]

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        return self._listed

    def end_episode(self) -> None:
        """The next call of an `episode` session opens a new one."""
        if self._config.session == "episode":
            self._session.close()

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool. Raises EnvFailure: the server is gone, answers too late, or with something else."""
        spec = next((s for s in self._listed if s.name == name), None)
        if spec is None:
            return f"error: no tool '{name}'.{did_you_mean(name, [s.name for s in self._listed])}"
        wrong = _wrong_arguments(spec, arguments)
        if wrong is not None:
            return f"error: {name}: {wrong}"
        try:
            result = self._session.call_tool(name, dict(arguments))
        except RemoteError as error:
            return f"error: {name}: {error}"
        text = "\n".join(map(_shown, result.content))
        if not result.content:
            text = (
                "(no content)"
                if result.structured_content is None
                else json.dumps(result.structured_content)
            )
        most = self._config.max_chars
        if len(text) > most:
            text = f"{text[:most]}\n(cut at {most} characters)"
        return f"error: {name}: {text}" if result.is_error else text


def _list_tools(config: McpConfig, session: Session) -> tuple[ToolSpec, ...]:
    where = f"The MCP server {' '.join(config.command) if config.command else config.url}"
    try:
        found = {t.name: t for t in session.list_tools()}
    except (EnvFailure, RemoteError) as error:
        raise ConfigError(
            f"{where} cannot be asked for its tools: {error}\nCorrect env.tools.mcp.NAME, or start the server."
        ) from error
    finally:
        if config.session == "episode":
            session.close()
    chosen: Sequence[str] = list(found) if config.only is None else config.only
    for name in chosen:
        if name not in found:
            raise ConfigError(f"{where} has no tool '{name}' (`only`).{did_you_mean(name, found)}")
    tools = [found[name] for name in chosen]
    return tuple(
        ToolSpec(
            name=t.name, description=t.description or t.title or t.name, parameters=t.input_schema
        )
        for t in tools
    )


def _wrong_arguments(spec: ToolSpec, arguments: Mapping[str, Any]) -> str | None:
    """What the schema says against the arguments: a server that falls over wrong ones would cost the episode."""
    import jsonschema  # every command imports this module, few check a schema
    from referencing import Registry

    checker = jsonschema.validators.validator_for(
        spec.parameters, default=jsonschema.Draft202012Validator
    )
    try:
        # an empty registry: nothing is fetched for a schema's $ref
        error = jsonschema.exceptions.best_match(
            checker(spec.parameters, registry=Registry()).iter_errors(arguments)
        )
    except Exception:  # a schema that is broken: the server shall judge
        return None
    return (
        None
        if error is None
        else "".join(f"{part}: " for part in error.absolute_path) + error.message[:500]
    )


def _shown(block: Any) -> str:
    """A block of a result as text; what is no text as a note."""
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
