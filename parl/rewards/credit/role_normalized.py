"""Every agent counts once, normalized within its role."""

from __future__ import annotations

from parl.rewards.credit.peers import centre, children, orchestrator_advantages, total_reward
from parl.rewards.credit.rule import Agent, Group, credit_rule


@credit_rule
def role_normalized(group: Group, *, std_floor: float = 0.05) -> dict[Agent, float]:
    """Set A = (r - mu_role) / (sigma_role + `std_floor`), over all agents of a role (Dr. MAS).

    Every agent counts once, so a wide episode sets much of the subagents' mean. In the paper
    (2602.08847) r is the episode's reward for every agent; here it is the agent's own, which is the
    same where the environment knows no `subtask_score`.
    """
    subagents = []
    for scored in group:
        for trace in children(scored):
            reward = total_reward(scored, trace)
            # A family of one each, so that agents count, not episodes.
            subagents.append([((scored.episode.id, trace.id), reward)])
    orchestrators = orchestrator_advantages(group, True, std_floor)
    return orchestrators | centre(subagents, True, std_floor)
