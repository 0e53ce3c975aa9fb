"""`parl figures`: pictures and tables of what a trained swarm's parallelism is worth.

Pictures:
    result.png          learning curves and held-out results of the first run
    time_to_target.png  the quality that is reached within a time, and the time that a quality takes
    width.png           steps and latency when at most w subagents run at once

Runs are finished swarms, the seeds of one config, each with its single agent in RUN-single. The first
two pictures are drawn from files of the runs. The third evaluates each swarm once and keeps the rows in
its eval/ folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parl.core.errors import CheckpointError, ConfigError
from parl.core.types import Decoding
from parl.evaluation.budgets import (
    Band,
    at_width,
    cost_ratio,
    cost_to_reach,
    points,
    width_rows,
)
from parl.evaluation.plan import EvalRequest, plan_run, run_plan
from parl.evaluation.statistics import Rows, estimate, measured, shared_tasks, table
from parl.report import drawing
from parl.report.drawing import CURVES, Curve
from parl.report.evaluation import interval
from parl.runs.folder import read_metrics, read_resolved, write_atomic

PICTURES = ("result", "time_to_target", "width")
TARGETS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
WIDTHS = (1, 2, 4, 8, 16)
COSTS = (("virtual_latency_s", "virtual s"), ("critical_steps", "critical steps"))


@dataclass(frozen=True, slots=True)
class FiguresRequest:
    """What to draw, from which runs, and where to.

    Attributes:
        runs: swarms, one for each seed.
        singles: their single agents, in the same order; empty = RUN-single of each.
        output: folder of the pictures.
        pictures: names from PICTURES.
        decoding: of the held-out episodes.
        dpi: pixels per inch.
    """

    runs: Sequence[Path]
    singles: Sequence[Path] = ()
    output: Path = Path("figures")
    pictures: Sequence[str] = PICTURES
    decoding: Decoding = "greedy"
    dpi: int = 110


def write_figures(request: FiguresRequest) -> Iterator[str]:
    """Draw the pictures. Yields lines of Markdown: tables, and where each picture is.

    Raises:
        ConfigError: no such picture, or another number of single agents than of runs.
        CheckpointError: a run has not finished, or lacks a single agent.
    """
    for name in request.pictures:
        if name not in PICTURES:
            raise ConfigError(f"There is no picture '{name}'; choose from {', '.join(PICTURES)}.")
    runs = request.runs
    singles = request.singles or [run.with_name(f"{run.name}-single") for run in runs]
    if len(singles) != len(runs):
        raise ConfigError(
            f"{len(runs)} runs, but {len(singles)} single agents: "
            "give --single once for each run, in order."
        )

    if "result" in request.pictures:
        yield from _result(runs[0], singles[0], request)
    if not {"time_to_target", "width"} & set(request.pictures):
        return

    single = [_heldout_rows(run, "single", request.decoding) for run in singles]
    if "time_to_target" in request.pictures:
        yield from _time_to_target(single, request)
    if "width" in request.pictures:
        yield from _width(single, request)


def _result(run: Path, single: Path, request: FiguresRequest) -> Iterator[str]:
    summary_file = run / "summary.json"
    if not summary_file.is_file():
        raise CheckpointError(
            f"{run} has no summary.json: give the folder of a run that has finished."
        )
    summary = json.loads(summary_file.read_text())
    name = read_resolved(run)["name"]
    title = f"{name}, seed {summary['seed']}: a swarm and a single agent"
    curves, single_curves = _curves(run), _curves(single)
    figure = drawing.draw_result(title, summary, curves, single_curves, request.decoding)
    yield drawing.save(figure, request.output / "result.png", request.dpi)


def _curves(run: Path) -> dict[str, Curve]:
    """Metric -> curve over the RL steps, counted from 1; empty where there is no run."""
    lines = read_metrics(run)
    curves: dict[str, Curve] = {}
    for name, _ in CURVES:
        curves[name] = [(int(line["step"]) + 1, line[name]) for line in lines if name in line]
    return curves


def _heldout_rows(run: Path, mode: str, decoding: str) -> Rows:
    """Read the rows of the run's last evaluation."""
    file = run / "eval" / f"trained-{mode}-{decoding}.tasks.json"
    if not file.is_file():
        raise CheckpointError(
            f"There is no {file}: give finished runs of a swarm, each with a finished single agent "
            "in RUN-single or in --single. Without one, type: parl figures RUN --only result"
        )
    return list(json.loads(file.read_text()))


def _shared_tasks(runs: Sequence[Rows]) -> list[str]:
    tasks = shared_tasks(runs)
    if not tasks:
        raise CheckpointError("These runs have no held-out task in common.")
    return tasks


def _quality(runs: Sequence[Rows]) -> str:
    """`item_f1` where every episode has it, else `score`."""
    rows = [row for run in runs for row in measured(run)]
    return "item_f1" if all("item_f1" in row for row in rows) else "score"


# --- time to a target ---


