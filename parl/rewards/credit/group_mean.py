"""The default rule: each role against its own kind."""

from __future__ import annotations

from parl.rewards.credit.peers import (
    SubagentGroup,
    children,
    orchestrator_advantages,
    subagent_advantages,
    total_reward,
)
from parl.rewards.credit.rule import Agent, Group, credit_rule


@credit_rule
def group_mean(
    group: Group,
    *,
    normalize_std: bool = False,
    std_floor: float = 0.05,
    subagent_group: SubagentGroup = "task",
) -> dict[Agent, float]:
    """Compare each role with its own kind (Kimi K2.5, section 3 and eq. 1).

    Orchestrator: A = r - mean of r over its group, the episodes of the same task.
    Subagent: A = r - b. Its peers are all subagents of the group, or of its episode
    (`subagent_group`); b is the mean over episodes of each episode's mean, so that a wide episode
    does not set the baseline. For subagents this is our choice (docs/explain/credit.md).
    With `normalize_std` A is divided by (standard deviation over the same peers + `std_floor`).
    """
    # Shaping reaches no subagent (`@reward(roles=...)`): these are rewards of their subtasks.
    rewards: dict[Agent, float] = {}
    for scored in group:
        for trace in children(scored):
            rewards[scored.episode.id, trace.id] = total_reward(scored, trace)
    orchestrators = orchestrator_advantages(group, normalize_std, std_floor)
    return orchestrators | subagent_advantages(
        group, rewards, normalize_std, std_floor, subagent_group
    )
