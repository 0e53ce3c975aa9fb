"""Mixed precision: float32 weights that learn, and a copy of them in a shorter type that does the passes.

In: a model in float32. Out: its copy, whose gradients arrive at the float32 parameters, and whose weights follow
theirs. The copy computes what an engine in that type computes, but for the order of sums; autocast, which keeps the
residual stream in float32, differed from the engine twice as much (docs/reference/memory-and-precision.md).
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from parl.policy.models.dtype import cast_parameters


class MixedPrecisionCopy:
    """The copy that does the passes of `master`, a model in float32."""

    def __init__(self, master: Any, dtype: torch.dtype) -> None:
        self.model = cast_parameters(copy.deepcopy(master), dtype)
        self._pairs = list(zip(master.parameters(), self.model.parameters(), strict=True))
        for own, copied in self._pairs:
            if own.requires_grad:
                copied.register_post_accumulate_grad_hook(_mover(own))

    @torch.no_grad()
    def follow(self) -> None:
        """Take the master's weights, rounded."""
        for own, copied in self._pairs:
            copied.copy_(own)


def _mover(own: torch.nn.Parameter) -> Any:
    """Adds a copy's gradient to its master's at once: micro-batches are summed in float32, and no second set stays."""

    def move(copied: torch.Tensor) -> None:
        assert copied.grad is not None
        gradient = copied.grad.float()
        own.grad = gradient if own.grad is None else own.grad.add_(gradient)
        copied.grad = None

    return move
