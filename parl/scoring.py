"""Rewards: registered terms, their weights at a step, and the group-level modifiers Toggle and effort budget.

In: the episodes of one group, the step, the budgets per task. Out: `ScoredEpisode`s (one `RewardBreakdown` per
agent) and the budgets, new ones added. Nothing is remembered in between: what must survive a restart is passed in
and handed back, so that it can live in the checkpoint.

A plugin adds a term with one decorated function:

    @reward
    def critical_steps(episode: Episode, *, per: int = 100) -> float:
        return -episode.critical_steps / per

A term is pure: no I/O, no clock, no randomness. A judge belongs to the environment and leaves its verdict in
`episode.facts`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import MappingProxyType, SimpleNamespace
from typing import Any, TypeVar, get_type_hints, overload

import numpy as np
from pydantic import TypeAdapter, ValidationError

from parl.config.objective import EffortBudget, Reward, Toggle
from parl.errors import ConfigError, did_you_mean
from parl.types import (
    ORCHESTRATOR_ID,
    ROLES,
    AgentTrace,
    Episode,
    RewardBreakdown,
    Role,
    ScoredEpisode,
)

F = TypeVar("F", bound=Callable[..., float | Mapping[str, float]])

_REGISTRY: dict[str, RewardTerm] = {}
OVER_BUDGET = "effort_budget"
"""Name of the term that the effort budget adds to a reward: 0, or -1 of an episode that is over it."""


# --- terms -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """A registered term: its function, who may get it, and its knobs."""

    name: str
    function: Callable[..., float | Mapping[str, float]]
    roles: tuple[Role, ...]
    """Roles that may get a value. Orchestrator only, unless declared: the shaping terms never reach subagents."""
    outcome: bool
    """Part of r_perf: what Toggle gates on and multiplies."""
    knobs: Mapping[str, TypeAdapter[Any]]
    """Knob -> validator, from the type hints."""

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def defaults(self) -> dict[str, Any]:
        """Knob -> default, without the knobs that have none."""
        parameters = inspect.signature(self.function).parameters
        return {k: parameters[k].default for k in self.knobs if parameters[k].default is not inspect.Parameter.empty}

    def bind(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """The given knobs, validated against the signature. Raises ConfigError: unknown, mistyped or missing."""
        where = f"reward.terms.{self.name}"
        values: dict[str, Any] = {}
        for knob, given in knobs.items():
            if knob not in self.knobs:
                raise ConfigError(f"{where}.{knob}: unknown knob.{did_you_mean(knob, ('weight', *self.knobs))}")
            try:
                values[knob] = self.knobs[knob].validate_python(given)
            except ValidationError as error:
                raise ConfigError(f"{where}.{knob}: {error.errors()[0]['msg']} (given: {given!r})") from None
        missing = [k for k in self.knobs if k not in values and k not in self.defaults]
        if missing:
            raise ConfigError(f"{where}: missing {', '.join(missing)}. Add {where}.{missing[0]}.")
        return values

    def values(self, episode: Episode, knobs: Mapping[str, Any]) -> dict[str, float]:
        """The term's value of each agent that gets one; a plain number is the orchestrator's.

        Raises:
            ConfigError: the term gives a value to an unknown agent or an undeclared role, or one that is not finite.
        """
        try:
            raw = self.function(episode, **knobs)
        except Exception as error:
            error.add_note(f"in reward term '{self.name}', episode {episode.id}")
            raise
        by_agent = raw if isinstance(raw, Mapping) else {ORCHESTRATOR_ID: raw}
        roles = {t.id: t.role for t in episode.traces}
        for agent, value in by_agent.items():
            if agent not in roles:
                raise ConfigError(f"Reward term '{self.name}' names agent '{agent}'.{did_you_mean(agent, roles)}")
            if roles[agent] not in self.roles:
                raise ConfigError(
                    f"Reward term '{self.name}' gives a value to agent '{agent}', whose role is {roles[agent]}, but "
                    f"declares roles={self.roles}. Declare it: @reward(roles={(*self.roles, roles[agent])})."
                )
            if not math.isfinite(value):
                raise ConfigError(f"Reward term '{self.name}' is {value} for agent '{agent}' of episode {episode.id}")
        return {agent: float(value) for agent, value in by_agent.items()}


@overload
def reward(function: F) -> F: ...


@overload
def reward(*, roles: Sequence[Role] = ..., outcome: bool = ...) -> Callable[[F], F]: ...


def reward(
    function: F | None = None, *, roles: Sequence[Role] = ("orchestrator",), outcome: bool = False
) -> F | Callable[[F], F]:
    """Register a reward term under the function's name. Use it bare, or with arguments.

    The function takes an `Episode` and keyword-only knobs with type hints, and returns a float (the orchestrator's)
    or a mapping of agent id -> float.

    Args:
        roles: who may get a value.
        outcome: the term is part of r_perf, the outcome before shaping (see `Toggle`).
    Raises:
        TypeError: the function does not have that form.
        ConfigError: another function has the name already.
    """

    def register(function: F) -> F:
        term = RewardTerm(function.__name__, function, tuple(roles), outcome, _knobs(function))
        unknown = [r for r in term.roles if r not in ROLES]
        if unknown or not term.roles:
            raise TypeError(f"@reward on {term.name}: roles={tuple(roles)} must name some of {ROLES}")
        known = _REGISTRY.get(term.name)
        if known is not None and _origin(known.function) != _origin(function):
            raise ConfigError(
                f"Two reward terms are named '{term.name}': {_origin(known.function)} and {_origin(function)}. "
                "Rename one function."
            )
        _REGISTRY[term.name] = term
        return function

    return register if function is None else register(function)


def registered() -> Mapping[str, RewardTerm]:
    """All registered terms by name (a read-only view). `parl.plugins.load()` fills it."""
    return MappingProxyType(_REGISTRY)


def get(name: str) -> RewardTerm:
    """The term of a name. Raises ConfigError with the nearest name."""
    if name not in _REGISTRY:
        raise ConfigError(f"reward.terms.{name}: no such reward term.{did_you_mean(name, _REGISTRY)}")
    return _REGISTRY[name]


def validate(config: Reward) -> None:
    """Check term names, knobs and what the modifiers need, when the config loads. Raises ConfigError."""
    if not config.terms:
        raise ConfigError("reward.terms is empty: every reward would be 0. Add one, say `outcome: {weight: 1.0}`.")
    for name, term in config.terms.items():
        get(name).bind(term.knobs)
    given = [name for name, modifier in config.modifiers if modifier is not None]
    if given and not any(_is_outcome(n) for n in config.terms):
        named = [n for n in _REGISTRY if _is_outcome(n)]
        raise ConfigError(
            f"reward.modifiers.{given[0]} gates on the outcome, but none of reward.terms ({', '.join(config.terms)}) "
            f"is one of the orchestrator. Add one of: {', '.join(named) or '(none registered)'}."
        )
    if config.modifiers.effort_budget is not None and OVER_BUDGET in config.terms:
        raise ConfigError(
            f"reward.terms.{OVER_BUDGET} has the name of what reward.modifiers.effort_budget adds. Rename that term."
        )


def _is_outcome(name: str) -> bool:
    term = get(name)
    return term.outcome and "orchestrator" in term.roles


def _origin(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _knobs(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    """Validators of the keyword-only arguments. Raises TypeError on any other form of signature."""
    where = f"@reward on {function.__qualname__}"
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or any(p.kind is not p.KEYWORD_ONLY for p in parameters[1:]):
        raise TypeError(f"{where}: write def {function.__name__}(episode, *, knob: int = 1), knobs after the *")
    names = [p.name for p in parameters[1:]]
    written = function.__annotations__
    bare = [n for n in names if n not in written]
    if bare or "weight" in names:
        what = "'weight' is taken by the config" if "weight" in names else f"knob '{bare[0]}' has no type hint"
        raise TypeError(f"{where}: {what}")
    # Only the knobs' hints are resolved: the episode's may exist for type checkers alone.
    holder = SimpleNamespace(__annotations__={n: written[n] for n in names})
    hints = get_type_hints(holder, globalns=function.__globals__, include_extras=True)
    return {name: TypeAdapter(hint) for name, hint in hints.items()}


# --- scoring ---------------------------------------------------------------------------------------------------------


class Scorer:
    """Scores groups under one `Reward` config. Holds the config only, so one instance serves a whole run.

    Raises ConfigError as `validate`.
    """

    def __init__(self, config: Reward) -> None:
        validate(config)
        self._config = config
        self._terms = [(get(name), get(name).bind(term.knobs)) for name, term in config.terms.items()]

    def score(
        self, group: Sequence[Episode], step: int, budgets: Mapping[str, float]
    ) -> tuple[list[ScoredEpisode], dict[str, float]]:
        """Rewards of every agent of a group: sum of weight(step) * factor * term, weights never renormalised.

        A failed episode is left out of the result: it is never scored 0, and so never in a mean.

        Args:
            group: episodes of one task.
            step: 0-based; what schedules and Toggle's phases read.
            budgets: the modifiers', from the last call (task id -> tokens); {} at first.
        Returns:
            the scored episodes, in order, and the budgets to pass in next time.
        Raises:
            ConfigError: a term does not fit the episodes (see `RewardTerm.values`).
        """
        assert len({(e.group, e.task.id) for e in group}) <= 1, "a group is one task"
        scored = [ScoredEpisode(e, self._rewards(e, step)) for e in group if e.status != "failed"]
        outcomes = [t.name for t, _ in self._terms if t.outcome]
        toggle, effort = self._config.modifiers.toggle, self._config.modifiers.effort_budget
        kept = dict(budgets)
        if toggle is not None and scored and step >= toggle.start_step:
            scored, kept = _apply_toggle(toggle, scored, step, kept, outcomes)
        if effort is not None and scored and step >= effort.start_step:
            scored, kept = _apply_effort_budget(effort, scored, step, kept, outcomes)
        return scored, kept

    def _rewards(self, episode: Episode, step: int) -> dict[str, RewardBreakdown]:
        terms: dict[str, dict[str, float]] = {t.id: {} for t in episode.traces}
        for term, knobs in self._terms:
            for agent, value in term.values(episode, knobs).items():
                terms[agent][term.name] = value
        weights = {name: term.weight_at(step) for name, term in self._config.terms.items()}
        return {agent: RewardBreakdown(raw, {n: weights[n] for n in raw}) for agent, raw in terms.items()}


def finished(trace: AgentTrace) -> bool:
    """A subagent ended with a non-empty message that the environment accepts (Kimi K2.5, section 3: r_finish)."""
    return trace.status == "completed" and trace.accepted and bool(trace.result.strip())


# --- Toggle ----------------------------------------------------------------------------------------------------------


def _apply_toggle(
    toggle: Toggle, group: Sequence[ScoredEpisode], step: int, budgets: Mapping[str, float], outcomes: Sequence[str]
) -> tuple[list[ScoredEpisode], dict[str, float]]:
    """Kimi K2.5, section 4.4.2:  r~ = r * 1[mean_K r < lambda or |y| <= budget(x)] in budget phases, else r~ = r.

    r is the outcome before shaping, unweighted, and its mean that of the orchestrators: one gate for the group.
    Only outcome terms are multiplied. A group from which a budget was just taken is already held to it.
    """
    budgets = _take_budgets(toggle, group, budgets, outcomes)
    in_budget_phase = toggle.rigid or (step - toggle.start_step) // toggle.period % 2 == 0
    if not in_budget_phase or fmean(_outcome(s, outcomes) for s in group) < toggle.accuracy_threshold:
        return list(group), budgets
    return [_gated(s, toggle, budgets, outcomes) for s in group], budgets


def _gated(
    scored: ScoredEpisode, toggle: Toggle, budgets: Mapping[str, float], outcomes: Sequence[str]
) -> ScoredEpisode:
    rewards = dict(scored.rewards)
    for trace in scored.episode.traces:
        budget = budgets.get(_budget_key(scored.episode, trace, toggle))
        if budget is not None and _length(scored.episode, trace, toggle) > budget:
            breakdown = rewards[trace.id]
            rewards[trace.id] = replace(breakdown, factors={n: 0.0 for n in outcomes if n in breakdown.terms})
    return ScoredEpisode(scored.episode, rewards)


def _take_budgets(
    toggle: Toggle, group: Sequence[ScoredEpisode], budgets: Mapping[str, float], outcomes: Sequence[str]
) -> dict[str, float]:
    """budget(x) = a percentile of the lengths of the correct responses to x (linear interpolation), taken once.

    Without `min_correct` correct responses in the group there is no budget yet; a budget once taken never changes.
    """
    lengths: dict[str, list[int]] = {}
    for scored in group:
        episode = scored.episode
        for trace in episode.traces:
            if toggle.scope == "tree" and trace.role == "subagent":
                continue  # the tree is one response, counted with its orchestrator
            if _correctness(scored, trace, outcomes) >= toggle.correct_threshold:
                lengths.setdefault(_budget_key(episode, trace, toggle), []).append(_length(episode, trace, toggle))
    taken = {k: float(np.quantile(v, toggle.percentile)) for k, v in lengths.items() if len(v) >= toggle.min_correct}
    return {**taken, **budgets}


def _budget_key(episode: Episode, trace: AgentTrace, toggle: Toggle) -> str:
    """Per task; the subagents of a task share a budget of their own, unless the whole tree counts."""
    own = trace.role == "subagent" and toggle.scope == "agent"
    return f"{episode.task.id}/subagent" if own else episode.task.id


def _length(episode: Episode, trace: AgentTrace, toggle: Toggle) -> int:
    """|y|: generated tokens of the agent, or of the whole tree."""
    return episode.tokens() if toggle.scope == "tree" else trace.num_generated


def _correctness(scored: ScoredEpisode, trace: AgentTrace, outcomes: Sequence[str]) -> float:
    if trace.role == "orchestrator":
        return _outcome(scored, outcomes)
    return trace.score if trace.score is not None else float(finished(trace))


def _outcome(scored: ScoredEpisode, outcomes: Sequence[str]) -> float:
    """The orchestrator's r_perf: the mean of its raw outcome terms (normally one)."""
    terms = scored.rewards[ORCHESTRATOR_ID].terms
    return fmean(terms[n] for n in outcomes if n in terms)


# --- effort budget ---------------------------------------------------------------------------------------------------


def _apply_effort_budget(
    effort: EffortBudget,
    group: Sequence[ScoredEpisode],
    step: int,
    budgets: Mapping[str, float],
    outcomes: Sequence[str],
) -> tuple[list[ScoredEpisode], dict[str, float]]:
    """Kimi K3 (2607.24653):  r~ = -1 if T(y) > tau b0(x), else r~ = r.

    T(y) are the generated tokens of all agents of the episode, tool calls included, and r the outcome before shaping,
    as in Toggle: each agent with an outcome term gets 0 for it and -1 instead. How b0(x) is estimated is not said;
    ours is Toggle's: a percentile of the lengths of the task's correct responses, taken once.
    """
    lengths: dict[str, list[int]] = {}
    for scored in group:
        if _outcome(scored, outcomes) >= effort.correct_threshold:
            lengths.setdefault(_effort_key(scored.episode), []).append(scored.episode.tokens())
    taken = {k: float(np.quantile(v, effort.percentile)) for k, v in lengths.items() if len(v) >= effort.min_correct}
    budgets = {**taken, **budgets}
    limit = effort.tau_at(step) * budgets.get(_effort_key(group[0].episode), math.inf)
    return [_held_to(s, s.episode.tokens() > limit, outcomes) for s in group], budgets


def _effort_key(episode: Episode) -> str:
    """Apart from Toggle's budget of the same task."""
    return f"{episode.task.id}/effort"


def _held_to(scored: ScoredEpisode, over: bool, outcomes: Sequence[str]) -> ScoredEpisode:
    rewards = dict(scored.rewards)
    for agent, breakdown in scored.rewards.items():
        own = [n for n in outcomes if n in breakdown.terms]
        if own:
            rewards[agent] = RewardBreakdown(
                {**breakdown.terms, OVER_BUDGET: -1.0 if over else 0.0},
                {**breakdown.weights, OVER_BUDGET: 1.0},
                {**breakdown.factors, **(dict.fromkeys(own, 0.0) if over else {})},
            )
    return ScoredEpisode(scored.episode, rewards)
