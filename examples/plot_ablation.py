#!/usr/bin/env python3
"""Draw how metrics of an ablation develop: a panel for each metric, a line for each variant.

A line is the mean over the seeds, the band around it their range. The argument is the folder of a
finished `parl ablate`; the output is a PNG.

    python examples/plot_ablation.py runs/ablate-roles --metrics outcome/score outcome/subtask -o roles.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parl.report.drawing import new_figure, save
from parl.runs.folder import read_metrics

# Okabe and Ito's palette: told apart with any colour vision; the dashes do it in grey.
STYLES: Sequence[tuple[str, Any]] = (
    ("#0072B2", "-"),
    ("#009E73", "--"),
    ("#D55E00", ":"),
    ("#CC79A7", "-."),
    ("#56B4E9", (0, (5, 1))),
)


def main() -> None:
    args = parse_arguments(sys.argv[1:])
    file = args.ablation / "ablation.json"
    if not file.is_file():
        sys.exit(f"{args.ablation} has no ablation.json: give the folder of a finished ablation.")
    variants = {}
    for variant in json.loads(file.read_text())["variants"]:
        variants[variant["label"]] = args.ablation / variant["folder"]
    if len(variants) > len(STYLES):
        sys.exit(
            f"{args.ablation} has {len(variants)} variants; "
            f"at most {len(STYLES)} can be told apart."
        )
    figure = draw(variants, args.metrics, args.smooth)
    print(save(figure, args.output, args.dpi))


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
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


def smoothed(run: Path, metric: str, smooth: int) -> NDArray[np.float64]:
    """Return a metric over the steps, each the mean of the last `smooth` steps that have it.

    A step is nan where none of them has it.
    """
    values = np.array([row.get(metric, np.nan) for row in read_metrics(run)], dtype=float)
    means = np.full(len(values), np.nan)
    for i in range(len(values)):
        window = values[max(0, i + 1 - smooth) : i + 1]
        if np.isfinite(window).any():
            means[i] = np.nanmean(window)
    return means


def draw(variants: Mapping[str, Path], metrics: Sequence[str], smooth: int) -> Any:
    """Draw a matplotlib figure of the metrics; `variants` maps a label to the folder of its seeds."""
    figure = new_figure(len(metrics), width=4.75 * len(metrics))
    for axes, metric in zip(figure.axes, metrics, strict=True):
        for (label, folder), (color, style) in zip(variants.items(), STYLES, strict=False):
            runs = [file.parent for file in sorted(folder.glob("seed_*/metrics.jsonl"))]
            curves = [smoothed(run, metric, smooth) for run in runs]
            # A seed that was stopped early ends the line: a mean over fewer seeds would jump.
            length = min(len(curve) for curve in curves)
            values = np.array([curve[:length] for curve in curves])
            steps = np.arange(1, length + 1)
            axes.plot(steps, values.mean(0), color=color, linestyle=style, linewidth=2, label=label)
            axes.fill_between(
                steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0
            )
        axes.set(xlabel="RL step", ylabel=metric)
    figure.axes[0].set_title(
        f"Training episodes, mean of {smooth} steps; bands: range of the seeds",
        loc="left",
        fontsize=10,
    )
    figure.axes[-1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
