"""Chat messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from parl.core.types import ToolCall


class Message(TypedDict):
    """One chat message. `tool_calls` is empty but for assistants."""

    role: str
    content: str
    tool_calls: list[dict[str, Any]]


def assistant(content: str = "", calls: Sequence[ToolCall] = ()) -> Message:
    """An action: what the model said and called. Without calls it is the final answer."""
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"name": c.name, "arguments": dict(c.arguments)} for c in calls],
    }
