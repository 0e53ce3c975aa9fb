"""Modifiers of the outcome: Toggle and the effort budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from parl.config.reward import EffortBudget, Toggle
from parl.core.types import ORCHESTRATOR_ID, AgentTrace, Episode, RewardBreakdown, ScoredEpisode
from parl.rewards.terms import finished

OVER_BUDGET = "effort_budget"
"""Name of the term that the effort budget adds to a reward: 0, or -1 of an episode that is over it."""


def apply_toggle(
    toggle: Toggle,
    group: Sequence[ScoredEpisode],
    step: int,
    budgets: Mapping[str, float],
    outcomes: Sequence[str],
) -> tuple[list[ScoredEpisode], dict[str, float]]:
    """Kimi K2.5, section 4.4.2:  r~ = r * 1[mean_K r < lambda or |y| <= budget(x)] in budget phases, else r~ = r.

    r is the outcome before shaping, unweighted, and its mean that of the orchestrators: one gate for the group.
    Only outcome terms are multiplied. A group from which a budget was just taken is already held to it.
    """
    budgets = _take_budgets(toggle, group, budgets, outcomes)
    in_budget_phase = toggle.rigid or (step - toggle.start_step) // toggle.period % 2 == 0
    if (
        not in_budget_phase
        or fmean(_outcome(s, outcomes) for s in group) < toggle.accuracy_threshold
    ):
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
            rewards[trace.id] = replace(
                breakdown, factors={n: 0.0 for n in outcomes if n in breakdown.terms}
            )
    return ScoredEpisode(scored.episode, rewards)


def _take_budgets(
    toggle: Toggle,
    group: Sequence[ScoredEpisode],
    budgets: Mapping[str, float],
    outcomes: Sequence[str],
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
                lengths.setdefault(_budget_key(episode, trace, toggle), []).append(
                    _length(episode, trace, toggle)
                )
    taken = {
        k: float(np.quantile(v, toggle.percentile))
        for k, v in lengths.items()
        if len(v) >= toggle.min_correct
    }
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


def apply_effort_budget(
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
    taken = {
        k: float(np.quantile(v, effort.percentile))
        for k, v in lengths.items()
        if len(v) >= effort.min_correct
    }
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
