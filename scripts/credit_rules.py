#!/usr/bin/env python3
"""How well does each credit rule tell subagents apart? Stored episodes, no model needed.

In: a run whose environment can say what a subagent's message was worth to the answer (`AgentEnv.contributions`).
Out: for each rule, how the advantages that it gives subagents go with that worth: over the group (r), within an episode
(r in), and how often a subagent that was worth nothing, beside others that were worth something, is pushed up. A first
table uses the environment's `subtask_score`, which is gold-informed; a second one does without it.

    scripts/credit_rules.py runs/quickstart --steps 8
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import get_args

from parl.config import load
from parl.config.objective import Credit, Reward, Term
from parl.config.roles import Roles
from parl.core.types import Episode
from parl.env import registry as plugins
from parl.env.registry import make_env
from parl.rewards import credit
from parl.rewards.scorer import Scorer
from parl.rollout.swarm import read_message
from parl.runs.folder import read_episodes
from parl.runs.records import episode_of

TINY = 1e-9
RULES = [
    r for r in get_args(Credit.model_fields["type"].annotation) if r != "resample"
]  # needs rollouts of its own
Pairs = Sequence[tuple[float, float]]
"""(advantage, worth) of subagents."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=8, help="stored steps, from the first")
    args = parser.parse_args()
    plugins.load()
    groups = with_worth(args.run, args.steps)
    num = sum(len(e.subagents) for group in groups for e in group)
    print(f"{len(groups)} groups with subagents, {num} subagents")
    if not num:
        return
    for title, graded in (("with `subtask_score`", True), ("without `subtask_score`", False)):
        print(f"\n| rule, {title} | r | r in | worthless pushed up |\n| --- | --- | --- | --- |")
        played = groups if graded else [[ungraded(e) for e in group] for group in groups]
        for rule in RULES:
            print(f"| `{rule}` | {' | '.join(row([compared(group, rule) for group in played]))} |")


def with_worth(run: Path, num_steps: int) -> list[list[Episode]]:
    """The stored groups that have subagents, each subagent with its contribution."""
    env = make_env(load(run / "config.resolved.yaml", ()).env)
    groups = []
    for file in sorted((run / "episodes").glob("step_*.jsonl.zst"))[:num_steps]:
        episodes = [episode_of(r) for r in read_episodes(file) if r["status"] != "failed"]
        for _, group in groupby(episodes, key=lambda e: e.group):
            played = []
            for episode in group:
                env.reset(options={"task": episode.task})
                worth = env.contributions(
                    episode.answer, [read_message(t) for t in episode.subagents]
                )
                if worth is None:
                    raise SystemExit(f"{episode.task.env} cannot say what a subagent contributed")
                kids = [
                    replace(t, contribution=w)
                    for t, w in zip(episode.subagents, worth, strict=True)
                ]
                played.append(replace(episode, traces=(episode.orchestrator, *kids)))
            if any(e.subagents for e in played):
                groups.append(played)
    return groups


def ungraded(episode: Episode) -> Episode:
    return replace(episode, traces=tuple(replace(t, score=None) for t in episode.traces))


def compared(group: Sequence[Episode], rule: str) -> list[Pairs]:
    """The subagents of each episode that has some."""
    scored, _ = Scorer(Reward(terms={"outcome": Term()})).score(group, 0, {})
    samples = credit.assign([scored], Credit(type=rule), Roles(), 0)  # type: ignore[arg-type]
    advantages: Mapping[tuple[str, str], float] = {
        (s.episode, s.agent): s.advantage for s in samples
    }
    families = [e for e in group if e.subagents]
    return [
        [(advantages.get((e.id, t.id), 0.0), t.contribution or 0.0) for t in e.subagents]
        for e in families
    ]


def row(groups: Sequence[Sequence[Pairs]]) -> list[str]:
    over_group, inside, idle = [], [], []
    for families in groups:
        mean = fmean(fmean(w for _, w in family) for family in families)
        for family in families:
            over_group += [(a, w - mean) for a, w in family]
            of_a, of_w = (fmean(values) for values in zip(*family, strict=True))
            inside += [(a - of_a, w - of_w) for a, w in family]
            idle += [a for a, w in family if abs(w) < TINY < max(v for _, v in family)]
    up = f"{fmean(a > TINY for a in idle):.0%} of {len(idle)}" if idle else "-"
    return [_r(over_group), _r(inside), up]


def _r(pairs: Pairs) -> str:
    rounded = [
        (round(a, 9), round(w, 9)) for a, w in pairs
    ]  # differences of equal numbers are not quite 0
    try:
        return f"{correlation([a for a, _ in rounded], [w for _, w in rounded]):.2f}"
    except StatisticsError:  # all equal
        return "none"


if __name__ == "__main__":
    main()
