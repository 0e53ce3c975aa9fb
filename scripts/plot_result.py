#!/usr/bin/env python3
"""Draw a finished run as one picture: learning curves on the left, held-out results on the right.

In: a run folder and, where there is one, its control's (RUN-single). Out: a PNG that is small enough to commit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# Okabe and Ito: told apart with any colour vision, and in grey.
SWARM, SINGLE, COLD, FORCED = "#0072B2", "#D55E00", "#999999", "#56B4E9"
CURVES = (("outcome/score", "score"), ("swarm/critical_steps", "critical steps"))
BARS = (
    ("cold_start", "swarm", "cold start", COLD),
    ("cold_start", "forced_parallel", "cold start,\nforced parallel", FORCED),
    ("trained", "swarm", "trained\nswarm", SWARM),
    ("trained", "single", "trained\nsingle", SINGLE),
)


def main() -> None:
    args = parse(sys.argv[1:])
    single = args.single or args.run.with_name(f"{args.run.name}-single")
    summary_file = args.run / "summary.json"
    if not summary_file.is_file():
        sys.exit(f"{args.run} has no summary.json: give the folder of a run that has finished.")
    summary = json.loads(summary_file.read_text())
    figure = draw(summary, read_curves(args.run), read_curves(single), args.decoding)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=args.dpi)
    print(f"{args.output} ({args.output.stat().st_size / 1000:.0f} kB)")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        default=Path("runs/quickstart"),
        help="default: runs/quickstart",
    )
    parser.add_argument("--single", type=Path, help="the control's folder; default: RUN-single")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("docs/figures/result.png"),
        help="default: docs/figures/result.png",
    )
    parser.add_argument(
        "--decoding", choices=("greedy", "sampled"), default="greedy", help="of the bars"
    )
    parser.add_argument("--dpi", type=int, default=110)
    return parser.parse_args(arguments)


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) of the training episodes; empty without a run there."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {name: [(m["step"] + 1, m[name]) for m in lines if name in m] for name, _ in CURVES}


def draw(summary: dict[str, Any], swarm: Any, single: Any, decoding: str) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05))
    axes = left.subplots(2, 1, sharex=True)
    for ax, (name, label) in zip(axes, CURVES, strict=True):
        for curves, color, style, who in (
            (swarm, SWARM, "-", "swarm"),
            (single, SINGLE, "--", "single agent"),
        ):
            if curves[name]:
                ax.plot(
                    *zip(*curves[name], strict=True),
                    color=color,
                    linestyle=style,
                    linewidth=2,
                    label=who,
                )
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
        plain(ax)
    axes[0].set_title("Training episodes", loc="left", fontsize=11)
    axes[0].set_ylim(top=1.02)
    axes[0].legend(frameon=False, loc="lower right")
    axes[1].set_xlabel("RL step")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    draw_bars(right.subplots(), summary, decoding)
    return figure


def draw_bars(ax: Any, summary: dict[str, Any], decoding: str) -> None:
    """Critical steps as bars; the item-F1 (or, in other environments, the score) above them."""
    found = [
        (label, color, result[decoding])
        for phase, mode, label, color in BARS
        if decoding in (result := summary["heldout"].get(phase, {}).get(mode, {}))
    ]
    if not found:
        sys.exit(f"The summary has no {decoding} results; choose another --decoding.")
    quality = "item_f1" if all("item_f1" in values for _, _, values in found) else "score"
    steps = [values["critical_steps"] for _, _, values in found]
    bars = ax.bar(
        [label for label, _, _ in found], steps, color=[color for _, color, _ in found], width=0.65
    )
    name = {"item_f1": "item-F1", "score": "score"}[quality]
    texts = [f"{v['critical_steps']:.1f} steps\n{name} {v[quality]:.3f}" for _, _, v in found]
    ax.bar_label(bars, texts, padding=3, fontsize=9)
    ax.set_ylim(0, max(*steps, 1) * 1.2)
    ax.set_ylabel("critical steps (fewer is better)")
    num = found[0][2]["num_tasks"]
    ax.set_title(
        f"Held-out tasks: {summary['split']}, {num:.0f} tasks, {decoding}", loc="left", fontsize=11
    )
    plain(ax)


def plain(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)


if __name__ == "__main__":
    main()
