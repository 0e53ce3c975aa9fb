"""Shaping terms about the swarm: instantiation, finish rate, steps, contradictions. The orchestrator's alone.

In: an `Episode`. Out: a float. The paper anneals the first two to zero (lambda1, lambda2): give
them a schedule.
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
    """r_parallel (Kimi K2.5, section 3): reward for launching subagents, against serial collapse. 0..1.

    Its closed form is undisclosed; these are ours. Each saturates at 1.

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
    full = cap if form == "cap" else _num_parts(episode)
    if count == "raw":
        return (episode.num_assigned + episode.num_refused) / full
    return min(episode.num_assigned, full) / full


@reward
def finish(episode: Episode) -> float:
    """r_finish (Kimi K2.5, section 3): share of assigned subtasks that finish, against spurious parallelism.

    Finished = ended by itself with a non-empty message that the environment accepts. 0 without
    assignments.
    """
    return episode.num_finished / episode.num_assigned if episode.num_assigned else 0.0


@reward
def critical_steps(episode: Episode, *, per: PositiveInt = 100) -> float:
    """Minus the critical steps (Kimi K2.5, section 3), in units of `per` steps. There a budget, here a cost."""
    return -episode.critical_steps / per


@reward
def total_steps(episode: Episode, *, per: PositiveInt = 100) -> float:
    """Minus the turns of all agents, in units of `per` turns: the cost that parallelism does not hide."""
    return -episode.total_steps / per


@reward
def contradictions(episode: Episode, *, per: PositiveInt = 4) -> float:
    """Minus the keys to which two subagents give different values, in units of `per`; never below -1.

    Args:
        per: so many contradictions cost 1.
    Raises:
        ConfigError: the environment does not say what messages state.
    """
    found = episode.facts.get("contradictions")
    if found is None:
        raise ConfigError(
            f"reward.terms.contradictions: {episode.task.env or 'the environment'} does not say what messages of "
            "subagents state. Remove the term, or give the environment `claims`."
        )
    return -min(len(found) / per, 1.0)


def _num_parts(episode: Episode) -> int:
    parts = episode.facts.get("num_parts")
    if not parts:
        raise ConfigError(
            f"reward.terms.parallel.form is 'parts', but {episode.task.env or 'the environment'} does not say how "
            f"many parts task '{episode.task.id}' has. Write form: cap, or give the environment `num_parts`."
        )
    return int(parts)
