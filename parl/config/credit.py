"""`credit`: from rewards to advantages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from parl.config.base import ConfigModel, Fraction, NonNegFloat, PositiveFloat, PositiveInt


class Credit(ConfigModel):
    """From rewards to advantages, per role (docs/explain/credit.md)."""

    type: Literal[
        "group_mean",
        "trajectory",
        "role_normalized",
        "hierarchical",
        "per_turn",
        "leave_one_out",
        "resample",
    ] = "group_mean"
    """group_mean: reward minus the mean of the agent's group; for subagents an episode's children are
    averaged first. The other rules: docs/explain/credit.md."""
    normalize_std: bool = False
    """Divide by the group's standard deviation (GRPO); Kimi's objective does not."""
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
