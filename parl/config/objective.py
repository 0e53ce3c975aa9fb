"""The sections of the config that say what is learned from an episode: rewards, credit, loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from parl.config.base import Fraction, Node, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt


class Schedule(Node):
    """A weight that moves linearly from `start` to `end` between two steps, constant outside."""

    start: FiniteFloat
    end: FiniteFloat = 0.0
    from_step: NonNegInt = 0
    to_step: PositiveInt

    @model_validator(mode="after")
    def _forward(self) -> Schedule:
        if self.to_step <= self.from_step:
            raise ValueError(
                f"the schedule ends (to_step={self.to_step}) before it starts (from_step={self.from_step}); "
                "give a to_step larger than from_step"
            )
        return self

    def at(self, step: int) -> float:
        """The weight at a step (0-based)."""
        share = (step - self.from_step) / (self.to_step - self.from_step)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


class Term(BaseModel):
    """One reward term: a weight, and the term's own knobs (checked against its signature)."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    weight: FiniteFloat | Schedule = 1.0

    @property
    def knobs(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def weight_at(self, step: int) -> float:
        return self.weight.at(step) if isinstance(self.weight, Schedule) else self.weight


class Toggle(Node):
    """Token-efficiency phases (Kimi K2.5, section 4.4.2): even phases reward only answers within a task's budget."""

    period: PositiveInt = 5
    """m: iterations per phase."""
    accuracy_threshold: Fraction = 0.6
    """lambda: below this mean score of the group the budget does not bind."""
    percentile: Fraction = 0.5
    """rho: the budget is this percentile of the lengths of a task's correct responses."""
    correct_threshold: Fraction = 0.99
    """A response is correct from this outcome on."""
    start_step: NonNegInt = 0
    """Budgets are taken from here on (when the lambdas have reached 0)."""
    min_correct: PositiveInt = 2
    """Correct responses that a task needs before it gets a budget."""
    scope: Literal["agent", "tree"] = "agent"
    """|y|: an agent's own tokens, or those of the whole tree."""
    rigid: bool = False
    """true = every phase applies the budget (the control that Toggle is compared with)."""


class Modifiers(Node):
    toggle: Toggle | None = None


class Reward(Node):
    terms: dict[str, Term] = Field(default_factory=lambda: {"outcome": Term()})
    """By name; `parl rewards list` prints what is registered. Weights are never renormalised."""
    modifiers: Modifiers = Modifiers()


class Credit(Node):
    """From rewards to advantages, per role (parl.md section 5)."""

    type: Literal["group_mean"] = "group_mean"
    """Reward minus the mean of the agent's group; for subagents an episode's children are averaged first."""
    normalize_std: bool = False
    """Divide by the group's standard deviation (GRPO); Kimi's objective does not."""
    std_floor: PositiveFloat = 0.05
    """Added to the standard deviation when `normalize_std`."""
    subagent_group: Literal["task", "episode"] = "task"
    """Peers of a subagent: all subagents on the same task, or only those of its episode."""


class Loss(Node):
    type: Literal["kimi_k2_5", "grpo"] = "kimi_k2_5"
    alpha: float = -0.5
    """kimi_k2_5: tokens whose log-ratio is below alpha get no policy gradient (eq. 1)."""
    beta: float = 0.5
    """kimi_k2_5: as alpha, above."""
    tau: NonNegFloat = 0.01
    """kimi_k2_5: weight of the squared log-ratio."""
    clip_low: PositiveFloat = 0.2
    """grpo: PPO's lower clip."""
    clip_high: PositiveFloat = 0.28
    """grpo: PPO's upper clip."""
    entropy_bonus: NonNegFloat = 0.0
    denominator: Literal["batch", "problem"] = "batch"
    """N of eq. 1: tokens of the whole batch, or of each problem (then averaged over problems)."""

    @model_validator(mode="after")
    def _window(self) -> Loss:
        if not self.alpha < 0 < self.beta:
            raise ValueError(f"alpha={self.alpha} and beta={self.beta}: eq. 1 needs alpha < 0 < beta")
        return self
