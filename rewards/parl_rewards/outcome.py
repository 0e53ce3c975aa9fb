"""The outcome term: how well the task was solved, for both roles; and WideSearch's scoring, re-exported.

In: an `Episode`. Out: agent id -> 0..1.
"""

from __future__ import annotations

from parl.core.errors import ConfigError, did_you_mean
from parl.core.types import AgentTrace, Episode
from parl.rewards.terms import finished, reward
from parl_rewards.wide_search import item_f1_nonkey, wide_search

__all__ = ["item_f1_nonkey", "outcome", "wide_search"]


@reward(roles=("orchestrator", "subagent"), outcome=True)
def outcome(episode: Episode, *, metric: str = "score") -> dict[str, float]:
    """r_perf (Kimi K2.5, section 3): the environment's score of the final answer.

    A subagent gets the environment's `subtask_score`, where it has one (gold-informed); else half
    of the shared outcome and half of the validity of its own message (our choice).

    Args:
        metric: key of `episode.outcome` to read; `parl envs show` lists an environment's.
    Raises:
        ConfigError: the environment has no such metric.
    """
    if metric not in episode.outcome:
        raise ConfigError(
            f"reward.terms.outcome.metric: {episode.task.env or 'the environment'} scores no '{metric}'."
            f"{did_you_mean(metric, episode.outcome)}"
        )
    shared = episode.outcome[metric]
    children = {t.id: _subagent(t, shared) for t in episode.subagents}
    return {episode.orchestrator.id: shared, **children}


def _subagent(trace: AgentTrace, shared: float) -> float:
    return trace.score if trace.score is not None else 0.5 * shared + 0.5 * finished(trace)
