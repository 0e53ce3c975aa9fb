"""The objective of Kimi K2.5."""

from __future__ import annotations

from torch import Tensor

from parl.learner.loss.registry import policy_loss
from parl.learner.loss.tokens import Stats, mean_gain, prepare, statistics


@policy_loss
def kimi_k2_5(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    alpha: float,
    beta: float,
    tau: float,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """Return minus eq. 1 of Kimi K2.5: 1/N sum_i Clip(rho_i, alpha, beta) A_i - tau (log rho_i)^2.

    `alpha` and `beta` bound the *log*-ratio. Clip is flat outside of them: such a token gets no
    policy gradient, whatever the sign of its advantage (PPO would still push it back). Its squared
    term stays, and pulls it back.

    Args:
        logp: log pi_theta of each sampled token; the only tensor that gets a gradient.
        old_logp: log-probs recorded at sampling.
        advantages: per token.
        mask: bool or 0/1; tokens outside have no influence (their other values may be anything, NaN
            included).
        weights: per token, default 1.
        denominator: N; default the weighted number of masked-in tokens.
    Returns:
        a scalar, and clipped_fraction, logp_mismatch_mean, logp_mismatch_max (|log rho|; over
        masked-in tokens, unweighted; 0-dimensional).
    Raises:
        ValueError: shapes differ, or the denominator is not positive.
    """
    inside, log_ratio, advantages, weights = prepare(logp, old_logp, advantages, mask, weights)
    # Clamping the logarithm clips the ratio, and exp never overflows.
    gain = log_ratio.clamp(alpha, beta).exp() * advantages - tau * log_ratio.square()
    # Only the first term is clipped; the square is not.
    clipped = (log_ratio < alpha) | (log_ratio > beta)
    return -mean_gain(gain, weights, denominator), statistics(log_ratio, clipped, inside)
