"""The sections of the config that say what is learned from an episode: rewards, credit, loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from parl.config.base import (
    ConfigModel,
    Fraction,
    NonNegFloat,
    NonNegInt,
    PositiveFloat,
    PositiveInt,
)


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


class Toggle(ConfigModel):
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


class EffortBudget(ConfigModel):
    """A falling budget of tokens for the whole tree of agents (Kimi K3): beyond tau * b0(x) the outcome counts -1."""

    tau: PositiveFloat | Schedule = Schedule(start=2.0, end=1.0, to_step=20)
    """Of the budget b0(x): a number, or a schedule that anneals it (steps count from the run's first)."""
    percentile: Fraction = 0.5
    """b0(x) is this percentile of the lengths of the task's correct responses, over all agents; taken once."""
    correct_threshold: Fraction = 0.99
    """A response is correct from this outcome on."""
    start_step: NonNegInt = 0
    """Budgets are taken from here on (when the lambdas have reached 0)."""
    min_correct: PositiveInt = 2
    """Correct responses that a task needs before it gets a budget."""

    def tau_at(self, step: int) -> float:
        return self.tau.at(step) if isinstance(self.tau, Schedule) else self.tau

    @model_validator(mode="after")
    def _positive(self) -> EffortBudget:
        if isinstance(self.tau, Schedule) and min(self.tau.start, self.tau.end) <= 0:
            raise ValueError(
                f"tau goes from {self.tau.start} to {self.tau.end}; give a start and an end above 0"
            )
        return self


class Modifiers(ConfigModel):
    toggle: Toggle | None = None
    effort_budget: EffortBudget | None = None


class Reward(ConfigModel):
    terms: dict[str, Term] = Field(default_factory=lambda: {"outcome": Term()})
    """By name; `parl rewards list` prints what is registered. Weights are never renormalised."""
    modifiers: Modifiers = Modifiers()


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
    """group_mean: reward minus the mean of the agent's group; for subagents an episode's children are averaged first.
    The other rules: docs/explain/credit.md."""
    normalize_std: bool = False
    """Divide by the group's standard deviation (GRPO); Kimi's objective does not."""
    std_floor: PositiveFloat = 0.05
    """Added to the standard deviation when `normalize_std`."""
    subagent_group: Literal["task", "episode"] = "task"
    """Peers of a subagent: all subagents on the same task, or only those of its episode."""
    episode_share: NonNegFloat = 0.5
    """hierarchical: weight of the episode's advantage in a subagent's."""
    discount: Annotated[float, Field(gt=0, le=1)] = 0.95
    """per_turn: what a turn that lies one turn further from the end gets of the reward."""
    turn_weight: NonNegFloat = 1.0
    """per_turn: weight of the comparison between turns in the same state."""
    siblings: PositiveInt = 3
    """resample: further subagents on an assignment that is drawn; only the first one's message is read."""
    sibling_share: Fraction = 0.25
    """resample: share of the assignments that are drawn."""


class Loss(ConfigModel):
    type: Literal["kimi_k2_5", "grpo", "dapo", "gspo"] = "kimi_k2_5"
    """dapo: grpo's clip, and groups whose episodes are all equal are left out. gspo: one ratio for a whole trace."""
    alpha: float = -0.5
    """kimi_k2_5: tokens whose log-ratio is below alpha get no policy gradient (eq. 1)."""
    beta: float = 0.5
    """kimi_k2_5: as alpha, above."""
    tau: NonNegFloat = 0.01
    """kimi_k2_5: weight of the squared log-ratio."""
    clip_low: PositiveFloat = 0.2
    """grpo, dapo: PPO's lower clip. gspo: that of the trace's ratio, 0.0003 unless given."""
    clip_high: PositiveFloat = 0.28
    """grpo, dapo: PPO's upper clip. gspo: 0.0004 unless given."""
    entropy_bonus: NonNegFloat = 0.0
    """Weight of the entropy, which is added to the objective."""
    entropy_floor: PositiveFloat | None = None
    """The bonus acts only while the entropy that the step before measured is below this (nats per token)."""
    denominator: Literal["batch", "problem"] = "batch"
    """N of eq. 1: tokens of the whole batch, or of each problem (then averaged over problems)."""

    @model_validator(mode="before")
    @classmethod
    def _clips_of_gspo(cls, given: Any) -> Any:
        """A ratio that is a mean over many tokens stays near 1: PPO's clips would never bind (2507.18071, 5.1)."""
        if isinstance(given, dict) and given.get("type") == "gspo":
            return {"clip_low": 3e-4, "clip_high": 4e-4, **given}
        return given

    @model_validator(mode="after")
    def _floor_has_a_bonus(self) -> Loss:
        if self.entropy_floor is not None and not self.entropy_bonus:
            raise ValueError(
                "entropy_floor without entropy_bonus does nothing; set loss.entropy_bonus, say to 0.01"
            )
        return self

    @model_validator(mode="after")
    def _window(self) -> Loss:
        if not self.alpha < 0 < self.beta:
            raise ValueError(
                f"alpha={self.alpha} and beta={self.beta}: eq. 1 needs alpha < 0 < beta"
            )
        return self
