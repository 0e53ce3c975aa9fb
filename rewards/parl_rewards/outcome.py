"""The outcome term: how well the task was solved, for both roles.

WideSearch's scoring can be imported from here, too.
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
    of the shared outcome and half of the validity of its message (our choice).

    Args:
        metric: key of `episode.outcome` to read; `parl envs show` lists an environment's.
    Raises:
        ConfigError: the environment has no such metric.
    """
    if metric not in episode.outcome:
        raise ConfigError(
            f"reward.terms.outcome.metric: {episode.task.env or 'the environment'} scores no "
            f"'{metric}'.{did_you_mean(metric, episode.outcome)}"
        )
    shared = episode.outcome[metric]
    values = {episode.orchestrator.id: shared}
    for trace in episode.subagents:
        values[trace.id] = _subagent_outcome(trace, shared)
    return values


def _subagent_outcome(trace: AgentTrace, shared: float) -> float:
    if trace.score is not None:
        return trace.score
    # Half of it depends on the subagent alone: the shared half is the same for good and bad ones.
    return 0.5 * shared + 0.5 * finished(trace)
