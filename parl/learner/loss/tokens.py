"""What policy losses are made of: masked log-ratios, the mean, statistics.

All tensors of a call have one shape, any shape, so that a packed row and a padded batch give the
same loss. Sums are divided by `denominator`. Give the whole batch's, and the losses of its
micro-batches add up to the loss of the batch, in value and gradient, however it was cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

Stats = dict[str, Tensor]
"""clipped_fraction, logp_mismatch_mean, logp_mismatch_max; 0-dimensional and detached."""


def prepare(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (mask, log-ratio, advantages, weights) of a loss, in float32 or more.

    The last three are 0 outside of the mask, so that nothing there is clipped or counted, whatever
    its value (NaN included).

    Raises:
        ValueError: shapes differ.
    """
    weights = torch.ones_like(logp, requires_grad=False) if weights is None else weights
    tensors = {
        "logp": logp,
        "old_logp": old_logp,
        "advantages": advantages,
        "mask": mask,
        "weights": weights,
    }
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"The tensors of a loss have one shape; got {shapes}. Expand them first.")
    # bfloat16 would round small log-ratios away.
    dtype = torch.promote_types(logp.dtype, torch.float32)
    inside = mask.bool()
    # `where` and not a product with the mask: 0 * NaN is NaN.
    zero = torch.zeros((), dtype=dtype, device=logp.device)
    log_ratio = torch.where(inside, logp.to(dtype) - old_logp.detach().to(dtype), zero)
    # Detached, as `old_logp`: the log-probs under pi_theta alone have a gradient.
    masked_advantages = torch.where(inside, advantages.detach().to(dtype), zero)
    masked_weights = torch.where(inside, weights.detach().to(dtype), zero)
    return inside, log_ratio, masked_advantages, masked_weights


def mean_gain(gain: Tensor, weights: Tensor, denominator: float | Tensor | None) -> Tensor:
    """Return the weighted sum of a gain per token, divided by N.

    Args:
        denominator: N; by default the sum of the weights.
    Raises:
        ValueError: N is not positive.
    """
    total = weights.sum() if denominator is None else denominator
    if not total > 0:
        raise ValueError(
            f"The denominator of a loss must be positive; got {float(total)}. Is the mask empty?"
        )
    return (gain * weights).sum() / total


def statistics(log_ratio: Tensor, clipped: Tensor, inside: Tensor) -> Stats:
    """Return what every loss says of its tokens.

    Args:
        clipped: true where the token gets no policy gradient.
    """
    mismatch = log_ratio.detach().abs()
    # At least 1, so that an empty mask gives 0 and not NaN.
    num = inside.sum().clamp(min=1)
    return {
        "clipped_fraction": clipped.sum() / num,
        "logp_mismatch_mean": mismatch.sum() / num,
        # `max` of an empty tensor raises.
        "logp_mismatch_max": mismatch.max() if mismatch.numel() else mismatch.sum(),
    }


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), and where it is flat."""
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    gain = torch.minimum(ratio * advantages, bounded * advantages)
    too_high = (ratio > 1 + clip_high) & (advantages > 0)
    too_low = (ratio < 1 - clip_low) & (advantages < 0)
    return gain, too_high | too_low
