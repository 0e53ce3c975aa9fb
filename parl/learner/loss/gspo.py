"""One ratio for a whole trace."""

from __future__ import annotations

import torch
from torch import Tensor

from parl.learner.loss.registry import policy_loss
from parl.learner.loss.tokens import Stats, clipped_surrogate, mean_gain, prepare, statistics


@policy_loss(weighs_traces=True)
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
    """Return minus the objective of GSPO, one ratio per trace (2507.18071, eqs. 5 and 7).

    s = exp(mean over the trace's tokens of log rho), and each of them adds min(s A, clip(s, 1 -
    clip_low, 1 + clip_high) A). With weights 1/|y| and N = the number of traces that is eq. 5.
    Where the tokens of a trace have different advantages it is GSPO-token (eqs. 13 and 14): the
    value is that of s, each token's gradient s A. Arguments, results and errors are those of
    `grpo`; a trace must be complete in one call.

    Args:
        traces: per token, the index of its trace from 0 on.
    """
    inside, log_ratio, advantages, weights = prepare(logp, old_logp, advantages, mask, weights)
    if traces.shape != logp.shape:
        raise ValueError(
            f"The tensors of a loss have one shape; got traces {tuple(traces.shape)}. "
            "Expand them first."
        )
    trace_of_token = traces[inside]
    log_ratio_of_token = log_ratio[inside]
    # A micro-batch may have no token inside its mask.
    num = int(trace_of_token.max()) + 1 if len(trace_of_token) else 0
    zeros = torch.zeros(num, dtype=log_ratio.dtype, device=log_ratio.device)
    sums = zeros.index_add(0, trace_of_token, log_ratio_of_token.detach())
    # Indices may have gaps: a trace without a token inside the mask has no length to divide by.
    lengths = torch.bincount(trace_of_token, minlength=num).clamp(min=1)
    mean = torch.zeros_like(log_ratio)
    mean[inside] = (sums / lengths)[trace_of_token]
    # s, with the gradient of each token's own log-prob.
    ratio = (mean + log_ratio - log_ratio.detach()).exp()
    gain, clipped = clipped_surrogate(ratio, advantages, clip_low, clip_high)
    return -mean_gain(gain, weights, denominator), statistics(log_ratio, clipped, inside)
