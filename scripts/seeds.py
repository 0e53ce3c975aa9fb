#!/usr/bin/env python3
"""Run one config over several seeds, one after the other, and print what came out as a markdown table.

Each seed goes through the whole pipeline from nothing, its control beside it. A seed that is done is not run again and
one that was stopped goes on, so the same command continues after a break.

    scripts/seeds.py configs/quickstart.yaml --seeds 0 1 2 3 4 -o runs/seeds
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

COLUMNS = (
    *("item_f1", "item_f1_nonkey", "tests_passed", "tool_use", "zoom_iou"),
    *("accuracy_answered", "abstention_precision", "abstention_recall", "success"),
    *("critical_steps", "virtual_latency_s", "tokens_per_episode", "spawn_rate", "num_truncated"),
)
"""Of these, the ones that the environment has."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("runs/seeds"), help="folder of the runs"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    for seed in args.seeds:
        run(args.config, args.out / f"seed_{seed}", [f"seed={seed}", *args.overrides])
    summaries = [
        json.loads((args.out / f"seed_{s}" / "summary.json").read_text()) for s in args.seeds
    ]
    print("\n".join(table(summaries)))


def run(config: Path, folder: Path, overrides: Sequence[str]) -> None:
    """One `parl train`, unless it is done."""
    if (folder / "summary.json").is_file():
        return
    own = folder / "config.resolved.yaml"
    begun = (
        [str(own), "--resume", str(folder)]
        if own.is_file()
        else [str(config), *overrides, f"run_dir={folder}"]
    )
    subprocess.run([sys.executable, "-m", "parl.cli", "train", *begun], check=True)


def table(summaries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Mean over the seeds and, in brackets, the smallest and the largest; one row per policy and decoding."""
    first = summaries[0]["heldout"]
    measured = {
        name
        for modes in first.values()
        for decodings in modes.values()
        for row in decodings.values()
        for name in row
    }
    abilities = sorted(
        name for name in measured if name.startswith("ability/") and name.endswith("/score")
    )
    names = ["score", *abilities, *(name for name in COLUMNS if name in measured)]
    seeds = ", ".join(f"{s['seed']}" for s in summaries)
    walls = ", ".join(f"{s['wall_s'] / 60:.1f}" for s in summaries)
    attempts = max(s["cold_start_attempts"] for s in summaries)
    yield f"Seeds {seeds}; minutes: {walls}; cold-start attempts at most {attempts}."
    yield ""
    yield "| policy | decoding | " + " | ".join(names) + " |"
    yield "|" + " --- |" * (len(names) + 2)
    for phase, modes in first.items():
        for mode, decodings in modes.items():
            for decoding in decodings:
                rows = [s["heldout"][phase][mode][decoding] for s in summaries]
                cells = [spread([r[n] for r in rows if n in r]) for n in names]
                yield f"| {phase}, {mode} | {decoding} | " + " | ".join(cells) + " |"


def spread(values: Sequence[float]) -> str:
    """Example: [1.0, 2.0] -> `1.5 [1, 2]`; nothing of what no run has measured, such as the recall of no abstention."""
    return f"{fmean(values):.3g} [{min(values):.3g}, {max(values):.3g}]" if values else ""


if __name__ == "__main__":
    main()
