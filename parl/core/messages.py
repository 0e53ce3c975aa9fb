"""Chat messages: the actions and observations of an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from parl.core.types import ToolCall


class Message(TypedDict):
    """One chat message, a plain dict.

    Example:
        ```python
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"name": "lookup", "arguments": {"person": "bo.l"}}],
        }
        {"role": "tool", "content": "188", "tool_calls": []}
        ```
    """

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    tool_calls: list[dict[str, Any]]
    """`{"name": ..., "arguments": {...}}` each; empty except for assistants."""


def assistant(content: str = "", calls: Sequence[ToolCall] = ()) -> Message:
    """Return an assistant's message, which is an action of an environment.

    Without calls it is the final answer.

    Example:
        ```python
        env.step(assistant(calls=[ToolCall("lookup", {"person": "bo.l"})]))
        env.step(assistant("1 117 2 188"))
        ```
    """
    tool_calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    return {"role": "assistant", "content": content, "tool_calls": tool_calls}
