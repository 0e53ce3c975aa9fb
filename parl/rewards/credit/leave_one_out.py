"""A subagent's worth: what the answer would lose without its message."""

from __future__ import annotations

from parl.core.errors import ConfigError
from parl.rewards.credit.peers import (
    SubagentGroup,
    children,
    orchestrator_advantages,
    subagent_advantages,
)
from parl.rewards.credit.rule import Agent, Group, credit_rule


@credit_rule(needs_contributions=True)
def leave_one_out(
    group: Group,
    *,
    normalize_std: bool = False,
    std_floor: float = 0.05,
    subagent_group: SubagentGroup = "task",
) -> dict[Agent, float]:
    """Take a subagent's worth in place of its reward; otherwise as `group_mean`.

    Worth = score of the answer - score of the answer without this subagent's message: the
    difference reward D_i = G(z) - G(z_-i) (Wolpert and Tumer 2002; COMA, 1705.08926, section 4).
    The environment tells it (`AgentEnv.contributions`); a subagent whose message left no trace in
    the answer is worth 0.

    Raises:
        ConfigError: an episode does not say what its subagents contributed.
    """
    worth: dict[Agent, float] = {}
    for scored in group:
        for trace in children(scored):
            if trace.contribution is None:
                raise ConfigError(
                    f"credit.type is leave_one_out, but episode {scored.episode.id} does not say "
                    f"what its subagent {trace.id} contributed. That is asked only while a run "
                    "trains with leave_one_out, of environments that implement contributions() "
                    "(docs/explain/credit.md). Train a run with it, or set credit.type: "
                    "group_mean."
                )
            # Negative where the answer is better without the message.
            worth[scored.episode.id, trace.id] = trace.contribution
    orchestrators = orchestrator_advantages(group, normalize_std, std_floor)
    return orchestrators | subagent_advantages(
        group, worth, normalize_std, std_floor, subagent_group
    )
