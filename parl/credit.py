"""From rewards to advantages, per role.

In: the scored episodes of a step, in groups (one task each). Out: `Sample`s, one per trained trace, each with one
advantage for all its tokens and the weight of each of its tokens in the loss.

A failed episode or trace is in no mean and gives no sample: an infrastructure failure says nothing about the policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from parl.config.objective import Credit
from parl.config.schema import RoleConfig, Roles
from parl.types import AgentTrace, Sample, ScoredEpisode

NO_ADVANTAGE = 1e-8
"""Samples whose |advantage| is smaller are left out: see `assign`."""

Group = Sequence[ScoredEpisode]


def assign(groups: Sequence[Group], config: Credit, roles: Roles, step: int) -> list[Sample]:
    """Advantages of every trained trace of a step (Kimi K2.5, section 3 and eq. 1).

    Orchestrator: A = r - mean of r over its group (the episodes of the same task).
    Subagent: A = r - b. Its peers are all subagents of the group, or of its episode (`subagent_group`); b is the mean
    over episodes of each episode's mean, so that a wide episode does not set the baseline (parl.md, section 5).
    With `normalize_std` A is divided by (standard deviation over the same peers, population form, + `std_floor`).

    A sample with |A| < 1e-8 is left out, because on-policy it has no gradient (the squared term's is 0 there too).
    Off-policy its squared term is lost with it. It still counts in eq. 1's N: see `token_mass`.

    Args:
        groups: one sequence per task.
        roles: which roles are trained at `step`; the others give no samples but still receive rewards.
    Returns:
        samples in the order of groups, episodes and traces.
    """
    samples: list[Sample] = []
    for group in groups:
        advantages = _advantages(group, config)
        for scored, trace, weight in _trained(group, roles, step):
            advantage = advantages[scored.episode.id, trace.id]
            if abs(advantage) >= NO_ADVANTAGE:
                samples.append(_sample(scored, trace, advantage, weight))
    return samples


def token_mass(groups: Sequence[Group], roles: Roles, step: int) -> list[dict[str, float]]:
    """N of eq. 1: for each group, policy -> weighted number of tokens in the loss, zero advantages included.

    Summed over groups it is the denominator of `loss.denominator: batch`; one by one those of `problem`.
    """
    masses: list[dict[str, float]] = []
    for group in groups:
        mass: dict[str, float] = {}
        for _, trace, weight in _trained(group, roles, step):
            mass[trace.policy] = mass.get(trace.policy, 0.0) + weight * sum(trace.mask)
        masses.append(mass)
    return masses


def _trained(group: Group, roles: Roles, step: int) -> Iterator[tuple[ScoredEpisode, AgentTrace, float]]:
    """Traces whose tokens enter the loss, with the weight of each token.

    An orchestrator's tokens weigh 1; those of each of an episode's n subagents 1/n, so that all subagents together
    weigh as much as one of average length and spawning more adds no gradient mass. (WideSeek-R1, 2602.04634, has the
    same aim; it averages over an episode's agents, and over the tokens within each.)
    """
    for scored in _alive(group):
        num_children = len(_children(scored))
        for trace in scored.episode.traces:
            role: RoleConfig = getattr(roles, trace.role)
            if role.trainable_at(step) and trace.status != "failed" and any(trace.mask):
                yield scored, trace, 1.0 if trace.role == "orchestrator" else 1.0 / num_children


def _advantages(group: Group, config: Credit) -> dict[tuple[str, str], float]:
    """(episode id, agent id) -> advantage, of all agents that did not fail."""
    alive = _alive(group)
    out: dict[tuple[str, str], float] = {}
    orchestrators = [[(s.episode.id, s.episode.orchestrator.id, _reward(s, s.episode.orchestrator))] for s in alive]
    out |= _centred(orchestrators, config)
    children = [[(s.episode.id, t.id, _reward(s, t)) for t in _children(s)] for s in alive]
    children = [c for c in children if c]
    peers = [children] if config.subagent_group == "task" else [[c] for c in children]
    for families in peers:
        out |= _centred(families, config)
    return out


def _centred(families: Sequence[Sequence[tuple[str, str, float]]], config: Credit) -> dict[tuple[str, str], float]:
    """Rewards minus the mean over families of each family's mean (a family = the peers within one episode)."""
    if not families:
        return {}
    mean = fmean(fmean(r for *_, r in family) for family in families)
    scale = 1.0
    if config.normalize_std:
        variance = fmean(fmean((r - mean) ** 2 for *_, r in family) for family in families)
        scale = math.sqrt(variance) + config.std_floor
    return {(episode, agent): (r - mean) / scale for family in families for episode, agent, r in family}


def _alive(group: Group) -> list[ScoredEpisode]:
    return [s for s in group if s.episode.status != "failed"]


def _children(scored: ScoredEpisode) -> list[AgentTrace]:
    return [t for t in scored.episode.subagents if t.status != "failed"]


def _reward(scored: ScoredEpisode, trace: AgentTrace) -> float:
    return scored.rewards[trace.id].total


def _sample(scored: ScoredEpisode, trace: AgentTrace, advantage: float, weight: float) -> Sample:
    return Sample(
        episode=scored.episode.id,
        agent=trace.id,
        role=trace.role,
        policy=trace.policy,
        token_ids=trace.token_ids,
        mask=trace.mask,
        logprobs=trace.logprobs,
        advantage=advantage,
        weight=weight,
        policy_versions=tuple(v for t in trace.turns for v in t.policy_versions),
    )
