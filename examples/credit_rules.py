#!/usr/bin/env python3
"""Compare credit rules on stored episodes: how well does each tell subagents apart?

The argument is a run whose environment can tell how much a subagent's message contributed to the answer
(`AgentEnv.contributions`). No model is needed. For each rule the table has

- r: the correlation of the advantages of subagents with their contributions, over a group;
- r in: the same within an episode;
- how often a subagent that contributed nothing, next to others that did, gets a positive advantage.

The first table uses the environment's `subtask_score`, which knows the gold answer; the second does not.

    python examples/credit_rules.py runs/quickstart --steps 8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any, get_args

from parl.config import load
from parl.config.credit import Credit
from parl.config.reward import Reward, Term
from parl.config.roles import Roles
from parl.core.types import Episode
from parl.env import registry as plugins
from parl.env.base import AgentEnv
from parl.env.registry import make_env
from parl.rewards import credit
from parl.rewards.scorer import Scorer
from parl.rollout.swarm import read_message
from parl.runs.folder import read_episodes
from parl.runs.records import episode_of

TINY = 1e-9

# `resample` needs rollouts that a stored run does not have.
RULES = [rule for rule in get_args(Credit.model_fields["type"].annotation) if rule != "resample"]

Pairs = Sequence[tuple[float, float]]
"""(advantage, contribution) of subagents."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=8, help="stored steps, from the first")
    args = parser.parse_args()

    plugins.load()
    groups = groups_with_contributions(args.run, args.steps)
    num_subagents = sum(len(episode.subagents) for group in groups for episode in group)
    print(f"{len(groups)} groups with subagents, {num_subagents} subagents")
    if num_subagents == 0:
        return

    ungraded_groups = [[without_scores(episode) for episode in group] for group in groups]
    print_table("with `subtask_score`", groups)
    print_table("without `subtask_score`", ungraded_groups)


def print_table(title: str, groups: Sequence[Sequence[Episode]]) -> None:
    print(f"\n| rule, {title} | r | r in | worthless pushed up |\n| --- | --- | --- | --- |")
    for rule in RULES:
        pairs_by_group = [compare(group, rule) for group in groups]
        print(f"| `{rule}` | {' | '.join(table_row(pairs_by_group))} |")


def groups_with_contributions(run: Path, num_steps: int) -> list[list[Episode]]:
    """Return the stored groups that have subagents, each subagent with its contribution."""
    env = make_env(load(run / "config.resolved.yaml", ()).env)
    groups = []
    for file in sorted((run / "episodes").glob("step_*.jsonl.zst"))[:num_steps]:
        records = read_episodes(file)
        episodes = [episode_of(record) for record in records if record["status"] != "failed"]
        for _, members in groupby(episodes, key=lambda episode: episode.group):
            group = [with_contributions(env, episode) for episode in members]
            if any(episode.subagents for episode in group):
                groups.append(group)
    return groups


def with_contributions(env: AgentEnv, episode: Episode) -> Episode:
    env.reset(options={"task": episode.task})
    messages = [read_message(trace) for trace in episode.subagents]
    contributions = env.contributions(episode.answer, messages)
    if contributions is None:
        sys.exit(f"{episode.task.env} cannot tell what a subagent contributed.")
    subagents = []
    for trace, contribution in zip(episode.subagents, contributions, strict=True):
        subagents.append(replace(trace, contribution=contribution))
    return replace(episode, traces=(episode.orchestrator, *subagents))


def without_scores(episode: Episode) -> Episode:
    return replace(episode, traces=tuple(replace(trace, score=None) for trace in episode.traces))


def compare(group: Sequence[Episode], rule: Any) -> list[Pairs]:
    """Return the pairs of each episode that has subagents, under one credit rule."""
    scored, _ = Scorer(Reward(terms={"outcome": Term()})).score(group, 0, {})
    samples = credit.assign([scored], Credit(type=rule), Roles(), 0)
    advantages = {(sample.episode, sample.agent): sample.advantage for sample in samples}
    pairs_by_episode: list[Pairs] = []
    for episode in group:
        pairs = []
        for trace in episode.subagents:
            # A subagent without a sample is not trained: its advantage is 0.
            advantage = advantages.get((episode.id, trace.id), 0.0)
            pairs.append((advantage, trace.contribution or 0.0))
        if pairs:
            pairs_by_episode.append(pairs)
    return pairs_by_episode


def table_row(groups: Sequence[Sequence[Pairs]]) -> list[str]:
    over_group: list[tuple[float, float]] = []
    within_episode: list[tuple[float, float]] = []
    idle_advantages: list[float] = []
    for episodes in groups:
        group_mean = fmean(fmean(worth for _, worth in pairs) for pairs in episodes)
        for pairs in episodes:
            mean_advantage = fmean(advantage for advantage, _ in pairs)
            mean_worth = fmean(worth for _, worth in pairs)
            most_worth = max(worth for _, worth in pairs)
            for advantage, worth in pairs:
                over_group.append((advantage, worth - group_mean))
                within_episode.append((advantage - mean_advantage, worth - mean_worth))
                if abs(worth) < TINY < most_worth:
                    idle_advantages.append(advantage)
    pushed_up = "-"
    if idle_advantages:
        share = fmean(advantage > TINY for advantage in idle_advantages)
        pushed_up = f"{share:.0%} of {len(idle_advantages)}"
    return [correlation_text(over_group), correlation_text(within_episode), pushed_up]


def correlation_text(pairs: Pairs) -> str:
    # Rounded, because differences of equal numbers are not quite 0.
    advantages = [round(advantage, 9) for advantage, _ in pairs]
    worths = [round(worth, 9) for _, worth in pairs]
    try:
        return f"{correlation(advantages, worths):.2f}"
    except StatisticsError:  # all values of one side are equal
        return "none"


if __name__ == "__main__":
    main()
