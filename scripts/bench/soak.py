#!/usr/bin/env python3
"""Does the runtime keep anything? Many episodes of scripted swarms in one process, its memory as they go by.

scripts/bench/soak.py --episodes 20000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools

import numpy as np
from common import SwarmScript, finish, jobs_of, runner_of, set_up, table

from parl.core.machine import rss_now_mb
from parl.env.registry import make_env
from parl.policy.engines.scripted import CharRenderer, ScriptedEngine
from parl.rollout.pool.local import LocalPool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument(
        "--batch",
        type=int,
        default=500,
        help="episodes at once; memory is read after every other batch",
    )
    args = parser.parse_args()
    config, env, _ = set_up()
    runner = runner_of(
        config, ScriptedEngine(SwarmScript(args.width), CharRenderer()), CharRenderer()
    )
    pool = LocalPool(lambda: make_env(config.env), config.rollout)
    jobs = jobs_of(env, args.batch)
    seen: list[tuple[int, float]] = []
    for k in itertools.count(1):
        assert all(e.status == "completed" for e in asyncio.run(pool.gather(runner, jobs)))
        gc.collect()
        if k % 2 == 0:
            seen.append((k * len(jobs), rss_now_mb()))
        if k * len(jobs) >= args.episodes:
            break
    table(["episodes", "MB"], [list(row) for row in seen])
    after = seen[len(seen) // 4 :]  # the first quarter is the warm-up
    slope = float(np.polyfit([n for n, _ in after], [mb for _, mb in after], 1)[0])
    finish({"episodes": seen[-1][0], "mb_per_10k_episodes": 10_000 * slope, "rss_mb": seen[-1][1]})


if __name__ == "__main__":
    main()
