"""Rewards of a group: weighted terms at a step, and the modifiers Toggle and effort budget.

Nothing is remembered between calls. What must survive a restart, the budgets per task, is passed in
and handed back, so that it can live in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parl.config.reward import Reward
from parl.core.errors import ConfigError
from parl.core.types import Episode, RewardBreakdown, ScoredEpisode
from parl.rewards.modifiers import OVER_BUDGET, apply_effort_budget, apply_toggle
from parl.rewards.terms import get, is_outcome, registered


def validate(config: Reward) -> None:
    """Check term names, knobs, and what the modifiers need.

    Raises:
        ConfigError: one of them does not fit.
    """
    # `reward.terms.NAME: null` removes a term of a base config, so none may be left.
    if not config.terms:
        raise ConfigError(
            "reward.terms is empty: every reward would be 0. Add one, say `outcome: {weight: 1.0}`."
        )
    for name, term in config.terms.items():
        get(name).bind(term.knobs)
    # Both modifiers change the outcome of the orchestrator, so there must be one.
    modifiers = [name for name, modifier in config.modifiers if modifier is not None]
    known = [name for name in registered() if is_outcome(name)]
    if modifiers and not set(known) & set(config.terms):
        raise ConfigError(
            f"reward.modifiers.{modifiers[0]} gates on the outcome, but none of reward.terms "
            f"({', '.join(config.terms)}) is one of the orchestrator. Add one of: "
            f"{', '.join(known) or '(none registered)'}."
        )
    if config.modifiers.effort_budget is not None and OVER_BUDGET in config.terms:
        raise ConfigError(
            f"reward.terms.{OVER_BUDGET} has the name of what reward.modifiers.effort_budget adds. "
            "Rename that term."
        )


class Scorer:
    """Scores groups under one `Reward` config. It has no state, so one instance serves a run.

    Raises:
        ConfigError: as `validate`.
    """

    def __init__(self, config: Reward) -> None:
        validate(config)
        self._config = config
        self._terms = []
        for name, term_config in config.terms.items():
            term = get(name)
            self._terms.append((term, term.bind(term_config.knobs)))

    def score(
        self, group: Sequence[Episode], step: int, budgets: Mapping[str, float]
    ) -> tuple[list[ScoredEpisode], dict[str, float]]:
        """Reward every agent of a group: the sum of weight(step) * factor * term.

        Weights are never renormalised, so that dropping a term leaves the others as they were. A
        failed episode is left out of the result: it is never scored 0, and so never in a mean.

        Args:
            group: episodes of one task.
            step: 0-based; schedules and Toggle's phases read it.
            budgets: the modifiers', from the last call (key -> tokens); {} at first.
        Returns:
            the scored episodes, in order, and the budgets for the next call.
        Raises:
            ConfigError: a term does not fit the episodes (see `RewardTerm.values`).
        """
        assert len({(episode.group, episode.task.id) for episode in group}) <= 1
        # A failed attempt says nothing about the policy.
        scored = []
        for episode in group:
            if episode.status != "failed":
                scored.append(ScoredEpisode(episode, self._rewards(episode, step)))
        new_budgets = dict(budgets)
        # All attempts failed: no mean to compare with a threshold.
        if not scored:
            return scored, new_budgets
        # Both judge raw outcomes, so Toggle's factors do not change which responses are correct.
        outcomes = [term.name for term, _ in self._terms if term.outcome]
        toggle = self._config.modifiers.toggle
        if toggle is not None and step >= toggle.start_step:
            scored, new_budgets = apply_toggle(toggle, scored, step, new_budgets, outcomes)
        effort = self._config.modifiers.effort_budget
        if effort is not None and step >= effort.start_step:
            scored, new_budgets = apply_effort_budget(effort, scored, step, new_budgets, outcomes)
        return scored, new_budgets

    def _rewards(self, episode: Episode, step: int) -> dict[str, RewardBreakdown]:
        values: dict[str, dict[str, float]] = {trace.id: {} for trace in episode.traces}
        for term, knobs in self._terms:
            for agent, value in term.values(episode, knobs).items():
                values[agent][term.name] = value
        rewards = {}
        for agent, by_term in values.items():
            # An agent has the weights of its own terms alone.
            weights = {name: self._config.terms[name].weight_at(step) for name in by_term}
            rewards[agent] = RewardBreakdown(by_term, weights)
        return rewards
