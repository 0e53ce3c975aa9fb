#!/usr/bin/env python3
"""What a token costs as swarms get wider: as many episodes at once, each with 1, 4, 16, 64 subagents.

An orchestrator writes its assignments one after the other, so a few wide swarms alone would leave the engine with a few
rows; a step of training has many episodes.

    scripts/bench/width.py
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import replace

from common import finish, set_up, table
from traffic import record

from parl.config.policy import EngineConfig
from parl.core.types import AgentTrace, Episode
from parl.policy.engines.torch import TorchEngine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--episodes", type=int, default=48, help="swarms at once; the quickstart's step has 48"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument(
        "--recorded", type=int, default=60, help="episodes whose subagents are replayed"
    )
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    config, env, policies = set_up()
    pool = [
        t
        for e in record(config, env, policies.renderers["main"], args.recorded)
        for t in e.subagents
    ]
    pool *= 1 + args.episodes * max(args.widths) // len(pool)
    base = record(config, env, policies.renderers["main"], 1)[0]
    engine = TorchEngine(policies.models["main"], [], EngineConfig())
    best: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for _ in range(
        args.repeats
    ):  # widths take turns, so that a slow spell of the machine meets all of them
        for width in args.widths:
            swarms = [swarm(base, pool[i * width : (i + 1) * width]) for i in range(args.episodes)]
            began = time.perf_counter()
            tokens[width] = asyncio.run(play_all(engine, swarms))
            best[width] = min(best.get(width, 1e9), time.perf_counter() - began)
    cost = {w: 1e6 * best[w] / tokens[w] for w in args.widths}
    first = cost[args.widths[0]]
    rows = [
        [w, args.episodes * w, tokens[w], 1000 * best[w], cost[w], cost[w] / first]
        for w in args.widths
    ]
    table(["width", "subagents", "tokens", "ms", "us a token", "ratio"], rows)
    finish({f"cost_ratio_{args.widths[-1]}": cost[args.widths[-1]] / first})


def swarm(base: Episode, children: list[AgentTrace]) -> Episode:
    """An orchestrator that launches these at once, writing and reading as much for each of them as a real one does."""
    root = base.orchestrator
    share = len(base.subagents)
    opening, closing = root.turns[-2], root.turns[-1]
    written = max(1, (opening.end - opening.start) * len(children) // share)
    observed = max(1, (closing.start - opening.end) * len(children) // share)
    answer = max(1, (closing.end - closing.start) * len(children) // share)
    ids = [*root.token_ids[: opening.start], *([9] * written), *([9] * observed), *([9] * answer)]
    at = opening.start
    turns = (
        replace(opening, start=at, end=at + written),
        replace(closing, start=at + written + observed, end=len(ids)),
    )
    orchestrator = replace(root, turns=turns, token_ids=tuple(ids))
    traces = [replace(t, id=str(i), spawned_at=0) for i, t in enumerate(children, 1)]
    return replace(base, traces=(orchestrator, *traces))


async def play_all(engine: TorchEngine, swarms: list[Episode]) -> int:
    from traffic import play_swarm

    return sum(
        await asyncio.gather(*(play_swarm(engine, f"s{i}", s) for i, s in enumerate(swarms)))
    )


if __name__ == "__main__":
    main()
