"""Quality under budgets: within a deadline, the budget that a quality takes, and a limit on width.

Everything is computed from rows (`parl.evaluation.metrics.heldout_rows`) or from the traces of stored
episodes, without a model, so a curve can be computed again from the files of a run. Bands are 95 %
bootstrap intervals over tasks (and seeds), with the draws of `parl.evaluation.statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parl.config.roles import ClockConfig
from parl.core.types import AgentTrace, Episode
from parl.evaluation.statistics import Floats, Rows, measured, resamples
from parl.rollout.clock import schedule

NUM_RESAMPLES = 2_000
"""Fewer than for single numbers: a curve has a weight per episode and draw in memory."""

# --- budgets and targets -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Points:
    """E episodes as (quality, cost), sorted by cost, with their weights in B bootstrap draws."""

    quality: Floats
    """(E,)"""
    cost: Floats
    """(E,)"""
    weights: Floats
    """(1 + B, E): row 0 weighs the data as measured, each further row is a draw. Rows sum to 1.

    All tasks weigh the same; the trials of a task share its weight.
    """


@dataclass(frozen=True, slots=True)
class Band:
    """A curve `y` over `x` with the bounds of its 95 % interval at each x.

    Infinity means "not reached under any budget", NaN "no statement".
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats


def points(runs: Sequence[Rows], tasks: Sequence[str], quality: str, cost: str) -> Points:
    """Collect the measured episodes of several runs (seeds) on the same tasks.

    Seeds and tasks are resampled as in `parl.evaluation.statistics`. Two sets of points over equally
    many runs and the same tasks have the same draws, so they can be compared draw by draw.

    Args:
        runs: the rows of each run.
        tasks: the tasks that every run has a measured episode of.
        quality: a key of the rows, such as `item_f1`.
        cost: a key of the rows, such as `virtual_latency_s`.
    """
    index_of_task = {task: index for index, task in enumerate(tasks)}
    episodes: list[tuple[float, float, int]] = []
    for seed, rows in enumerate(runs):
        for row in measured(rows):
            if row["task"] in index_of_task:
                cell = seed * len(tasks) + index_of_task[row["task"]]
                episodes.append((row[cost], row[quality], cell))
    episodes.sort()
    costs, qualities, cells = map(np.array, zip(*episodes, strict=True))

    num_cells = len(runs) * len(tasks)
    equal_weights = np.full(num_cells, 1 / num_cells)
    drawn_weights = resamples(len(runs), len(tasks), NUM_RESAMPLES).cells()
    num_trials = np.bincount(cells, minlength=num_cells)
    weights_of_cells = np.vstack([equal_weights, drawn_weights]) / num_trials
    return Points(qualities, costs, weights_of_cells[:, cells])


def quality_within(episodes: Points, limits: Sequence[float]) -> Band:
    """Return the mean quality when every task has the same budget.

    An episode that costs more than the budget counts 0: its answer comes too late.
    """
    budgets = np.asarray(limits, dtype=np.float64)
    nothing = np.zeros((len(episodes.weights), 1))
    # Column k is the mean quality when the k cheapest episodes are within the budget.
    cumulative = np.cumsum(episodes.weights * episodes.quality, axis=1)
    qualities = np.hstack([nothing, cumulative])
    num_within = np.searchsorted(episodes.cost, budgets, side="right")
    return _band(budgets, qualities[:, num_within])


def cost_to_reach(episodes: Points, targets: Sequence[float]) -> Band:
    """Return the smallest budget with which the mean quality reaches a target.

    The inverse of `quality_within`; infinite where no budget does.
    """
    return _band(np.asarray(targets, dtype=np.float64), _budgets(episodes, targets))


def cost_ratio(episodes: Points, others: Points, targets: Sequence[float]) -> Band:
    """Return how many times the budget of `episodes` the `others` need to reach each target.

    NaN where one of them does not reach it. The interval is paired: each draw has the same seeds
    and tasks on both sides.
    """
    # infinity / infinity is the case that ends as NaN below.
    with np.errstate(invalid="ignore"):
        ratios = _budgets(others, targets) / _budgets(episodes, targets)
    ratios[~np.isfinite(ratios)] = np.nan
    return _band(np.asarray(targets, dtype=np.float64), ratios)


def _budgets(episodes: Points, targets: Sequence[float]) -> Floats:
    """Return the smallest budget for each target in each draw, (1 + B, targets)."""
    cumulative = np.cumsum(episodes.weights * episodes.quality, axis=1)
    costs = np.append(episodes.cost, np.inf)
    columns: list[Floats] = []
    for target in targets:
        # A sum of weights may miss 1 by rounding: a target of 1.0 is then reached all the same.
        first_reaching = (cumulative < target - 1e-9).sum(axis=1)
        columns.append(costs[first_reaching])
    return np.stack(columns, axis=1)


def _band(x: Floats, values: Floats) -> Band:
    """Return row 0 of `values`, and the percentiles of the further rows (the draws)."""
    # Percentiles by inverted_cdf are values that occurred. Interpolation between a finite budget
    # and an infinite one would give infinity.
    low, high = np.quantile(values[1:], (0.025, 0.975), axis=0, method="inverted_cdf")
    return Band(x, values[0], low, high)


# --- width -------------------------------------------------------------------------------


def steps_at_width(traces: Sequence[AgentTrace], width: int | None) -> int:
    """Count the turns one after another when at most `width` subagents run at once.

    Without a limit these are the critical steps (Kimi K2.5, section 3), at width 1 the total steps.

    Args:
        traces: the orchestrator's first, then its subagents in order of assignment.
        width: subagents at once; None = no limit.
    """
    # The virtual clock counts turns when each turn is one token at one token per second.
    clock = ClockConfig(prefill_tokens_per_s=1, decode_tokens_per_s=1, decode_slots=None)
    traces_of_seconds: list[AgentTrace] = []
    for trace in traces:
        turns = []
        for index, turn in enumerate(trace.turns):
            # Each turn starts where the last one ended, so that there is nothing to prefill, and
            # without environment calls, which would take their latency.
            turns.append(replace(turn, start=index, end=index + 1, env_calls=0))
        traces_of_seconds.append(replace(trace, turns=tuple(turns)))
    return round(schedule(traces_of_seconds, clock, width).critical_path_s)


def width_rows(
    episodes: Sequence[Episode], clock: ClockConfig, widths: Sequence[int]
) -> list[dict[str, Any]]:
    """Schedule each episode under each `swarm.max_concurrency`: one row per episode and width.

    No policy sees the clock, so its decisions and the outcome are the same at every width; only
    steps and latency change.
    """
    rows: list[dict[str, Any]] = []
    for episode in episodes:
        for width in widths:
            row = {
                "task": episode.task.id,
                "status": episode.status,
                "num_parts": episode.facts.get("num_parts"),
                "max_concurrency": width,
                **episode.outcome,
                "steps": steps_at_width(episode.traces, width),
                "virtual_latency_s": schedule(episode.traces, clock, width).critical_path_s,
            }
            rows.append(row)
    return rows


def at_width(rows: Rows, width: int) -> list[Mapping[str, Any]]:
    """Return the rows of `width_rows` with one width."""
    return [row for row in rows if row["max_concurrency"] == width]
