#!/usr/bin/env python3
"""Held-out results by the width of the tasks: when does the policy delegate, and what does it cost?

In: finished runs. Out: a table with one line per number of independent parts (rows to find), over all the runs' tasks.

    scripts/by_width.py runs/adaptive --decoding greedy
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--phase", default="trained", choices=["trained", "cold_start"])
    parser.add_argument("--mode", default="swarm", choices=["swarm", "single", "forced_parallel"])
    parser.add_argument("--decoding", default="greedy", choices=["greedy", "sampled"])
    args = parser.parse_args()
    widths: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for run in args.runs:
        for row in json.loads(
            (run / "eval" / f"{args.phase}-{args.mode}-{args.decoding}.tasks.json").read_text()
        ):
            if row["status"] != "failed":
                widths[row["num_parts"]].append(row)
    print(
        "| width | episodes | delegates | subagents | item-F1 | critical steps | total steps | tokens |"
    )
    print("|" + " --- |" * 8)
    for width in sorted(widths):
        rows = widths[width]
        delegates = fmean(r["num_assigned"] > 0 for r in rows)
        cells = [
            fmean(r[k] for r in rows)
            for k in ("num_assigned", "item_f1", "critical_steps", "total_steps", "tokens")
        ]
        shown = " | ".join(f"{c:.3g}" for c in cells)
        print(f"| {width} | {len(rows)} | {delegates:.0%} | {shown} |")


if __name__ == "__main__":
    main()