def _time_to_target(single: Sequence[Rows], request: FiguresRequest) -> Iterator[str]:
    swarm = [_heldout_rows(run, "swarm", request.decoding) for run in request.runs]
    tasks = _shared_tasks([*swarm, *single])
    quality = _quality([*swarm, *single])

    yield from targets_table(swarm, single, tasks, quality)
    yield ""
    swarm_points = points(swarm, tasks, quality, "virtual_latency_s")
    single_points = points(single, tasks, quality, "virtual_latency_s")
    # The ratio at the last target is left out: its label would leave the axes.
    figure = drawing.draw_time_to_target(swarm_points, single_points, quality, TARGETS[:-1])
    yield drawing.save(figure, request.output / "time_to_target.png", request.dpi)


def targets_table(
    swarm: Sequence[Rows], single: Sequence[Rows], tasks: Sequence[str], quality: str
) -> Iterator[str]:
    """Yield the budget that each target quality takes, as a Markdown table."""
    yield f"Budget for a mean {quality} (seeds: {len(swarm)}, tasks: {len(tasks)}), 95 % intervals:"
    yield ""
    titles = [f"swarm, {unit} | single, {unit} | single / swarm" for _, unit in COSTS]
    yield "| target | " + " | ".join(titles) + " |"
    yield "|" + " --- |" * (1 + 3 * len(COSTS))

    bands = []
    for cost, _ in COSTS:
        swarm_points = points(swarm, tasks, quality, cost)
        single_points = points(single, tasks, quality, cost)
        bands.append(cost_to_reach(swarm_points, TARGETS))
        bands.append(cost_to_reach(single_points, TARGETS))
        bands.append(cost_ratio(swarm_points, single_points, TARGETS))
    for k, target in enumerate(TARGETS):
        yield f"| {target:g} | " + " | ".join(_cell(band, k) for band in bands) + " |"


def _cell(band: Band, k: int) -> str:
    """Example: `4.4 (4.1..4.6)`."""
    value, low, high = band.y[k], band.low[k], band.high[k]
    if np.isinf(value):
        return "not reached"
    if np.isnan(value):
        return ""
    if np.isnan(low):
        return f"{value:.1f}"
    return f"{value:.1f} ({low:.1f}..{high:.1f})".replace("inf", "∞")


# --- width ---


def _width(single: Sequence[Rows], request: FiguresRequest) -> Iterator[str]:
    runs = [_rows_at_widths(run, request.decoding) for run in request.runs]
    tasks = _shared_tasks([*single, *runs])
    quality = _quality([*runs, *single])

    yield ""
    yield from width_table(runs, tasks, quality)
    yield ""
    panels = []
    for metric, single_metric, label in (
        ("steps", "critical_steps", "steps per episode, one after another"),
        ("virtual_latency_s", "virtual_latency_s", "latency (virtual seconds)"),
    ):
        single_mean = float(table(single, tasks, single_metric).mean())
        panels.append((_width_band(runs, tasks, metric), single_mean, label))
    title = "The same answers, at most w subagents at once"
    figure = drawing.draw_width(WIDTHS, panels, title)
    yield drawing.save(figure, request.output / "width.png", request.dpi)


def _rows_at_widths(run: Path, decoding: Decoding) -> Rows:
    """The trained swarm's rows at each width: from its eval/ folder, or measured now and kept there."""
    plan = plan_run(run, EvalRequest())
    file = run / "eval" / f"{plan.name}-{decoding}.widths.json"
    if not file.is_file():
        (_, episodes), *_ = run_plan(plan, (decoding,))
        rows = width_rows(episodes, plan.config.clock, WIDTHS)
        write_atomic(file, json.dumps(rows, indent=1))
    return list(json.loads(file.read_text()))


def _width_band(runs: Sequence[Rows], tasks: Sequence[str], metric: str) -> Band:
    """A metric's mean and interval over the widths."""
    means, lows, highs = [], [], []
    for width in WIDTHS:
        values = table([at_width(rows, width) for rows in runs], tasks, metric)
        result = estimate(values)
        mean, low, high = result["mean"], result["low"], result["high"]
        # Where all values are equal there is no interval: the band is a line there.
        means.append(mean)
        lows.append(mean if low is None else low)
        highs.append(mean if high is None else high)
    return Band(
        np.array(WIDTHS, dtype=float),
        np.array(means, dtype=float),
        np.array(lows, dtype=float),
        np.array(highs, dtype=float),
    )


def width_table(runs: Sequence[Rows], tasks: Sequence[str], quality: str) -> Iterator[str]:
    """Yield quality and costs under each limit of width, as a Markdown table."""
    yield f"At most w subagents at once (seeds: {len(runs)}, tasks: {len(tasks)}), 95 % intervals:"
    yield ""
    yield f"| w | {quality} | steps | virtual s |"
    yield "|" + " --- |" * 4
    for width in WIDTHS:
        rows = [at_width(run, width) for run in runs]
        cells = []
        for metric, digits in ((quality, 3), ("steps", 2), ("virtual_latency_s", 2)):
            cells.append(interval(estimate(table(rows, tasks, metric)), digits))
        yield f"| {width} | " + " | ".join(cells) + " |"
