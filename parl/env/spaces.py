"""Gymnasium spaces of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from parl.core.messages import Message


class MessageSpace(gymnasium.spaces.Space[Message]):
    """All well-formed messages of one role: the actions of an environment.

    Gymnasium's own checker and random policies sample from it; agents never do.
    """

    def __init__(self, role: str, tools: Sequence[str] = (), seed: int | None = None) -> None:
        self.role = role
        self.tools = tuple(tools)
        super().__init__(shape=None, dtype=None, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> Message:
        """Draw a message: a call of a random tool with a random text, or a short random answer."""
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
        """Return whether a value is such a message."""
        return (
            isinstance(x, dict)
            and x.get("role") == self.role
            and isinstance(x.get("content"), str)
            and isinstance(x.get("tool_calls"), list)
        )


class MessagesSpace(gymnasium.spaces.Space[list[Message]]):
    """All lists of messages: the observations of an environment."""

    def sample(self, mask: Any = None, probability: Any = None) -> list[Message]:
        """Draw one tool message with a number below 100."""
        return [{"role": "tool", "content": str(self.np_random.integers(100)), "tool_calls": []}]

    def contains(self, x: Any) -> bool:
        """Return whether a value is a list of messages."""
        if not isinstance(x, list):
            return False
        return all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in x)
