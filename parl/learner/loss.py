"""Policy losses: pure functions of per-token tensors.

In: log-probs of the sampled tokens under the policy that learns and under the one that sampled, advantages, a mask.
Out: (loss to minimise, detached statistics). All tensors of a call have one shape, any shape; so a packed row and a
padded batch give the same loss.

Sums are divided by `denominator`. Give the whole batch's, and the losses of its micro-batches add up to the loss of
the batch, in value and gradient, however it was cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

Stats = dict[str, Tensor]


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
    """Minus the objective of Kimi K2.5, eq. 1:  1/N sum_i Clip(rho_i, alpha, beta) A_i - tau (log rho_i)^2.

    `alpha` and `beta` bound the *log*-ratio. Clip is flat outside of them: such a token gets no policy gradient,
    whatever the sign of its advantage (PPO would still push it back). Its squared term stays, and pulls it back.

    Args:
        logp: log pi_theta of each sampled token; the only tensor that gets a gradient.
        old_logp: log-probs recorded at sampling.
        advantages: per token.
        mask: bool or 0/1; tokens outside have no influence (their other values may be anything, NaN included).
        weights: per token, default 1.
        denominator: N; default the weighted number of masked-in tokens.
    Returns:
        a scalar, and clipped_fraction, logp_mismatch_mean, logp_mismatch_max (|log rho|; over masked-in tokens,
        unweighted; 0-dimensional).
    Raises:
        ValueError: shapes differ, or the denominator is not positive.
    """
    inside, log_ratio, advantages, weights = _prepare(logp, old_logp, advantages, mask, weights)
    # Clamping the logarithm clips the ratio, and exp never overflows.
    gain = log_ratio.clamp(alpha, beta).exp() * advantages - tau * log_ratio.square()
    clipped = (log_ratio < alpha) | (log_ratio > beta)
    return -_mean(gain, weights, denominator), _stats(log_ratio, clipped, inside)


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
    """The clipped surrogate of PPO and GRPO with separate bounds (DAPO, 2503.14476, eq. 8), negated.

    1/N sum_i min(rho_i A_i, clip(rho_i, 1 - clip_low, 1 + clip_high) A_i). Arguments, results and errors are those of
    `kimi_k2_5`; clipped_fraction counts the tokens on which the minimum is the flat branch.
    """
    inside, log_ratio, advantages, weights = _prepare(logp, old_logp, advantages, mask, weights)
    ratio = log_ratio.exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    clipped = ((ratio > 1 + clip_high) & (advantages > 0)) | (
        (ratio < 1 - clip_low) & (advantages < 0)
    )
    return -_mean(gain, weights, denominator), _stats(log_ratio, clipped, inside)


def gspo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    traces: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """One ratio for a whole trace (GSPO, 2507.18071, eqs. 5 and 7), negated.

    s = exp(mean over the trace's tokens of log rho), and each of them adds min(s A, clip(s, 1 - clip_low,
    1 + clip_high) A). With weights 1/|y| and N = the number of traces that is eq. 5. Where the tokens of a trace have
    different advantages it is GSPO-token (eqs. 13 and 14): the value is that of s, each token's gradient s A.
    Arguments, results and errors are those of `grpo`; a trace must be whole in one call.

    Args:
        traces: per token, the index of its trace from 0 on.
    """
    inside, log_ratio, advantages, weights = _prepare(logp, old_logp, advantages, mask, weights)
    if traces.shape != logp.shape:
        raise ValueError(
            f"The tensors of a loss have one shape; got traces {tuple(traces.shape)}. Expand them first."
        )
    flat, used = traces[inside], log_ratio[inside]
    num = int(flat.max()) + 1 if len(flat) else 0
    sums = torch.zeros(num, dtype=used.dtype, device=used.device).index_add(0, flat, used.detach())
    mean = torch.zeros_like(log_ratio)
    mean[inside] = (sums / torch.bincount(flat, minlength=num).clamp(min=1))[flat]
    ratio = (
        mean + log_ratio - log_ratio.detach()
    ).exp()  # s, with the gradient of each token's own log-prob
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    clipped = ((ratio > 1 + clip_high) & (advantages > 0)) | (
        (ratio < 1 - clip_low) & (advantages < 0)
    )
    return -_mean(gain, weights, denominator), _stats(log_ratio, clipped, inside)


def _prepare(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(mask, log-ratio, advantages, weights), the last three 0 outside the mask (so never clipped), float32 or more."""
    weights = torch.ones_like(logp, requires_grad=False) if weights is None else weights
    given = {
        "logp": logp,
        "old_logp": old_logp,
        "advantages": advantages,
        "mask": mask,
        "weights": weights,
    }
    if len({t.shape for t in given.values()}) > 1:
        shapes = ", ".join(f"{k} {tuple(t.shape)}" for k, t in given.items())
        raise ValueError(f"The tensors of a loss have one shape; got {shapes}. Expand them first.")
    dtype = torch.promote_types(
        logp.dtype, torch.float32
    )  # bfloat16 would round small log-ratios away
    inside = mask.bool()
    zero = torch.zeros((), dtype=dtype, device=logp.device)
    log_ratio = torch.where(inside, logp.to(dtype) - old_logp.detach().to(dtype), zero)
    return (
        inside,
        log_ratio,
        torch.where(inside, advantages.detach().to(dtype), zero),
        torch.where(inside, weights.detach().to(dtype), zero),
    )


def _mean(gain: Tensor, weights: Tensor, denominator: float | Tensor | None) -> Tensor:
    total = weights.sum() if denominator is None else denominator
    if not total > 0:
        raise ValueError(
            f"The denominator of a loss must be positive; got {float(total)}. Is the mask empty?"
        )
    return (gain * weights).sum() / total


def _stats(log_ratio: Tensor, clipped: Tensor, inside: Tensor) -> Stats:
    mismatch = log_ratio.detach().abs()
    num = inside.sum().clamp(min=1)
    return {
        "clipped_fraction": clipped.sum() / num,
        "logp_mismatch_mean": mismatch.sum() / num,
        "logp_mismatch_max": mismatch.max() if mismatch.numel() else mismatch.sum(),
    }
