#!/usr/bin/env python3
"""Many agents alive at once in one process: memory and episodes a second, with the scripted engine.

Every subagent waits in its first turn until all of them are there; then all go on.

    scripts/bench/concurrency.py --agents 100000
"""

from __future__ import annotations

import argparse
import asyncio
import time

from common import Gate, SwarmScript, finish, jobs_of, runner_of, set_up, table

from parl.core.machine import rss_mb
from parl.env.registry import make_env
from parl.policy.engines.scripted import CharRenderer, ScriptedEngine
from parl.rollout.pool.local import LocalPool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--agents", type=int, default=100_000, help="subagents that are alive at once"
    )
    parser.add_argument("--width", type=int, default=64, help="subagents of an episode")
    args = parser.parse_args()
    num = -(-args.agents // args.width)
    config, env, _ = set_up(
        [f"rollout.max_concurrent_episodes={num}", "rollout.episode_deadline_s=3600"]
    )
    gate = Gate(ScriptedEngine(SwarmScript(args.width), CharRenderer()), num * args.width)
    runner = runner_of(config, gate, CharRenderer())
    pool = LocalPool(lambda: make_env(config.env), config.rollout)
    jobs = jobs_of(env, num)
    before, began = rss_mb(), time.perf_counter()
    episodes = asyncio.run(pool.gather(runner, jobs))
    wall = time.perf_counter() - began
    assert gate.waiting == num * args.width
    assert all(e.status == "completed" and len(e.subagents) == args.width for e in episodes)
    gib = rss_mb() / 1024
    table(
        [
            "agents at once",
            "episodes",
            "seconds",
            "episodes/s",
            "turns/s",
            "GiB before",
            "GiB at most",
        ],
        [
            [
                gate.waiting + num,
                num,
                wall,
                num / wall,
                sum(e.total_steps for e in episodes) / wall,
                before / 1024,
                gib,
            ]
        ],
    )
    finish({"num_agents": gate.waiting + num, "rss_gib": gib, "episodes_per_s": num / wall})


if __name__ == "__main__":
    main()
