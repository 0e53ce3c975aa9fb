#!/usr/bin/env python3
"""Draw metrics of the steps of an ablation: one panel for each metric, one line for each variant, all seeds' range.

In: the folder of an ablation (`parl ablate`). Out: a PNG that is small enough to commit.

    scripts/plot_ablation.py runs/ablate-roles --metrics outcome/score outcome/subtask -o docs/figures/roles.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from plot_result import plain

from parl.runs.folder import read_metrics

# Okabe and Ito: told apart with any colour vision; dashes do it in grey.
STYLES = (
    ("#0072B2", "-"),
    ("#009E73", "--"),
    ("#D55E00", ":"),
    ("#CC79A7", "-."),
    ("#56B4E9", (0, (5, 1))),
)


def main() -> None:
    args = parse(sys.argv[1:])
    file = args.ablation / "ablation.json"
    if not file.is_file():
        sys.exit(
            f"{args.ablation} has no ablation.json: give the folder of an ablation that has finished."
        )
    variants = {
        v["label"]: args.ablation / v["folder"] for v in json.loads(file.read_text())["variants"]
    }
    if len(variants) > len(STYLES):
        sys.exit(
            f"{args.ablation} has {len(variants)} variants; at most {len(STYLES)} can be told apart."
        )
    figure = draw(variants, args.metrics, args.smooth)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=args.dpi)
    print(f"{args.output} ({args.output.stat().st_size / 1000:.0f} kB)")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ablation", type=Path)
    parser.add_argument(
        "--metrics", nargs="+", default=["outcome/score", "outcome/subtask"], metavar="NAME"
    )
    parser.add_argument(
        "--smooth", type=int, default=3, help="steps of the running mean; default: 3"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--dpi", type=int, default=110)
    return parser.parse_args(arguments)


def curve(run: Path, metric: str, smooth: int) -> np.ndarray[Any, Any]:
    """The metric at each step (nan where the step has none), as a mean over the last `smooth` steps that have it."""
    values = np.array([row.get(metric, np.nan) for row in read_metrics(run)], dtype=float)
    means = [values[max(0, i + 1 - smooth) : i + 1] for i in range(len(values))]
    return np.array([np.nanmean(part) if np.isfinite(part).any() else np.nan for part in means])


def draw(variants: dict[str, Path], metrics: list[str], smooth: int) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(metrics), figsize=(4.75 * len(metrics), 3.6), layout="constrained", squeeze=False
    )
    for ax, metric in zip(axes[0], metrics, strict=True):
        plain(ax)
        for (label, folder), (color, style) in zip(variants.items(), STYLES, strict=False):
            runs = [
                curve(run.parent, metric, smooth)
                for run in sorted(folder.glob("seed_*/metrics.jsonl"))
            ]
            length = min(map(len, runs))
            seeds = np.array([run[:length] for run in runs])
            steps = np.arange(1, length + 1)
            ax.plot(steps, seeds.mean(0), color=color, linestyle=style, linewidth=2, label=label)
            ax.fill_between(steps, seeds.min(0), seeds.max(0), color=color, alpha=0.15, linewidth=0)
        ax.set(xlabel="step", ylabel=metric)
    axes[0][-1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
