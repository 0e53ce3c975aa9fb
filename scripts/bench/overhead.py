#!/usr/bin/env python3
"""What the runtime itself costs per turn: scripted swarms on the real environment, its time and the script's taken off.

scripts/bench/overhead.py
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from common import SwarmScript, finish, jobs_of, runner_of, set_up, table

from parl.env.registry import make_env
from parl.policy.engines.scripted import CharRenderer, ScriptedEngine
from parl.rollout.pool.local import LocalPool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8, 64])
    args = parser.parse_args()
    config, env, _ = set_up()
    inside = [0.0]

    def timed(function: Any) -> Any:
        def call(*a: Any, **k: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*a, **k)
            finally:
                inside[0] += time.perf_counter() - began

        return call

    kind = type(env)
    for name in ("step", "reset", "fork", "check_result", "subtask_score"):
        setattr(kind, name, timed(getattr(kind, name)))
    rows, worst = [], 0.0
    for width in args.widths:
        script = SwarmScript(width)
        runner = runner_of(config, ScriptedEngine(script, CharRenderer()), CharRenderer())
        pool = LocalPool(lambda: make_env(config.env), config.rollout)
        jobs = jobs_of(env, max(8, args.episodes // width))
        asyncio.run(pool.gather(runner, jobs[:4]))  # warm-up
        inside[0] = script.seconds = 0.0
        began = time.perf_counter()
        episodes = asyncio.run(pool.gather(runner, jobs))
        wall = time.perf_counter() - began
        assert all(e.status == "completed" and len(e.subagents) == width for e in episodes)
        turns = sum(e.total_steps for e in episodes)
        own = 1000 * (wall - inside[0] - script.seconds) / turns
        worst = max(worst, own)
        rows.append(
            [
                width,
                turns,
                1000 * wall / turns,
                1000 * inside[0] / turns,
                1000 * script.seconds / turns,
                own,
            ]
        )
    table(["subagents", "turns", "ms a turn", "environment", "script", "runtime"], rows)
    finish({"ms_per_turn": worst})


if __name__ == "__main__":
    main()
