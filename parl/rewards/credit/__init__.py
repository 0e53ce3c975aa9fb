"""From rewards to advantages, per role: `credit.type` names the rule."""

from __future__ import annotations

from parl.rewards.credit.assign import LossWeighting, assign, build_samples, token_mass
from parl.rewards.credit.group_mean import group_mean
from parl.rewards.credit.hierarchical import hierarchical
from parl.rewards.credit.leave_one_out import leave_one_out
from parl.rewards.credit.per_turn import per_turn
from parl.rewards.credit.resample import resample
from parl.rewards.credit.role_normalized import role_normalized
from parl.rewards.credit.rule import (
    Advantages,
    Agent,
    CreditRule,
    Group,
    credit_rule,
    get,
    registered,
)
from parl.rewards.credit.trajectory import trajectory

__all__ = [
    "Advantages",
    "Agent",
    "CreditRule",
    "Group",
    "LossWeighting",
    "assign",
    "build_samples",
    "credit_rule",
    "get",
    "group_mean",
    "hierarchical",
    "leave_one_out",
    "per_turn",
    "registered",
    "resample",
    "role_normalized",
    "token_mass",
    "trajectory",
]
