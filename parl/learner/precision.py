"""Mixed precision: float32 weights that learn, and a copy in a shorter type that makes the passes.

A bfloat16 weight rounds away an update below about 0.2 % of it: in thirty steps at 1e-6 such
weights go less than a tenth of the way that float32 goes. So weights, gradients and moments stay
float32. The copy computes what an engine in its type computes, up to the order of sums. Autocast,
which keeps the residual stream in float32, differed from the engine twice as much (the measurements
are in docs/reference/memory-and-precision.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from parl.policy.models.dtype import cast_parameters


class MixedPrecisionCopy:
    """A copy of `master` that makes the passes.

    Args:
        master: in float32. The gradients of the copy arrive at its parameters.
        dtype: of the copy.
    """

    def __init__(self, master: PreTrainedModel, dtype: torch.dtype) -> None:
        self.model: PreTrainedModel = cast_parameters(copy.deepcopy(master), dtype)
        # Both have the same parameters in the same order.
        self._pairs = list(zip(master.parameters(), self.model.parameters(), strict=True))
        for parameter, copied in self._pairs:
            if parameter.requires_grad:
                copied.register_post_accumulate_grad_hook(_move_gradient_to(parameter))

    @torch.no_grad()
    def follow(self) -> None:
        """Take the master's weights, rounded."""
        for parameter, copied in self._pairs:
            copied.copy_(parameter)


def _move_gradient_to(parameter: torch.nn.Parameter) -> Callable[[torch.Tensor], None]:
    """Return a hook that adds a copied parameter's gradient to its master's.

    It runs during the backward pass, as soon as the gradient is there. So micro-batches are summed
    in float32, and no second set of gradients stays in memory.
    """

    def move(copied: torch.Tensor) -> None:
        assert copied.grad is not None
        gradient = copied.grad.float()
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.add_(gradient)
        # At once: bfloat16 gradients of all micro-batches would be summed in bfloat16.
        copied.grad = None

    return move
