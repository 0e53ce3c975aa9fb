#!/usr/bin/env python3
"""Measure scripted experts on a config's test tasks: what speed-up does the material allow?

Three experts solve the same tasks through the same runtime and virtual clock. They read what a policy
reads, never the gold answer:

    one agent, one call a turn        the single agent of the demonstrations
    one agent, all calls in one turn  searches for all rows at once, then opens all pages at once
    swarm                             the orchestrator of the demonstrations: a subagent for each row

The limits are the config's. Only the second expert is exempt from `env_calls_per_turn`; no expert has a
step budget. Columns are means over the tasks; the largest context is the longest one of any agent.

    python scripts/scripted_baselines.py configs/quickstart.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parl.config import Config, load
from parl.core.coroutines import run_coroutine
from parl.core.messages import Message
from parl.core.types import Episode, Task
from parl.env import registry as plugins
from parl.env.demonstrations import Script, Segment, written_call
from parl.env.registry import make_env
from parl.env.tasks import load_tasks
from parl.evaluation.metrics import heldout_metrics
from parl.learner.policies import PolicySet
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import ScriptedEngine
from parl.rollout.swarm import SwarmRunner
from parl_envs.search.expert import (
    SearchExpert,
    entity_of,
    find_document,
    observations_of,
    parse_question,
    read_fact,
    row_text,
    user_prompt,
)

COLUMNS = {
    "critical_steps": ("critical steps", "{:.1f}"),
    "total_steps": ("total steps", "{:.1f}"),
    "tokens_per_episode": ("tokens", "{:.0f}"),
    "virtual_latency_s": ("virtual latency, s", "{:.1f}"),
}
"""Metric -> title and format of its column."""


@dataclass(frozen=True)
class Baseline:
    """An expert, and the limits under which it works."""

    title: str
    mode: str
    one_call_a_turn: bool
    make_script: Callable[[Task], Script]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_args()

    plugins.load()
    config = load(args.config, ["baseline=null", *args.overrides])
    titles = " | ".join(title for title, _ in COLUMNS.values())
    print(f"| expert | score | {titles} | largest context, tokens |")
    print("|" + " --- |" * (len(COLUMNS) + 3))
    for baseline in BASELINES:
        episodes = play(config, baseline)
        print(f"| {baseline.title} | {' | '.join(table_cells(episodes))} |")


def play(config: Config, baseline: Baseline) -> list[Episode]:
    """Play one episode of each test task."""
    env = make_env(config.env)
    policies = PolicySet(config, env)  # untrained: only its tokenizer is used
    renderer = policies.renderers[config.roles.orchestrator.policy]
    swarm = config.swarm.replace(mode=baseline.mode, critical_step_budget=None)
    roles = config.roles
    if not baseline.one_call_a_turn:
        limits = roles.orchestrator.limits.replace(env_calls_per_turn=None)
        roles = roles.replace(orchestrator=roles.orchestrator.replace(limits=limits))

    episodes = []
    for task in load_tasks(config, env, "test"):
        engine = ScriptedEngine(baseline.make_script(task), renderer)
        expert = PolicyHandle("expert", renderer, engine, False)
        handles = {"orchestrator": expert, "subagent": expert}
        runner = SwarmRunner(handles, roles, swarm, config.clock)
        episode = runner.run(env, task, episode_id=task.id, group=task.id, step=0, seed=task.id)
        episodes.append(run_coroutine(episode))
    return episodes


def table_cells(episodes: Sequence[Episode]) -> list[str]:
    metrics = heldout_metrics(episodes)
    cells = [f"{metrics['score']:.3f}"]
    for name, (_, form) in COLUMNS.items():
        cells.append(form.format(metrics[name]))
    # The token sequence of a trace is its whole context: prompt, observations and what it wrote.
    largest = max(len(trace.token_ids) for episode in episodes for trace in episode.traces)
    return [*cells, f"{largest:,}"]


class BatchExpert:
    """A single agent that makes all independent calls in one turn: one turn for each hop's searches and pages."""

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> list[Segment]:
        columns, names = parse_question(user_prompt(messages))
        turn = sum(message["role"] == "assistant" for message in messages)
        observations = observations_of(messages)
        # Each turn's calls are one for each row, so its observations are a block of that length.
        blocks = [
            observations[start : start + len(names)]
            for start in range(0, len(observations), len(names))
        ]
        if turn == 0:
            return [Segment(searches([entity_of(name) for name in names]))]
        if turn == 1:
            return [Segment(openings(blocks[0], [entity_of(name) for name in names]))]
        pages = blocks[1]
        if " > " not in columns:
            rows = [row_text(name, columns, page) for name, page in zip(names, pages, strict=True)]
            return [Segment(" ".join(rows))]
        capitals = [read_fact(page, "capital") for page in pages]
        if turn == 2:
            return [Segment(searches(capitals))]
        if turn == 3:
            return [Segment(openings(blocks[2], capitals))]
        rows = []
        for name, page, second_page in zip(names, pages, blocks[3], strict=True):
            rows.append(row_text(name, columns, page, second_page))
        return [Segment(" ".join(rows))]


def searches(queries: Sequence[str]) -> str:
    return " ".join(written_call("search", query=query) for query in queries)


def openings(results: Sequence[str], titles: Sequence[str]) -> str:
    calls = []
    for result, title in zip(results, titles, strict=True):
        calls.append(written_call("open", doc=find_document(result, title)))
    return " ".join(calls)


def expert_of_demonstrations(delegate_prob: float) -> Callable[[Task], Script]:
    def make_script(task: Task) -> Script:
        rng = np.random.default_rng(0)
        return SearchExpert(task, rng, delegate_prob=delegate_prob, give_up_prob=0.0)

    return make_script


BASELINES = (
    Baseline("one agent, one call a turn", "single", True, expert_of_demonstrations(0.0)),
    Baseline("one agent, all calls in one turn", "single", False, lambda task: BatchExpert()),
    Baseline("swarm", "swarm", True, expert_of_demonstrations(1.0)),
)


if __name__ == "__main__":
    main()
