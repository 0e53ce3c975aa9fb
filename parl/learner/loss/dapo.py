"""GRPO's clip without the groups whose episodes are all equal."""

from __future__ import annotations

from torch import Tensor

from parl.learner.loss.grpo import grpo
from parl.learner.loss.registry import policy_loss
from parl.learner.loss.tokens import Stats


@policy_loss(drops_equal_groups=True)
def dapo(
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
    """Return the loss of `grpo`; groups that give no sample count in no mean (2503.14476, eq. 11).

    In the paper such groups are sampled again; here the batch is smaller.
    """
    # Groups are left out before, by the weights and N of the samples (`build_samples`).
    return grpo(
        logp,
        old_logp,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        weights=weights,
        denominator=denominator,
    )
