"""One advantage for all agents of an episode."""

from __future__ import annotations

from parl.rewards.credit.peers import children, orchestrator_advantages
from parl.rewards.credit.rule import Agent, Group, credit_rule


@credit_rule
def trajectory(
    group: Group, *, normalize_std: bool = False, std_floor: float = 0.05
) -> dict[Agent, float]:
    """Give all agents of an episode the advantage of its orchestrator (WideSeek-R1, 2602.04634).

    The paper divides by the standard deviation: `normalize_std`. Subagents share the orchestrator's
    shaping terms.
    """
    advantages = orchestrator_advantages(group, normalize_std, std_floor)
    # What one agent of an episode did shows only over many episodes.
    for scored in group:
        episode = scored.episode
        for trace in children(scored):
            advantages[episode.id, trace.id] = advantages[episode.id, episode.orchestrator.id]
    return advantages
