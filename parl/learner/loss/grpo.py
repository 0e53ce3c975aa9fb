"""The clipped surrogate of PPO, as GRPO and DAPO use it."""

from __future__ import annotations

from torch import Tensor

from parl.learner.loss.registry import policy_loss
from parl.learner.loss.tokens import Stats, clipped_surrogate, mean_gain, prepare, statistics


@policy_loss
def grpo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """Return minus the clipped surrogate with separate bounds (DAPO, 2503.14476, eq. 8).

    1/N sum_i min(rho_i A_i, clip(rho_i, 1 - clip_low, 1 + clip_high) A_i). Arguments, results and
    errors are those of `kimi_k2_5`; clipped_fraction counts the tokens on which the minimum is the
    flat branch.
    """
    inside, log_ratio, advantages, weights = prepare(logp, old_logp, advantages, mask, weights)
    # Unlike the clip of Kimi's eq. 1, which is flat on both sides whatever the sign of A: a token
    # that has moved the wrong way keeps its gradient.
    gain, clipped = clipped_surrogate(log_ratio.exp(), advantages, clip_low, clip_high)
    return -mean_gain(gain, weights, denominator), statistics(log_ratio, clipped, inside)
