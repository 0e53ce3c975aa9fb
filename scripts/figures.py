#!/usr/bin/env python3
"""Draw what a trained swarm's parallelism is worth, and print the numbers as Markdown.

time_to_target.png: the quality that is reached within a time, and the time that a quality takes, against the single
agent in RUN-single. width.png: steps and latency when at most w subagents run at once.

In: finished runs, the seeds of one config, each with its control. The first picture is drawn from the rows in their
eval/ folders; the second evaluates each swarm once and keeps its rows there.

    scripts/figures.py runs/quickstart -o docs/figures
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from plot_result import SINGLE, SWARM, plain

from parl.evaluation.budgets import (
    Band,
    at_width,
    cost_to_reach,
    points,
    quality_within,
    times_less,
    width_rows,
)
from parl.evaluation.plan import EvalRequest, plan_run, run_plan
from parl.evaluation.statistics import Rows, estimate, measured, shared_tasks, table
from parl.report.evaluation import interval
from parl.runs.folder import write_atomic

TARGETS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
WIDTHS = (1, 2, 4, 8, 16)
COSTS = (("virtual_latency_s", "virtual s"), ("critical_steps", "critical steps"))


def main() -> None:
    args = parse(sys.argv[1:])
    singles = args.single or [run.with_name(f"{run.name}-single") for run in args.runs]
    if len(singles) != len(args.runs):
        sys.exit(
            f"{len(args.runs)} runs, but {len(singles)} single agents: give --single one for each run, in order."
        )
    swarm = [heldout(run, "swarm", args.decoding) for run in args.runs]
    single = [heldout(run, "single", args.decoding) for run in singles]
    tasks = shared_tasks([*swarm, *single])
    if not tasks:
        sys.exit("These runs have no held-out task in common.")
    rows = [row for run in (*swarm, *single) for row in measured(run)]
    quality = "item_f1" if all("item_f1" in row for row in rows) else "score"
    args.output.mkdir(parents=True, exist_ok=True)
    print("\n".join(targets_table(swarm, single, tasks, quality)), end="\n\n")
    save(draw_targets(swarm, single, tasks, quality), args.output / "time_to_target.png", args.dpi)
    widths = [width_of(run, args.decoding) for run in args.runs]
    tasks = shared_tasks([*single, *widths])
    print("\n" + "\n".join(width_table(widths, tasks, quality)), end="\n\n")
    save(draw_width(widths, single, tasks), args.output / "width.png", args.dpi)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="swarms, one for each seed"
    )
    parser.add_argument(
        "--single", type=Path, nargs="+", metavar="RUN", help="their controls; default: RUN-single"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("docs/figures"),
        help="folder; default: docs/figures",
    )
    parser.add_argument("--decoding", choices=("greedy", "sampled"), default="greedy")
    parser.add_argument("--dpi", type=int, default=110)
    return parser.parse_args(arguments)


def heldout(run: Path, mode: str, decoding: str) -> Rows:
    """The rows of the run's last evaluation."""
    file = run / "eval" / f"trained-{mode}-{decoding}.tasks.json"
    if not file.is_file():
        sys.exit(
            f"There is no {file}: give finished runs of a swarm, each with a finished control beside it."
        )
    return list(json.loads(file.read_text()))


def width_of(run: Path, decoding: Any) -> Rows:
    """The rows of the trained swarm at each width: from its eval/ folder, or measured now and kept there."""
    plan = plan_run(run, EvalRequest())
    file = run / "eval" / f"{plan.name}-{decoding}.widths.json"
    if not file.is_file():
        (_, episodes), *_ = run_plan(plan, (decoding,))
        write_atomic(file, json.dumps(width_rows(episodes, plan.config.clock, WIDTHS), indent=1))
    return list(json.loads(file.read_text()))


def save(figure: Any, path: Path, dpi: int) -> None:
    figure.savefig(path, dpi=dpi)
    print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


# --- time to a target ------------------------------------------------------------------------------------------------


def targets_table(
    swarm: Sequence[Rows], single: Sequence[Rows], tasks: Sequence[str], quality: str
) -> Iterator[str]:
    yield f"Budget for a mean {quality} (seeds: {len(swarm)}, tasks: {len(tasks)}), 95 % intervals:"
    yield ""
    yield (
        "| target | "
        + " | ".join(f"swarm, {unit} | single, {unit} | times less" for _, unit in COSTS)
        + " |"
    )
    yield "|" + " --- |" * (1 + 3 * len(COSTS))
    bands = []
    for cost, _ in COSTS:
        own, other = (points(runs, tasks, quality, cost) for runs in (swarm, single))
        bands += [
            cost_to_reach(own, TARGETS),
            cost_to_reach(other, TARGETS),
            times_less(own, other, TARGETS),
        ]
    for k, target in enumerate(TARGETS):
        yield f"| {target:g} | " + " | ".join(cell(band, k) for band in bands) + " |"


