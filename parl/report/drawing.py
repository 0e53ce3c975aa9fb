"""Pictures of runs: PNG files that are small enough to commit.

matplotlib is imported where a figure is made, so that nothing else pays for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parl.core.errors import CheckpointError
from parl.evaluation.budgets import Band, Points, cost_ratio, cost_to_reach, quality_within
from parl.evaluation.statistics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
SWARM, SINGLE, COLD_START, FORCED = "#0072B2", "#D55E00", "#999999", "#56B4E9"

CURVES = (("outcome/score", "score (0 to 1)"), ("swarm/critical_steps", "critical steps"))
BARS = (
    ("cold_start", "swarm", "cold start", COLD_START),
    ("cold_start", "forced_parallel", "cold start,\nforced to\ndelegate", FORCED),
    ("trained", "swarm", "trained\nswarm", SWARM),
    ("trained", "single", "trained\nsingle agent", SINGLE),
)

Curve = Sequence[tuple[int, float]]
"""(step, value) pairs."""


def quality_name(metric: str) -> str:
    """Example: "item_f1" -> "item-F1"."""
    return {"item_f1": "item-F1"}.get(metric, metric)


def new_figure(num_panels: int = 0, *, width: float = 9.5, height: float = 3.6) -> Figure:
    """Make a figure with `num_panels` tidy axes in one row; sizes in inches."""
    # Not pyplot: it would choose a window system and hold every figure until the process ends.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if num_panels:
        for axes in figure.subplots(1, num_panels, squeeze=False)[0]:
            tidy(axes)
    return figure


def tidy(axes: Axes) -> None:
    """Remove what carries no data: the upper and right frame; a light grid instead."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path, dpi: int) -> str:
    """Write a figure as PNG. Returns a line with the path and the size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return f"{path} ({path.stat().st_size / 1000:.0f} kB)"


# --- one run: learning curves and held-out results ---


def draw_result(
    title: str,
    summary: Mapping[str, Any],
    swarm: Mapping[str, Curve],
    single: Mapping[str, Curve],
    decoding: str,
) -> Figure:
    """Draw learning curves on the left, held-out results on the right.

    Args:
        title: stands above the whole picture.
        summary: the content of the run's summary.json.
        swarm: metric -> curve of the run.
        single: the same of the single agent's run; empty without one.
        decoding: of the held-out results, `greedy` or `sampled`.
    """
    figure = new_figure(height=4.6)
    figure.suptitle(title, fontsize=12)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05))

    panels = left.subplots(2, 1, sharex=True)
    for axes, (metric, label) in zip(panels, CURVES, strict=True):
        _draw_curve(axes, swarm.get(metric, ()), SWARM, "-", "swarm")
        _draw_curve(axes, single.get(metric, ()), SINGLE, "--", "single agent")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        tidy(axes)
    panels[0].set_title("Training episodes, mean of each RL step", loc="left", fontsize=11)
    panels[0].set_ylim(top=1.02)
    panels[0].legend(frameon=False, loc="lower right")
    panels[1].set_xlabel("RL step")
    panels[1].xaxis.get_major_locator().set_params(integer=True)

    _draw_bars(right.subplots(), summary, decoding)
    return figure


def _draw_curve(axes: Axes, curve: Curve, color: str, style: str, label: str) -> None:
    if not curve:
        return
    steps, values = zip(*curve, strict=True)
    axes.plot(steps, values, color=color, linestyle=style, linewidth=2, label=label)


def _draw_bars(axes: Axes, summary: Mapping[str, Any], decoding: str) -> None:
    """Draw critical steps as bars, with the item-F1 (or the score) above them."""
    labels, colors, results = [], [], []
    for phase, mode, label, color in BARS:
        decodings = summary["heldout"].get(phase, {}).get(mode, {})
        if decoding in decodings:
            labels.append(label)
            colors.append(color)
            results.append(decodings[decoding])
    if not results:
        raise CheckpointError(
            f"The summary has no {decoding} results; choose another with --decoding."
        )

    quality = "item_f1" if all("item_f1" in result for result in results) else "score"
    steps = [result["critical_steps"] for result in results]
    texts = [
        f"{result['critical_steps']:.1f} steps\n{quality_name(quality)} {result[quality]:.3f}"
        for result in results
    ]
    bars = axes.bar(labels, steps, color=colors, width=0.65)
    axes.bar_label(bars, texts, padding=3, fontsize=9)
    axes.set_ylim(0, max(*steps, 1) * 1.2)
    axes.set_ylabel("critical steps per episode: turns one after another")

    title = f"Held-out tasks: {summary['split']}, {results[0]['num_tasks']:.0f} tasks, {decoding}"
    axes.set_title(title, loc="left", fontsize=11)
    tidy(axes)


# --- several seeds: quality against time ---


def draw_time_to_target(
    swarm: Points, single: Points, quality: str, targets: Sequence[float]
) -> Figure:
    """Draw the quality within a time on the left, and its inverse on the right.

    Args:
        swarm, single: episodes as (quality, virtual seconds).
        quality: the name of the quality, for the labels.
        targets: qualities at which the ratio of the two times is written.
    """
    figure = new_figure(2)
    left, right = figure.axes
    # The slowest 1 % of the single agent's episodes would stretch the axis over everything else.
    deadlines = np.linspace(0, np.quantile(single.cost, 0.99), 200).tolist()
    qualities = np.arange(0.05, 0.96, 0.01).tolist()
    for points, color, style, label in (
        (swarm, SWARM, "-", "swarm"),
        (single, SINGLE, "--", "single agent"),
    ):
        draw_band(left, quality_within(points, deadlines), color, style, label)
        draw_band(right, cost_to_reach(points, qualities), color, style, label)

    name = quality_name(quality)
    left.set(xlabel="deadline of every task (virtual seconds)", ylabel=f"mean {name}")
    left.set_ylim(0, 1.02)
    left.set_title("Quality that is reached within a time", loc="left", fontsize=11)
    left.legend(frameon=False, loc="lower right")

    right.set(xlabel=f"mean {name} to reach", ylabel="time (virtual seconds)", ylim=(0, None))
    right.set_title("Time that a quality takes, and the ratio", loc="left", fontsize=11)
    ratios = cost_ratio(swarm, single, targets)
    heights = cost_to_reach(single, targets).y
    for target, ratio, height in zip(ratios.x, ratios.y, heights, strict=True):
        if np.isfinite(ratio):
            right.annotate(
                f"{ratio:.1f}x",
                (target, height),
                (0, 6),
                textcoords="offset points",
                ha="right",
                fontsize=9,
            )
    return figure


def draw_width(
    widths: Sequence[int], panels: Sequence[tuple[Band, float, str]], title: str
) -> Figure:
    """Draw costs against the number of subagents that may run at once.

    Args:
        widths: the limits.
        panels: for each cost its band over `widths`, the single agent's mean, and its label.
        title: stands above the first panel.
    """
    figure = new_figure(len(panels))
    for axes, (band, single_mean, label) in zip(figure.axes, panels, strict=True):
        draw_band(axes, band, SWARM, "-", "swarm")
        axes.plot(widths, band.y, "o", color=SWARM)
        axes.axhline(single_mean, color=SINGLE, linestyle="--", linewidth=2, label="single agent")
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.set(xlabel="subagents at once, at most", ylabel=label, ylim=(0, None))
    figure.axes[0].legend(frameon=False)
    figure.axes[0].set_title(title, loc="left", fontsize=11)
    return figure


def draw_band(axes: Axes, band: Band, color: str, style: str, label: str) -> None:
    """Draw a curve with its 95 % interval, where both are finite."""
    finite: Any = np.isfinite(band.y) & np.isfinite(band.low) & np.isfinite(band.high)
    x: Floats = band.x[finite]
    axes.plot(x, band.y[finite], color=color, linestyle=style, linewidth=2, label=label)
    axes.fill_between(x, band.low[finite], band.high[finite], color=color, alpha=0.2, linewidth=0)
