"""A subagent's own advantage plus a share of its episode's."""

from __future__ import annotations

from parl.rewards.credit.group_mean import group_mean
from parl.rewards.credit.peers import SubagentGroup, children
from parl.rewards.credit.rule import Agent, Group, credit_rule


@credit_rule
def hierarchical(
    group: Group,
    *,
    normalize_std: bool = False,
    std_floor: float = 0.05,
    subagent_group: SubagentGroup = "task",
    episode_share: float = 0.5,
) -> dict[Agent, float]:
    """Set A = A_own + `episode_share` * A_episode for subagents; orchestrators as `group_mean`.

    A_own compares a subagent with its peers, A_episode is its orchestrator's. The form is that of
    GiGPO (2505.10978, eq. 8: A^E + omega A^S) with a subagent in the place of a step; M-GRPO
    (2511.13288) has the same aim and mixes the main agent's result into the subagent's reward.
    """
    advantages = group_mean(
        group, normalize_std=normalize_std, std_floor=std_floor, subagent_group=subagent_group
    )
    # The orchestrator keeps its own: its advantage is the episode's already.
    for scored in group:
        episode_advantage = advantages[scored.episode.id, scored.episode.orchestrator.id]
        for trace in children(scored):
            advantages[scored.episode.id, trace.id] += episode_share * episode_advantage
    return advantages