def cell(band: Band, k: int) -> str:
    if not np.isfinite(band.y[k]):
        return "not reached" if np.isinf(band.y[k]) else ""
    if np.isnan(band.low[k]):
        return f"{band.y[k]:.1f}"
    return f"{band.y[k]:.1f} ({band.low[k]:.1f}..{band.high[k]:.1f})".replace("inf", "∞")


def draw_targets(
    swarm: Sequence[Rows], single: Sequence[Rows], tasks: Sequence[str], quality: str
) -> Any:
    figure, (left, right) = new_figure()
    own, other = (points(runs, tasks, quality, "virtual_latency_s") for runs in (swarm, single))
    limits = np.linspace(0, np.quantile(other.cost, 0.99), 200)
    for found, color, style, who in (
        (own, SWARM, "-", "swarm"),
        (other, SINGLE, "--", "single agent"),
    ):
        draw_band(left, quality_within(found, limits), color, style, who)
        reach = cost_to_reach(found, np.arange(0.05, 0.96, 0.01))
        draw_band(right, reach, color, style, who)
    name = {"item_f1": "item-F1"}.get(quality, quality)
    left.set(xlabel="deadline of every task (virtual s)", ylabel=f"mean {name}", ylim=(0, 1.02))
    left.set_title("Quality within a time", loc="left", fontsize=11)
    left.legend(frameon=False, loc="lower right")
    right.set(xlabel=f"target {name}", ylabel="time (virtual s)", ylim=(0, None))
    right.set_title("Time to a quality", loc="left", fontsize=11)
    ratios = times_less(own, other, TARGETS[:-1])
    heights = cost_to_reach(other, TARGETS[:-1]).y
    for target, times, height in zip(ratios.x, ratios.y, heights, strict=True):
        if np.isfinite(times):
            right.annotate(
                f"{times:.1f}x",
                (target, height),
                (0, 6),
                textcoords="offset points",
                ha="right",
                fontsize=9,
            )
    return figure


def draw_band(ax: Any, band: Band, color: str, style: str, label: str) -> None:
    known = np.isfinite(band.y) & np.isfinite(band.low) & np.isfinite(band.high)
    x, y, low, high = (values[known] for values in (band.x, band.y, band.low, band.high))
    ax.plot(x, y, color=color, linestyle=style, linewidth=2, label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def new_figure() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for ax in axes:
        plain(ax)
    return figure, axes


# --- width -----------------------------------------------------------------------------------------------------------


def width_table(runs: Sequence[Rows], tasks: Sequence[str], quality: str) -> Iterator[str]:
    yield f"At most w subagents at once (seeds: {len(runs)}, tasks: {len(tasks)}), 95 % intervals:"
    yield ""
    yield f"| w | {quality} | steps | virtual s |"
    yield "|" + " --- |" * 4
    for width in WIDTHS:
        here = [at_width(rows, width) for rows in runs]
        cells = [(quality, 3), ("steps", 2), ("virtual_latency_s", 2)]
        yield (
            f"| {width} | "
            + " | ".join(interval(estimate(table(here, tasks, k)), n) for k, n in cells)
            + " |"
        )


def draw_width(runs: Sequence[Rows], single: Sequence[Rows], tasks: Sequence[str]) -> Any:
    figure, axes = new_figure()
    panels = (
        ("steps", "critical_steps", "steps, one after the other"),
        ("virtual_latency_s",) * 2 + ("virtual s",),
    )
    for ax, (name, of_single, label) in zip(axes, panels, strict=True):
        found = [estimate(table([at_width(rows, w) for rows in runs], tasks, name)) for w in WIDTHS]
        y = np.array([e["mean"] for e in found], dtype=float)
        low, high = (
            np.array([e["mean"] if e[k] is None else e[k] for e in found], dtype=float)
            for k in ("low", "high")
        )
        draw_band(ax, Band(np.array(WIDTHS, dtype=float), y, low, high), SWARM, "-", "swarm")
        ax.plot(WIDTHS, y, "o", color=SWARM)
        ax.axhline(
            table(single, tasks, of_single).mean(),
            color=SINGLE,
            linestyle="--",
            linewidth=2,
            label="single agent",
        )
        ax.set_xscale("log", base=2)
        ax.set_xticks(WIDTHS, [str(w) for w in WIDTHS])
        ax.set(xlabel="subagents at once, at most", ylabel=label, ylim=(0, None))
    axes[0].legend(frameon=False)
    axes[0].set_title("The same answers, at most w subagents at once", loc="left", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
