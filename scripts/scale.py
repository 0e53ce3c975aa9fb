#!/usr/bin/env python3
"""How many inference instances a learner wants: a discrete-event simulation of asynchronous training.

Fed with rates that were measured (or are assumed: see docs/explain/scaling.md), it plays the admission rule of
`train.mode: async` (`rollout/feed.py`): problems are started up to `staleness` steps ahead, each inference instance
decodes its share of the running agents, the learner takes a step when enough problems are done. No clock but the
simulated one.

    scripts/scale.py --gpus 8 --learner-tokens-per-s 30000 --decode-tokens-per-s 12000
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from parl.training.rollout_source import choose_due_problems

NOT_GIVEN = ("instances", "learner_gpus", "staleness")
"""What the splits are made of."""
MODEL = {"layers": 36, "hidden": 2560, "vocab": 151936, "tokens": 32000}
"""Qwen3-4B, and its micro-batch in configs/gpu."""


@dataclass(frozen=True)
class Plant:
    """Rates and shapes. Tokens per second are of one instance, and of the learner on one GPU."""

    instances: int
    learner_gpus: int
    staleness: int
    problems_per_step: int = 64
    group_size: int = 8
    tokens_per_agent: float = 1500.0
    """Mean of the generated tokens; lognormal with `spread`."""
    spread: float = 0.8
    width: int = 8
    """Subagents of an episode; they run after the first turn of their orchestrator, together."""
    agents_per_instance: int = 128
    """How many agents decode at once without slowing each other down; beyond it they share `decode_tokens_per_s`."""
    decode_tokens_per_s: float = 12_000.0
    agent_tokens_per_s: float = 120.0
    """Fastest that one agent decodes."""
    tool_s_per_agent: float = 4.0
    learner_tokens_per_s: float = 30_000.0
    trained_per_generated: float = 2.5
    """Prompts and observations are fed to the learner as well."""
    sync_s: float = 2.0


def episode_s(plant: Plant, rng: random.Random, speed: float) -> tuple[float, float]:
    """(seconds, generated tokens) of one episode when an agent decodes `speed` tokens a second."""
    mu = -(plant.spread**2) / 2
    draws = [
        plant.tokens_per_agent * rng.lognormvariate(mu, plant.spread)
        for _ in range(plant.width + 1)
    ]
    orchestrator, children = draws[0], draws[1:]
    longest = max(children, default=0.0)
    tools = plant.tool_s_per_agent * (2 if children else 1)
    return (orchestrator + longest) / speed + tools, sum(draws)


def simulate(plant: Plant, steps: int = 40, seed: int = 0) -> dict[str, float]:
    """Play `steps` steps. Returns throughput, staleness and how busy both sides were.

    The speed of decoding is set when an episode starts, by how many agents run then: an approximation that is good when
    the load changes slowly.
    """
    rng = random.Random(seed)
    now, step, cursor = 0.0, 0, 0
    started: dict[int, tuple[int, float]] = {}  # problem -> (step, tokens)
    running: list[tuple[float, int]] = []
    done: set[int] = set()
    trained_tokens = learner_busy = 0.0
    ages: list[int] = []
    while step < steps:
        while cursor < (step + 1 + plant.staleness) * plant.problems_per_step:
            live = (len(running) + 1) * plant.group_size * (1 + plant.width) / plant.instances
            busy = min(live, plant.agents_per_instance)
            speed = min(plant.agent_tokens_per_s, plant.decode_tokens_per_s / busy)
            # More agents than fit wait for their turn.
            slots = max(1.0, live / plant.agents_per_instance)
            parts = [episode_s(plant, rng, speed) for _ in range(plant.group_size)]
            heapq.heappush(running, (now + slots * max(s for s, _ in parts), cursor))
            started[cursor] = (step, sum(t for _, t in parts))
            cursor += 1
        at = {n: started_at for n, (started_at, _) in started.items()}
        due = choose_due_problems(at, done, step, plant.staleness, plant.problems_per_step)
        if due is None:
            now, finished = heapq.heappop(running)
            done.add(finished)
            continue
        tokens = sum(started[n][1] for n in due) * plant.trained_per_generated
        ages += [step - started[n][0] for n in due]
        for n in due:
            del started[n]
            done.discard(n)
        seconds = tokens / (plant.learner_tokens_per_s * plant.learner_gpus)
        learner_busy += seconds
        now += seconds + plant.sync_s
        while running and running[0][0] <= now:
            done.add(heapq.heappop(running)[1])
        trained_tokens += tokens
        step += 1
    return {
        "seconds_per_step": now / steps,
        "trained_tokens_per_s": trained_tokens / now,
        "learner_busy": learner_busy / now,
        "staleness_mean": sum(ages) / len(ages),
        "staleness_max": max(ages),
    }


def plans(
    gpus: int, base: Plant, stalenesses: Sequence[int]
) -> list[tuple[Plant, dict[str, float]]]:
    """Every split of the GPUs into inference instances and learner, with each staleness."""
    splits = sorted(
        {max(1, round(gpus * share / 16)) for share in range(2, 15)} & set(range(1, gpus))
    )
    results = []
    for learner in splits:
        for staleness in stalenesses:
            plant = replace(
                base, instances=gpus - learner, learner_gpus=learner, staleness=staleness
            )
            results.append((plant, simulate(plant)))
    return sorted(results, key=lambda pair: -pair[1]["trained_tokens_per_s"])


def memory(
    params: float, layers: int, hidden: int, vocab: int, tokens: int, written: float
) -> dict[str, float]:
    """Bytes in the process that learns, of `dtype: bfloat16` with `gradient_checkpointing: true`.

    Args:
        tokens: of one micro-batch (`train.tokens_per_batch`).
        written: share of them that agents wrote, which alone go through the head.
    """
    return {
        "weights that learn, float32": 4 * params,
        "gradients, float32": 4 * params,
        "two moments of AdamW, float32": 8 * params,
        "bfloat16 copy that computes": 2 * params,
        "bfloat16 copy of the engine": 2 * params,
        "inputs of the layers": 2.0 * layers * hidden * tokens,
        "logits, their log-softmax and gradient": 3 * 4.0 * vocab * tokens * written,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--top", type=int, default=6, help="plans that are shown")
    for name, default in vars(Plant(1, 1, 1)).items():
        if name not in NOT_GIVEN:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument(
        "--billions", type=float, help="parameters of a model: its memory is shown, too"
    )
    for name, default in MODEL.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, help="of that model, or its micro-batch"
        )
    args = parser.parse_args()
    settings = {}
    for name in vars(Plant(1, 1, 1)):
        if name not in NOT_GIVEN:
            settings[name] = getattr(args, name)
    if args.billions:
        shape = {name: getattr(args, name) for name in MODEL}
        parts = memory(args.billions * 1e9, **shape, written=1 / args.trained_per_generated)
        for name, size in {**parts, "in all": sum(parts.values())}.items():
            print(f"{size / 1e9:8.1f} GB  {name}")
    best: dict[str, dict[str, float]] = {}
    for gpus in args.gpus:
        results = plans(gpus, Plant(1, 1, 1, **settings), args.staleness)
        print(f"\n{gpus} GPUs")
        print("instances  learner  staleness  tokens/s  s a step  learner busy  mean age")
        for plant, result in results[: args.top]:
            print(
                f"{plant.instances:9d}  {plant.learner_gpus:7d}  {plant.staleness:9d}  "
                f"{result['trained_tokens_per_s']:8.0f}  {result['seconds_per_step']:8.1f}  "
                f"{result['learner_busy']:12.2f}  {result['staleness_mean']:8.2f}"
            )
        plant, result = results[0]
        best[str(gpus)] = {
            "instances": plant.instances,
            "learner_gpus": plant.learner_gpus,
            **result,
        }
    print(json.dumps(best))


if __name__ == "__main__":
    main()
