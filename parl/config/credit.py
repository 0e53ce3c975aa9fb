"""`credit`: from rewards to advantages."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from parl.config.base import (
    ConfigModel,
    Fraction,
    NonNegFloat,
    PositiveFloat,
    PositiveInt,
    refuse_unknown_keys,
)

ShippedRule = Literal[
    "group_mean",
    "trajectory",
    "role_normalized",
    "hierarchical",
    "per_turn",
    "leave_one_out",
    "resample",
]


class Credit(ConfigModel):
    """From rewards to advantages, per role (docs/explain/credit.md)."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    type: str = "group_mean"
    """group_mean: reward minus the mean of the agent's group; for subagents an episode's children
    are averaged first. Other rules: trajectory, role_normalized, hierarchical, per_turn,
    leave_one_out, resample (docs/explain/credit.md), or the name of a plugin's rule, whose knobs
    are further keys of this section."""
    # Measured on the quickstart (two seeds, score at T=1): .967 and .963 without the division, .978
    # and .965 with it. Late in a run few groups still differ, and their advantages are small.
    normalize_std: bool = False
    """Divide by the group's standard deviation (GRPO); Kimi's objective does not."""
    # Where few rewards differ it decides how loud a small difference is: configs/adaptive.yaml
    # learned its width on all seeds with .01, on two of three with .05 (docs/results/adaptive.md).
    std_floor: PositiveFloat = 0.05
    """Added to the standard deviation when `normalize_std`."""
    subagent_group: Literal["task", "episode"] = "task"
    """Peers of a subagent: all subagents on the same task, or only those of its episode."""
    episode_share: NonNegFloat = 0.5
    """hierarchical: weight of the episode's advantage in a subagent's."""
    discount: Annotated[float, Field(gt=0, le=1)] = 0.95
    """per_turn: factor on the reward for each turn between a turn and the end."""
    turn_weight: NonNegFloat = 1.0
    """per_turn: weight of the comparison between turns in the same state."""
    siblings: PositiveInt = 3
    """resample: further subagents per drawn assignment; the orchestrator reads only the first one's
    message."""
    sibling_share: Fraction = 0.25
    """resample: share of the assignments that are drawn."""

    @model_validator(mode="after")
    def _no_unknown_key(self) -> Credit:
        # A plugin's rule checks its own knobs; the shipped ones have all theirs above.
        refuse_unknown_keys(self, get_args(ShippedRule))
        return self
