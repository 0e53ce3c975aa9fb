#!/usr/bin/env python3
"""How much of the possible overlap of sampling and learning asynchronous mode gets.

Synchronous runs (in this process with one core; on two Ray workers with two learner threads) give the seconds of a
step's rollout and update, R and L. With everything overlapped a step would take max(R, L), so asynchronous mode can be
faster by (R + L) / max(R, L). It samples on one core and learns on another.

    scripts/bench/overlap.py runs/quickstart
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

from common import QUICKSTART, finish, table

SHAPES = {
    "sync, one core": ["rollout.backend=local", "threads=1"],
    "sync, both cores": ["rollout={backend: ray, num_workers: 2}", "threads=2"],
    "async": ["rollout={backend: ray, num_workers: 1}", "train.mode=async", "threads=1"],
}
SKIPPED = 3
"""Steps at the beginning that do not count: Ray starts, the queue fills."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run whose cold start is taken")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--staleness", type=int, default=2)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    rows = {
        name: measure(name, shape, args, folder / f"{i}")
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    shutil.rmtree(folder)
    sync = min((rows[n] for n in rows if n.startswith("sync")), key=lambda r: r["step"])
    bound = (sync["rollout"] + sync["learn"]) / max(sync["rollout"], sync["learn"])
    speedup = sync["step"] / rows["async"]["step"]
    header = ["mode", "s a step", "rollout", "learn and sync", "tokens/s"]
    table(
        header,
        [[n, r["step"], r["rollout"], r["learn"], r["tokens_per_s"]] for n, r in rows.items()],
    )
    print(f"async is {speedup:.2f} times as fast as the best sync; the bound is {bound:.2f}")
    finish({"async_share_of_bound": speedup / bound, "speedup": speedup, "bound": bound})


def measure(name: str, shape: list[str], args: argparse.Namespace, run: Path) -> dict[str, float]:
    """Mean seconds of a step and of its parts, and generated tokens a second."""
    print(f"{name} ...", file=sys.stderr)
    overrides = [
        "baseline=null",
        f"run_dir={run}",
        f"cold_start.from_run={args.run.resolve()}",
        f"train.num_steps={args.steps}",
        f"train.max_off_policy_steps={args.staleness}",
        "train.checkpoint_every=1000",
        "eval={num_tasks: 2, every: null, split: validation}",
        "env.tasks.validation.num=2",
        "tracking.wandb.mode=disabled",
    ]
    command = [sys.executable, "-m", "parl.cli", "train", str(QUICKSTART), *overrides, *shape]
    env = {**os.environ, "OMP_NUM_THREADS": "2" if "both" in name else "1"}
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][
        SKIPPED:
    ]
    seconds = sum(r["time/step_s"] for r in lines)
    tokens = sum(r["rollout/tokens_per_s"] * r["time/rollout_s"] for r in lines)
    return {
        "step": seconds / len(lines),
        "rollout": fmean(r["time/rollout_s"] for r in lines),
        "learn": fmean(r["time/learn_s"] + r["time/sync_s"] for r in lines),
        "tokens_per_s": tokens / seconds,
    }


if __name__ == "__main__":
    main()
