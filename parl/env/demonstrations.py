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
"""(messages so far, system first if any; randomness) -> the next turn of that agent, in pieces."""


def written_call(name: str, /, **values: str) -> str:
    """A tool call in a demonstration, as the tiny tokenizer has it: fixed scaffolding tokens around the values."""
    said = ", ".join(f'"{key}": "{value}"' for key, value in values.items())
    return f'<tool_call>{{"name": "{name}", "arguments": {{{said}}}}}</tool_call>'
