#!/usr/bin/env python3
"""Compare the engine with transformers' `generate` on recorded multi-turn traffic.

Both get the same contexts and write the same number of tokens. `generate` keeps nothing between turns, so it reads each agent's whole context again. It gets the turns of all agents at
once, sorted by length, in batches of `--batch` (the best of several sizes is shown).

    scripts/bench/engine.py
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import finish, set_up, table
from traffic import play_swarm, record

from parl.config.policy import EngineConfig
from parl.core.types import Episode
from parl.policy.engines.torch import TorchEngine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=48)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config, env, policies = set_up()
    episodes = record(config, env, policies.renderers["main"], args.episodes)
    model = policies.models["main"].eval()
    engine = TorchEngine(model, [], EngineConfig())
    tokens = sum(e.tokens() for e in episodes)
    engine_seconds: list[float] = []
    generate_seconds: dict[int, list[float]] = {size: [] for size in args.batch}
    # In turns, so that a slow spell of the machine meets both.
    for _ in range(args.repeats):
        engine_seconds.append(timed(lambda: asyncio.run(play_all(engine, episodes))))
        for size in args.batch:
            seconds = timed(lambda size=size: generate_all(model, episodes, size))
            generate_seconds[size].append(seconds)
    best = min(engine_seconds)
    rows: list[list[Any]] = [["ours", tokens, best, tokens / best]]
    for size, repeats in generate_seconds.items():
        rows.append([f"generate, batch {size}", tokens, min(repeats), tokens / min(repeats)])
    table(["engine", "new tokens", "seconds", "tokens/s"], rows)
    finish({"speedup": min(map(min, generate_seconds.values())) / best})


def timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


async def play_all(engine: TorchEngine, episodes: Sequence[Episode]) -> None:
    await asyncio.gather(*(play_swarm(engine, f"s{i}", e) for i, e in enumerate(episodes)))


@torch.inference_mode()
def generate_all(model: Any, episodes: Sequence[Episode], batch: int) -> None:
    """Generate turn by turn: a turn needs the one before. Within a turn all agents are independent."""
    traces = [trace for episode in episodes for trace in episode.traces]
    for k in range(max(len(trace.turns) for trace in traces)):
        # (number of new tokens, context)
        requests: list[tuple[int, list[int]]] = []
        for trace in traces:
            if k < len(trace.turns):
                turn = trace.turns[k]
                requests.append((turn.end - turn.start, list(trace.token_ids[: turn.start])))
        requests.sort(key=lambda request: (request[0], len(request[1])))
        for i in range(0, len(requests), batch):
            part = requests[i : i + batch]
            width = max(len(context) for _, context in part)
            rows, masks = [], []
            for _, context in part:
                padding = [0] * (width - len(context))
                rows.append(padding + context)
                masks.append(padding + [1] * len(context))
            new = max(num_tokens for num_tokens, _ in part)
            model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor(masks),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
            )


if __name__ == "__main__":
    main()
