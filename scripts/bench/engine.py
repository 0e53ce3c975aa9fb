#!/usr/bin/env python3
"""Our engine against transformers' `generate` on recorded multi-turn traffic: the same contexts, as many new tokens.

`generate` keeps nothing between turns, so it reads each agent's whole context again. It gets the turns of all agents at
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
    ours: list[float] = []
    theirs: dict[int, list[float]] = {b: [] for b in args.batch}
    for _ in range(args.repeats):  # in turns, so that a slow spell of the machine meets both
        ours.append(timed(lambda: asyncio.run(play_all(engine, episodes))))
        for size in args.batch:
            theirs[size].append(timed(lambda size=size: generate_all(model, episodes, size)))
    rows: list[list[Any]] = [["ours", tokens, min(ours), tokens / min(ours)]]
    rows += [[f"generate, batch {b}", tokens, min(t), tokens / min(t)] for b, t in theirs.items()]
    table(["engine", "new tokens", "seconds", "tokens/s"], rows)
    finish({"speedup": min(min(t) for t in theirs.values()) / min(ours)})


def timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


async def play_all(engine: TorchEngine, episodes: Sequence[Episode]) -> None:
    await asyncio.gather(*(play_swarm(engine, f"s{i}", e) for i, e in enumerate(episodes)))


@torch.inference_mode()
def generate_all(model: Any, episodes: Sequence[Episode], batch: int) -> None:
    """Turn by turn, since a turn needs what the one before brought; within a turn all agents are independent."""
    traces = [t for e in episodes for t in e.traces]
    for k in range(max(len(t.turns) for t in traces)):
        asked = [
            (list(t.token_ids[: t.turns[k].start]), t.turns[k]) for t in traces if k < len(t.turns)
        ]
        asked.sort(key=lambda a: (a[1].end - a[1].start, len(a[0])))
        for i in range(0, len(asked), batch):
            part = asked[i : i + batch]
            width = max(len(ids) for ids, _ in part)
            ids = torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in part])
            mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in part])
            new = max(t.end - t.start for _, t in part)
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
            )


if __name__ == "__main__":
    main()
