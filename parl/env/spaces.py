"""Gymnasium spaces of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from parl.core.messages import Message


class MessageSpace(gymnasium.spaces.Space[Message]):
    """Any well-formed message of one role."""

    def __init__(self, role: str, tools: Sequence[str] = (), seed: int | None = None) -> None:
        self.role, self.tools = role, tuple(tools)
        super().__init__(shape=None, dtype=None, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> Message:
        """A random message: a call of a random tool with a random string, or a short random answer."""
        text = "".join(self.np_random.choice(list("abc 123"), size=8))
        if not self.tools or self.np_random.random() < 0.5:
            return {"role": self.role, "content": text, "tool_calls": []}
        name = str(self.np_random.choice(list(self.tools)))
        return {
            "role": self.role,
            "content": "",
            "tool_calls": [{"name": name, "arguments": {"query": text}}],
        }

    def contains(self, x: Any) -> bool:
        return (
            isinstance(x, dict)
            and x.get("role") == self.role
            and isinstance(x.get("content"), str)
            and isinstance(x.get("tool_calls"), list)
        )


class MessagesSpace(gymnasium.spaces.Space[list[Message]]):
    """What an agent reads: a list of messages."""

    def sample(self, mask: Any = None, probability: Any = None) -> list[Message]:
        return [{"role": "tool", "content": str(self.np_random.integers(100)), "tool_calls": []}]

    def contains(self, x: Any) -> bool:
        return isinstance(x, list) and all(
            isinstance(m, dict) and isinstance(m.get("content"), str) for m in x
        )
