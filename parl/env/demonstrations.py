"""Demonstrations: scripted turns for the cold start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from parl.core.messages import Message


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a scripted turn; `train=False` masks it out of the loss (decision masking)."""

    text: str
    train: bool = True


Script = Callable[[Sequence[Message], np.random.Generator], Sequence[Segment]]
"""(messages so far, the system message first if there is one; randomness) -> the agent's next turn,
in segments."""


def written_call(name: str, /, **values: str) -> str:
    """Return a tool call as a demonstration writes it.

    The tiny tokenizer has the punctuation around the values as fixed tokens, so it must stand as it
    does here.

    Example:
        `written_call("open", doc="d1")` -> `<tool_call>{"name": "open", "arguments": {"doc":
        "d1"}}</tool_call>`
    """
    arguments = ", ".join(f'"{key}": "{value}"' for key, value in values.items())
    return f'<tool_call>{{"name": "{name}", "arguments": {{{arguments}}}}}</tool_call>'
