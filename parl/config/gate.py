"""Gates: a skill that ends a phase of training."""

from __future__ import annotations

from parl.config.base import ConfigModel, NonNegInt, PositiveInt


class Gate(ConfigModel):
    """The end of a phase: a metric has reached a value, or `max_steps` have passed without it."""

    metric: str
    """Roles: a metric of the step, such as outcome/subtask or eval/score; a step that lacks it has
    not reached the value. Cold start: a skill measured on validation, such as accuracy/copy or
    forced_parallel/score."""
    value: float
    max_steps: PositiveInt


class StageGate(Gate):
    """The end of a stage of the cold start, whose skill is measured from time to time."""

    min_steps: NonNegInt = 0
    """The skill does not end the stage before this many steps."""
    every: PositiveInt = 20
    """Steps between two measurements."""
