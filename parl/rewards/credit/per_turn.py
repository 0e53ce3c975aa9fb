"""An advantage for each turn: turns taken in the same state are compared."""

from __future__ import annotations

from parl.rewards.credit.group_mean import group_mean
from parl.rewards.credit.peers import SubagentGroup, centre, children, total_reward
from parl.rewards.credit.rule import Agent, Group, credit_rule

AgentTurn = tuple[Agent, int]
State = tuple[str, tuple[int, ...]]
"""A role and the context, token by token."""


@credit_rule
def per_turn(
    group: Group,
    *,
    normalize_std: bool = False,
    std_floor: float = 0.05,
    subagent_group: SubagentGroup = "task",
    discount: float = 0.95,
    turn_weight: float = 1.0,
) -> dict[Agent, tuple[float, ...]]:
    """Set A of turn t = A_agent + `turn_weight` * (R_t - mean of R over turns in the same state).

    GiGPO (2505.10978, eqs. 6-8). R_t = `discount`^(T-1-t) r is the discounted return of an agent's
    turn t of T. Two turns of a role are taken in the same state ("anchor state") when their
    contexts are equal, token by token: always in the first turn of a task's orchestrators, and for
    subagents with the same prompt. A_agent is that of `group_mean`.
    """
    agents = group_mean(
        group, normalize_std=normalize_std, std_floor=std_floor, subagent_group=subagent_group
    )
    # GiGPO's anchor states: a dictionary by context finds the turns taken in the same one.
    states: dict[State, list[tuple[AgentTurn, float]]] = {}
    num_turns: dict[Agent, int] = {}
    for scored in group:
        for trace in (scored.episode.orchestrator, *children(scored)):
            agent = (scored.episode.id, trace.id)
            num_turns[agent] = len(trace.turns)
            reward = total_reward(scored, trace)
            # The last turn's return is the reward itself; each turn before it is discounted once
            # more.
            last = len(trace.turns) - 1
            for index, turn in enumerate(trace.turns):
                state = (trace.role, trace.token_ids[: turn.start])
                turn_return = discount ** (last - index) * reward
                states.setdefault(state, []).append(((agent, index), turn_return))

    comparisons: dict[AgentTurn, float] = {}
    for turns in states.values():
        # A family of one each: turns count equally, whichever episode they are of.
        comparisons |= centre([[turn] for turn in turns], normalize_std, std_floor)

    advantages: dict[Agent, tuple[float, ...]] = {}
    for agent, num in num_turns.items():
        per_agent = agents[agent]
        advantages[agent] = tuple(
            per_agent + turn_weight * comparisons[agent, index] for index in range(num)
        )
    return advantages
