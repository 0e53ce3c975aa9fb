"""`reward`: the terms of an agent's reward, and modifiers that limit tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from parl.config.base import ConfigModel, Fraction, NonNegInt, PositiveFloat, PositiveInt


class Schedule(ConfigModel):
    """A weight that moves linearly from `start` to `end` between two steps, constant outside."""

    start: FiniteFloat
    end: FiniteFloat = 0.0
    from_step: NonNegInt = 0
    to_step: PositiveInt

    @model_validator(mode="after")
    def _forward(self) -> Schedule:
        if self.to_step <= self.from_step:
            raise ValueError(
                f"the schedule ends (to_step={self.to_step}) before it starts "
                f"(from_step={self.from_step}); give a to_step larger than from_step"
            )
        return self

    def at(self, step: int) -> float:
        """Return the value at a step (0-based)."""
        share = (step - self.from_step) / (self.to_step - self.from_step)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


class Term(BaseModel):
    """One reward term: a weight, and the term's own knobs (checked against its signature)."""

    # Not a ConfigModel: only the scorer knows a term's knobs, so extra keys are let through here.
    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    weight: FiniteFloat | Schedule = 1.0

    @property
    def knobs(self) -> dict[str, Any]:
        """The keys other than `weight`: arguments of the term's function."""
        return dict(self.model_extra or {})

    def weight_at(self, step: int) -> float:
        """Return the weight at a step (0-based)."""
        return self.weight.at(step) if isinstance(self.weight, Schedule) else self.weight


class LengthBudget(ConfigModel):
    """A budget of tokens for each task, derived from the lengths of its correct responses."""

    percentile: Fraction = 0.5
    """rho: the budget is this percentile of the lengths of a task's correct responses."""
    correct_threshold: Fraction = 0.99
    """A response is correct if its outcome is at least this."""
    start_step: NonNegInt = 0
    """Budgets are set from this step on (when the lambdas have reached 0)."""
    min_correct: PositiveInt = 2
    """Correct responses that a task needs before it gets a budget."""


class Toggle(LengthBudget):
    """Token-efficiency phases (Kimi K2.5, section 4.4.2).

    Even phases reward only answers within a task's budget, odd phases reward every answer.
    """

    period: PositiveInt = 5
    """m: iterations per phase."""
    accuracy_threshold: Fraction = 0.6
    """lambda: below this mean score of the group the budget does not bind."""
    scope: Literal["agent", "tree"] = "agent"
    """|y|: an agent's own tokens, or those of the whole tree."""
    rigid: bool = False
    """true = every phase applies the budget (the baseline that Toggle is compared with)."""


class EffortBudget(LengthBudget):
    """A falling budget of tokens for the whole tree of agents (Kimi K3).

    A response with more than tau * b0(x) tokens over all agents has its outcome counted as -1.
    b0(x), the budget of task x, is set once.
    """

    tau: PositiveFloat | Schedule = Schedule(start=2.0, end=1.0, to_step=20)
    """Factor of the budget b0(x): a number, or a schedule that anneals it (steps count from the
    run's first)."""

    @model_validator(mode="after")
    def _positive(self) -> EffortBudget:
        if isinstance(self.tau, Schedule) and min(self.tau.start, self.tau.end) <= 0:
            raise ValueError(
                f"tau goes from {self.tau.start} to {self.tau.end}; give a start and an end above 0"
            )
        return self

    def tau_at(self, step: int) -> float:
        """Return tau at a step (0-based)."""
        return self.tau.at(step) if isinstance(self.tau, Schedule) else self.tau


class Modifiers(ConfigModel):
    """What changes the outcome term of a whole group. null = off."""

    toggle: Toggle | None = None
    effort_budget: EffortBudget | None = None


class Reward(ConfigModel):
    """The reward of an agent: a weighted sum of terms, and modifiers."""

    # Not renormalised: dropping a term would rescale all others, and an ablation would measure
    # both.
    terms: dict[str, Term] = Field(default_factory=lambda: {"outcome": Term()})
    """By name; `parl rewards list` prints the registered ones. Weights are never renormalised."""
    modifiers: Modifiers = Modifiers()
