"""Modifiers of a group's outcomes: Toggle and the effort budget.

Both hold a response to a budget of tokens that is taken from the lengths of correct responses to
the same task. Budgets are passed in and handed back, so that they live in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from parl.config.reward import EffortBudget, LengthBudget, Toggle
from parl.core.types import ORCHESTRATOR_ID, AgentTrace, Episode, RewardBreakdown, ScoredEpisode
from parl.rewards.terms import finished

OVER_BUDGET = "effort_budget"
"""The term that the effort budget adds to a reward: -1 in an episode over budget, else 0."""


def apply_toggle(
    toggle: Toggle,
    group: Sequence[ScoredEpisode],
    step: int,
    budgets: Mapping[str, float],
    outcomes: Sequence[str],
) -> tuple[list[ScoredEpisode], dict[str, float]]:
    """Set r~ = r * 1[mean_K r < lambda or |y| <= budget(x)] in budget phases, else r~ = r.

    r is the outcome before shaping, unweighted, and its mean that of the orchestrators: one gate
    for the group. Only outcome terms are multiplied. A group from which a budget was just taken is
    already held to it.

    Source: Kimi K2.5 (2602.02276), section 4.4.2.

    Args:
        budgets: those of earlier calls.
        outcomes: names of the outcome terms.
    Returns:
        the group, and all budgets.
    """
    lengths = _lengths_of_correct_responses(toggle, group, outcomes)
    budgets = _with_new_budgets(toggle, budgets, lengths)
    # Even phases hold responses to the budget, odd ones do not.
    phase = (step - toggle.start_step) // toggle.period
    in_budget_phase = toggle.rigid or phase % 2 == 0
    if not in_budget_phase:
        return list(group), budgets
    # Below lambda the task is not solved often enough for a budget to bind (section 4.4.2).
    mean_outcome = fmean(_outcome(scored, outcomes) for scored in group)
    if mean_outcome < toggle.accuracy_threshold:
        return list(group), budgets
    return [_gate(scored, toggle, budgets, outcomes) for scored in group], budgets


def apply_effort_budget(
    effort: EffortBudget,
    group: Sequence[ScoredEpisode],
    step: int,
    budgets: Mapping[str, float],
    outcomes: Sequence[str],
) -> tuple[list[ScoredEpisode], dict[str, float]]:
    """Set r~ = -1 if T(y) > tau b0(x), else r~ = r.

    T(y) are the generated tokens of all agents of the episode, tool calls included, and r the
    outcome before shaping, as in Toggle: each agent with an outcome term gets 0 for it and -1
    instead. How b0(x) is estimated is not published; ours is Toggle's way: a percentile of the
    lengths of the task's correct responses, taken once.

    Source: Kimi K3 (2607.24653).

    Args:
        budgets: those of earlier calls.
        outcomes: names of the outcome terms.
    Returns:
        the group, and all budgets.
    """
    lengths: dict[str, list[int]] = {}
    for scored in group:
        if _outcome(scored, outcomes) >= effort.correct_threshold:
            key = _effort_key(scored.episode)
            lengths.setdefault(key, []).append(scored.episode.tokens())
    budgets = _with_new_budgets(effort, budgets, lengths)
    # Without a budget yet, no length is over it.
    budget = budgets.get(_effort_key(group[0].episode), math.inf)
    limit = effort.tau_at(step) * budget
    judged = []
    for scored in group:
        is_over = scored.episode.tokens() > limit
        judged.append(_hold_to_budget(scored, is_over, outcomes))
    return judged, budgets


def _with_new_budgets(
    modifier: LengthBudget, budgets: Mapping[str, float], lengths: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Add budget(x): a percentile of the lengths of correct responses, linearly interpolated.

    With fewer than `min_correct` correct responses in the group there is no budget yet. One that
    was taken never changes.

    Args:
        lengths: budget's key -> lengths in tokens.
    """
    new_budgets: dict[str, float] = {}
    for key, samples in lengths.items():
        if len(samples) >= modifier.min_correct:
            new_budgets[key] = float(np.quantile(samples, modifier.percentile))
    # In this order, so that a budget of before wins.
    return {**new_budgets, **budgets}


