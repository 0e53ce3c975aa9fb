"""A subagent against further samples of its own assignment."""

from __future__ import annotations

from parl.rewards.credit.group_mean import group_mean
from parl.rewards.credit.peers import SubagentGroup, assignment_of, centre, children
from parl.rewards.credit.rule import Agent, Group, credit_rule
from parl.rewards.terms import finished


@credit_rule(resamples=True)
def resample(
    group: Group,
    *,
    normalize_std: bool = False,
    std_floor: float = 0.05,
    subagent_group: SubagentGroup = "task",
) -> dict[Agent, float]:
    """Set A = own success - mean success of all attempts at the assignment; others as `group_mean`.

    Siblings are k further samples of one assignment, so they differ in nothing but chance: the
    baseline of a state by sampling from it again (VinePPO, 2410.01679; for subagents on one subtask
    the hierarchical GRPO of prime-rl). Their messages are not read and have no part in the
    episode's reward, so success is what can be said of the message alone: `subtask_score`, or
    whether it is finished and accepted where there is none.
    """
    advantages = group_mean(
        group, normalize_std=normalize_std, std_floor=std_floor, subagent_group=subagent_group
    )
    for scored in group:
        attempts: dict[str, list[tuple[Agent, float]]] = {}
        for trace in (*children(scored), *scored.episode.siblings):
            # Not the reward: siblings take no part in the episode, so they have none.
            success = trace.score if trace.score is not None else float(finished(trace))
            agent = (scored.episode.id, trace.id)
            attempts.setdefault(assignment_of(trace), []).append((agent, success))
        for family in attempts.values():
            # An assignment without siblings has nothing to be compared with.
            if len(family) > 1:
                advantages |= centre([family], normalize_std, std_floor)
    return advantages
