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

from collections.abc import Mapping, Sequence

from parl.config.reward import Reward
from parl.core.errors import ConfigError
from parl.core.types import Episode, RewardBreakdown, ScoredEpisode
from parl.rewards.modifiers import OVER_BUDGET, apply_effort_budget, apply_toggle
from parl.rewards.terms import get, is_outcome, registered

# --- terms -----------------------------------------------------------------------------------------------------------


def validate(config: Reward) -> None:
    """Check term names, knobs and what the modifiers need, when the config loads. Raises ConfigError."""
    if not config.terms:
        raise ConfigError(
            "reward.terms is empty: every reward would be 0. Add one, say `outcome: {weight: 1.0}`."
        )
    for name, term in config.terms.items():
        get(name).bind(term.knobs)
    given = [name for name, modifier in config.modifiers if modifier is not None]
    if given and not any(is_outcome(n) for n in config.terms):
        named = [n for n in registered() if is_outcome(n)]
        raise ConfigError(
            f"reward.modifiers.{given[0]} gates on the outcome, but none of reward.terms ({', '.join(config.terms)}) "
            f"is one of the orchestrator. Add one of: {', '.join(named) or '(none registered)'}."
        )
    if config.modifiers.effort_budget is not None and OVER_BUDGET in config.terms:
        raise ConfigError(
            f"reward.terms.{OVER_BUDGET} has the name of what reward.modifiers.effort_budget adds. Rename that term."
        )


# --- scoring ---------------------------------------------------------------------------------------------------------


class Scorer:
    """Scores groups under one `Reward` config. Holds the config only, so one instance serves a whole run.

    Raises ConfigError as `validate`.
    """

    def __init__(self, config: Reward) -> None:
        validate(config)
        self._config = config
        self._terms = [
            (get(name), get(name).bind(term.knobs)) for name, term in config.terms.items()
        ]

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
            scored, kept = apply_toggle(toggle, scored, step, kept, outcomes)
        if effort is not None and scored and step >= effort.start_step:
            scored, kept = apply_effort_budget(effort, scored, step, kept, outcomes)
        return scored, kept

    def _rewards(self, episode: Episode, step: int) -> dict[str, RewardBreakdown]:
        terms: dict[str, dict[str, float]] = {t.id: {} for t in episode.traces}
        for term, knobs in self._terms:
            for agent, value in term.values(episode, knobs).items():
                terms[agent][term.name] = value
        weights = {name: term.weight_at(step) for name, term in self._config.terms.items()}
        return {
            agent: RewardBreakdown(raw, {n: weights[n] for n in raw})
            for agent, raw in terms.items()
        }


# --- Toggle ----------------------------------------------------------------------------------------------------------


# --- effort budget ---------------------------------------------------------------------------------------------------
