"""What credit rules are made of: rewards and advantages among peers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Literal, TypeVar

from parl.core.types import AgentTrace, ScoredEpisode
from parl.rewards.credit.rule import Agent, Group

Key = TypeVar("Key", bound=Hashable)
SubagentGroup = Literal["task", "episode"]
"""Peers of a subagent: all subagents of the task's episodes, or those of its own episode."""


def alive(group: Group) -> list[ScoredEpisode]:
    """Return the episodes that did not fail."""
    # An infrastructure failure says nothing about the policy.
    return [scored for scored in group if scored.episode.status != "failed"]


def children(scored: ScoredEpisode) -> list[AgentTrace]:
    """Return the subagents of an episode that did not fail."""
    return [trace for trace in scored.episode.subagents if trace.status != "failed"]


def assignment_of(trace: AgentTrace) -> str:
    """Return the assignment of a subagent: "3" for "3" and its siblings "3.1", "3.2", ..."""
    return trace.id.partition(".")[0]


def total_reward(scored: ScoredEpisode, trace: AgentTrace) -> float:
    """Return the total reward of an agent."""
    return scored.rewards[trace.id].total


def orchestrator_advantages(
    group: Group, normalize_std: bool, std_floor: float
) -> dict[Agent, float]:
    """Return each orchestrator's reward minus the mean of the group."""
    # Each orchestrator is a family of one.
    families = []
    for scored in group:
        root = scored.episode.orchestrator
        families.append([((scored.episode.id, root.id), total_reward(scored, root))])
    return centre(families, normalize_std, std_floor)


def subagent_advantages(
    group: Group,
    values: Mapping[Agent, float],
    normalize_std: bool,
    std_floor: float,
    subagent_group: SubagentGroup,
) -> dict[Agent, float]:
    """Return each subagent's value minus the mean of its peers.

    The mean is one over episodes of each episode's mean, so that a wide episode does not set it.
    """
    families = []
    for scored in group:
        family = []
        for trace in children(scored):
            agent = (scored.episode.id, trace.id)
            family.append((agent, values[agent]))
        # An episode that spawned nobody has no mean, and must not count as one of 0.
        if family:
            families.append(family)
    if subagent_group == "task":
        return centre(families, normalize_std, std_floor)
    # `episode`: siblings by birth alone are compared. An only child then has no advantage.
    advantages: dict[Agent, float] = {}
    for family in families:
        advantages |= centre([family], normalize_std, std_floor)
    return advantages


def centre(
    families: Sequence[Sequence[tuple[Key, float]]], normalize_std: bool, std_floor: float
) -> dict[Key, float]:
    """Return values minus the mean over families of each family's mean.

    Args:
        families: the peers within one episode make a family; (key, value) of each.
        normalize_std: divide by the standard deviation over the same peers (population form).
        std_floor: added to the standard deviation, so that a group of nearly equal values does not
            get large advantages.
    """
    # A group without subagents, say.
    if not families:
        return {}
    # A mean of means: each family counts once, so that a wide episode does not set the baseline.
    means = [fmean(value for _, value in family) for family in families]
    mean = fmean(means)
    # Kimi K2.5's objective does not divide; GRPO and most rules built on it do.
    scale = 1.0
    if normalize_std:
        variances = []
        for family in families:
            squares = [(value - mean) ** 2 for _, value in family]
            variances.append(fmean(squares))
        scale = math.sqrt(fmean(variances)) + std_floor
    centred: dict[Key, float] = {}
    for family in families:
        for key, value in family:
            centred[key] = (value - mean) / scale
    return centred
