"""Policy losses: pure functions of per-token tensors. `loss.type` names one.

In: log-probs of the sampled tokens under the policy that learns and under the one that sampled,
advantages, a mask. Out: (loss to minimise, detached statistics).
"""

from __future__ import annotations

from parl.learner.loss.dapo import dapo
from parl.learner.loss.grpo import grpo
from parl.learner.loss.gspo import gspo
from parl.learner.loss.kimi_k2_5 import kimi_k2_5
from parl.learner.loss.registry import PolicyLoss, get, policy_loss, registered, weighting_of

__all__ = [
    "PolicyLoss",
    "dapo",
    "get",
    "grpo",
    "gspo",
    "kimi_k2_5",
    "policy_loss",
    "registered",
    "weighting_of",
]
