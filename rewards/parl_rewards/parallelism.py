"""Shaping terms about the swarm, for the orchestrator.

The paper anneals the first two to zero (lambda1, lambda2): give them a schedule.
"""

from __future__ import annotations

from typing import Literal

from parl.config.base import PositiveInt
from parl.core.errors import ConfigError
from parl.core.types import Episode
from parl.rewards.terms import reward


@reward
def parallel(
    episode: Episode,
    *,
    form: Literal["cap", "parts"] = "cap",
    cap: PositiveInt = 8,
    count: Literal["accepted", "raw"] = "accepted",
) -> float:
    """r_parallel (Kimi K2.5, section 3): pay for launching subagents. 0..1.

    It works against serial collapse. Its closed form is undisclosed; these are ours. Each saturates
    at 1.

    Args:
        form: `cap`: accepted / cap (a policy learns exactly the cap); `parts`: accepted / the
            task's number of independent parts (leaks the gold width: for diagnosis).
        cap: subagents that earn the full reward.
        count: `accepted` = distinct assignments that launched a subagent; `raw` = all attempts,
            refused ones and duplicates included, without saturation (an ablation: it invites
            spurious parallelism).
    Raises:
        ConfigError: `form: parts` in an environment that does not tell its parts.
    """
    # Both forms divide by what earns the full reward, so that weights compare.
    full = cap if form == "cap" else _num_parts(episode)
    if count == "raw":
        # Not capped at 1: the ablation shows what a term that pays for every attempt leads to.
        return (episode.num_assigned + episode.num_refused) / full
    return min(episode.num_assigned, full) / full


@reward
def finish(episode: Episode) -> float:
    """r_finish (Kimi K2.5, section 3): share of assigned subtasks that finish. 0..1.

    It works against spurious parallelism. A subagent has finished if it ended by itself with a
    non-empty message that the environment accepts. Without assignments the term is 0.
    """
    if not episode.num_assigned:
        return 0.0
    return episode.num_finished / episode.num_assigned


@reward
def critical_steps(episode: Episode, *, per: PositiveInt = 100) -> float:
    """Minus the critical steps, in units of `per` steps. In Kimi K2.5 (section 3) a budget."""
    return -episode.critical_steps / per


@reward
def total_steps(episode: Episode, *, per: PositiveInt = 100) -> float:
    """Minus the turns of all agents, in units of `per`: a cost that parallelism cannot hide."""
    return -episode.total_steps / per


@reward
def contradictions(episode: Episode, *, per: PositiveInt = 4) -> float:
    """Minus the keys to which two subagents give different values, in units of `per`; at least -1.

    Args:
        per: number of contradictions that cost 1.
    Raises:
        ConfigError: the environment does not say what messages state.
    """
    keys = episode.facts.get("contradictions")
    if keys is None:
        raise ConfigError(
            f"reward.terms.contradictions: {episode.task.env or 'the environment'} does not say "
            "what messages of subagents state. Remove the term, or give the environment `claims`."
        )
    return -min(len(keys) / per, 1.0)


def _num_parts(episode: Episode) -> int:
    parts = episode.facts.get("num_parts")
    if not parts:
        raise ConfigError(
            f"reward.terms.parallel.form is 'parts', but {episode.task.env or 'the environment'} "
            f"does not say how many parts task '{episode.task.id}' has. Write form: cap, or give "
            "the environment `num_parts`."
        )
    return int(parts)
