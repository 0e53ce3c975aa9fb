"""An engine without a model: a function of the conversation writes each turn. For tests, teaching, demonstrations.

In: a `Script`, called with the agent's messages and a random generator. Out: the same `Generation` as any engine, so
the runtime cannot tell the difference.
"""

from __future__ import annotations

import numpy as np

from parl.env import Script
from parl.policy.base import Generation, Renderer, Request


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
        return Generation(tuple(ids), (0.0,) * len(ids), "length" if cut else "stop", (0,), tuple(mask))

    def release(self, session: str) -> None:
        """Nothing is kept."""
