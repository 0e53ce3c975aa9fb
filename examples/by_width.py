#!/usr/bin/env python3
"""Print held-out results by the width of the tasks: when does the policy delegate, and at what cost?

The width of a task is its number of independent parts (rows to find). The arguments are finished runs;
the output is a Markdown table with one line for each width, over the episodes of all runs.

    python examples/by_width.py runs/adaptive --decoding greedy
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

MEANS = {
    "num_assigned": "subagents",
    "item_f1": "item-F1",
    "critical_steps": "critical steps",
    "total_steps": "total steps",
    "tokens": "tokens",
}
"""Field of an episode's row -> title of its column."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--phase", default="trained", choices=["trained", "cold_start"])
    parser.add_argument("--mode", default="swarm", choices=["swarm", "single", "forced_parallel"])
    parser.add_argument("--decoding", default="greedy", choices=["greedy", "sampled"])
    args = parser.parse_args()

    rows_by_width: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for run in args.runs:
        file = run / "eval" / f"{args.phase}-{args.mode}-{args.decoding}.tasks.json"
        if not file.is_file():
            sys.exit(f"There is no {file}: give the folder of a run that has finished.")
        for row in json.loads(file.read_text()):
            # A failure says nothing about the policy.
            if row["status"] != "failed":
                rows_by_width[row["num_parts"]].append(row)

    print("| width | episodes | delegates | " + " | ".join(MEANS.values()) + " |")
    print("|" + " --- |" * (3 + len(MEANS)))
    for width in sorted(rows_by_width):
        rows = rows_by_width[width]
        delegates = fmean(row["num_assigned"] > 0 for row in rows)
        means = [fmean(row[field] for row in rows) for field in MEANS]
        cells = " | ".join(f"{mean:.3g}" for mean in means)
        print(f"| {width} | {len(rows)} | {delegates:.0%} | {cells} |")


if __name__ == "__main__":
    main()
