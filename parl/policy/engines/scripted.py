"""An engine without a model: a function of the conversation writes each turn. For tests, teaching, demonstrations.

In: a `Script`, called with the agent's messages and a random generator. Out: the same `Generation` as any engine, so
the runtime cannot tell the difference. `CharRenderer` goes with it where there is no tokenizer either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from parl.core.types import ToolCall
from parl.env.demonstrations import Script
from parl.env.tools import ToolSpec
from parl.policy.base import Generation, Renderer, Request
from parl.policy.renderers.chatml import parse_calls


class ScriptedEngine:
    """Renders what the script says; log-probs are 0 (the script is certain)."""

    def __init__(self, script: Script, renderer: Renderer) -> None:
        self._script, self._renderer = script, renderer

    async def generate(self, request: Request) -> Generation:
        ids: list[int] = []
        mask: list[int] = []
        for piece in self._script(request.messages, np.random.default_rng(request.seed)):
            new = self._renderer.encode(piece.text)
            ids += new
            mask += [int(piece.train)] * len(new)
        ids.append(self._renderer.stop_ids[0])
        mask.append(1)
        cut = len(ids) > request.max_tokens
        ids, mask = ids[: request.max_tokens], mask[: request.max_tokens]
        return Generation(
            tuple(ids), (0.0,) * len(ids), "length" if cut else "stop", (0,), tuple(mask)
        )

    def release(self, session: str) -> None:
        """Nothing is kept."""


class CharRenderer:
    """A renderer without a tokenizer: a token is a character of what agents write. What they read is not encoded, since
    a script reads messages."""

    stop_ids = (0,)

    def start(self, system: str, tools: Sequence[ToolSpec], user: str) -> list[int]:
        return [1] * 8

    def observe(self, observations: Sequence[str], turn_ids: Sequence[int] = ()) -> list[int]:
        return [1] * 4 * len(observations)

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def show(self, text: str) -> list[int]:
        return [1] * 4

    def images(self, text: str) -> tuple[str, ...]:
        return ()

    def parse(self, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        text = "".join(map(chr, token_ids[:-1]))
        return text, parse_calls(text)


def call_text(call: ToolCall) -> str:
    """A call as an assistant writes it."""
    return f"<tool_call>{json.dumps({'name': call.name, 'arguments': dict(call.arguments)})}</tool_call>"