# --- Toggle


def _lengths_of_correct_responses(
    toggle: Toggle, group: Sequence[ScoredEpisode], outcomes: Sequence[str]
) -> dict[str, list[int]]:
    lengths: dict[str, list[int]] = {}
    for scored in group:
        for trace in scored.episode.traces:
            # The tree is one response, counted with its orchestrator.
            if toggle.scope == "tree" and trace.role == "subagent":
                continue
            if _correctness(scored, trace, outcomes) >= toggle.correct_threshold:
                key = _toggle_key(scored.episode, trace, toggle)
                lengths.setdefault(key, []).append(_length(scored.episode, trace, toggle))
    return lengths


def _gate(
    scored: ScoredEpisode, toggle: Toggle, budgets: Mapping[str, float], outcomes: Sequence[str]
) -> ScoredEpisode:
    """Multiply the outcome terms of agents over budget by 0."""
    rewards = dict(scored.rewards)
    for trace in scored.episode.traces:
        budget = budgets.get(_toggle_key(scored.episode, trace, toggle))
        if budget is not None and _length(scored.episode, trace, toggle) > budget:
            breakdown = rewards[trace.id]
            factors = {name: 0.0 for name in outcomes if name in breakdown.terms}
            rewards[trace.id] = replace(breakdown, factors=factors)
    return ScoredEpisode(scored.episode, rewards)


def _toggle_key(episode: Episode, trace: AgentTrace, toggle: Toggle) -> str:
    """Return the key of an agent's budget.

    The subagents of a task share one, unless the length of the tree counts.
    """
    if trace.role == "subagent" and toggle.scope == "agent":
        return f"{episode.task.id}/subagent"
    return episode.task.id


def _length(episode: Episode, trace: AgentTrace, toggle: Toggle) -> int:
    """Return |y|: generated tokens of the agent, or of the tree."""
    return episode.tokens() if toggle.scope == "tree" else trace.num_generated


def _correctness(scored: ScoredEpisode, trace: AgentTrace, outcomes: Sequence[str]) -> float:
    if trace.role == "orchestrator":
        return _outcome(scored, outcomes)
    # Where the environment cannot score a subtask, a finished one counts as correct.
    return trace.score if trace.score is not None else float(finished(trace))


def _outcome(scored: ScoredEpisode, outcomes: Sequence[str]) -> float:
    """Return the orchestrator's r_perf: the mean of its raw outcome terms (normally one)."""
    terms = scored.rewards[ORCHESTRATOR_ID].terms
    return fmean(terms[name] for name in outcomes if name in terms)


# --- effort budget


def _effort_key(episode: Episode) -> str:
    # A task may have Toggle's budget as well, so the keys must differ.
    return f"{episode.task.id}/effort"


def _hold_to_budget(scored: ScoredEpisode, is_over: bool, outcomes: Sequence[str]) -> ScoredEpisode:
    """Give each agent with an outcome the term OVER_BUDGET; over budget, in the outcome's place."""
    rewards = dict(scored.rewards)
    for agent, breakdown in scored.rewards.items():
        names = [name for name in outcomes if name in breakdown.terms]
        if not names:
            continue
        factors = dict(breakdown.factors)
        if is_over:
            factors.update(dict.fromkeys(names, 0.0))
        # Every episode has the term, so that its mean over a step is minus the share over budget.
        rewards[agent] = RewardBreakdown(
            {**breakdown.terms, OVER_BUDGET: -1.0 if is_over else 0.0},
            {**breakdown.weights, OVER_BUDGET: 1.0},
            factors,
        )
    return ScoredEpisode(scored.episode, rewards)
