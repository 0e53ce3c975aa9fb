"""Statistics of evaluations: means over tasks (and seeds) with bootstrap intervals. Pure functions.

They work on rows, one per episode (`parl.evaluation.metrics.heldout_rows`), so every number of an
evaluation can be computed again from RUN/eval/*.tasks.json.

What is estimated: with x[s, t, 1..N] a metric of the N trials of task t by seed s (a run), and r a
reduction over trials (their mean, maximum, or whether any is a success),

    mean = 1/(S T) * sum_s sum_t r(x[s, t, 1..N])

which is Avg@N, Max@N or Pass@N (WideSearch, arXiv 2508.07999).

What is resampled: tasks and seeds, never single episodes. Trials of a task are alike, so four
attempts at one task are not four independent tasks. Every seed met the same tasks, so with several
seeds the table (S, T) has two crossed factors, and both are drawn with replacement, each seed with
all its tasks and each task with all its seeds (a "pigeonhole" bootstrap, Owen 2007). With one seed
only the tasks are drawn.

What an interval is over: with one seed, other tasks under these same weights. With several, another
training on other tasks. Bounds are the 2.5 % and 97.5 % percentiles of the resampled means. With few
seeds they are too narrow: see docs/how-to/evaluate.md for the measured coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
Rows = Sequence[Row]
"""The episodes of one run under one decoding."""
Floats = NDArray[np.float64]
Reduce = Callable[[Sequence[float]], float]
"""From the trials of a task to one number."""
Interval = dict[str, float | None]
"""`mean`, `low` and `high`. `low` and `high` are None where there is no interval."""

NUM_RESAMPLES = 10_000
QUALITY = ("score", "item_f1", "row_f1", "success")
COST = ("critical_steps", "total_steps", "virtual_latency_s", "tokens")

# Differences between floats below this are rounding, no spread.
NO_SPREAD = 1e-12


# --- the bootstrap -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resamples:
    """B bootstrap draws of S seeds and T tasks.

    A draw is stored as weights: how often a seed (a task) was drawn, divided by S (by T).

    Example: of three tasks the draw (0, 0, 2) has the weights (2/3, 0, 1/3).
    """

    seeds: Floats
    """(B, S); rows sum to 1."""
    tasks: Floats
    """(B, T); rows sum to 1."""

    def means(self, values: Floats) -> Floats:
        """Return the mean of a table (S, T) in each draw, (B,)."""
        means: Floats = ((self.seeds @ values) * self.tasks).sum(axis=1)
        return means

    def cells(self) -> Floats:
        """Return the weight of each cell of the table in each draw, (B, S * T)."""
        products = self.seeds[:, :, None] * self.tasks[:, None, :]
        return products.reshape(len(self.seeds), -1)


def resamples(num_seeds: int, num_tasks: int, num: int = NUM_RESAMPLES) -> Resamples:
    """Draw seeds and tasks with replacement, `num` times.

    The generator always starts from the same state, so the same rows give the same interval, and
    tables of one shape share their draws, which makes them comparable (`ratio`).
    """
    rng = np.random.default_rng(0)
    # One seed is always drawn as itself: the interval is then over the tasks alone.
    seed_counts = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num)
    task_counts = rng.multinomial(num_tasks, np.full(num_tasks, 1 / num_tasks), size=num)
    return Resamples(seed_counts / num_seeds, task_counts / num_tasks)


def estimate(values: Floats) -> Interval:
    """Return the mean of a table and its 95 % percentile interval over tasks (and seeds).

    Args:
        values: (S, T), one number for each task of each seed.
    Returns:
        `mean`, `low` and `high`. The bounds are None where all values are equal: the bootstrap
        would give an interval of width 0, but 200 successes in 200 tasks do not prove certainty.
    """
    mean = float(values.mean())
    if np.ptp(values) <= NO_SPREAD:
        return _without_interval(mean)
    draws = resamples(*values.shape)
    return _with_interval(mean, draws.means(values))


def ratio(numerator: Floats, denominator: Floats) -> Interval:
    """Return mean(numerator) / mean(denominator) with a paired 95 % percentile interval.

    Paired: both means of a draw are over the same seeds and tasks. It is a ratio of means, not a
    mean of ratios, so a task weighs in as much as it costs.

    Args:
        numerator: (S, T).
        denominator: (S, T), the same seeds and tasks.
    Returns:
        `mean` is None for a denominator of zeros. There is no interval where a value of the
        denominator is not positive, or where a table has no spread.
    """
    if not denominator.any():
        return _without_interval(None)
    mean = float(numerator.mean() / denominator.mean())
    spread = max(np.ptp(numerator), np.ptp(denominator))
    # A draw could consist of the tasks with a cost of 0 alone, and its ratio would be infinite.
    if (denominator <= 0).any() or spread <= NO_SPREAD:
        return _without_interval(mean)
    draws = resamples(*numerator.shape)
    return _with_interval(mean, draws.means(numerator) / draws.means(denominator))


def _with_interval(mean: float, replicates: Floats) -> Interval:
    low, high = np.quantile(replicates, (0.025, 0.975))
    return {"mean": mean, "low": float(low), "high": float(high)}


def _without_interval(mean: float | None) -> Interval:
    return {"mean": mean, "low": None, "high": None}


# --- from rows to a table of seeds and tasks ---------------------------------------------


def measured(rows: Rows) -> list[Row]:
    """Return the rows of episodes that did not fail: a failure says nothing about the policy."""
    return [row for row in rows if row["status"] != "failed"]


def by_task(rows: Rows, metric: str, reduce: Reduce = fmean) -> dict[str, float]:
    """Reduce the trials of each task to one number.

    A task whose trials all failed is left out.
    """
    trials: dict[str, list[float]] = {}
    for row in measured(rows):
        trials.setdefault(row["task"], []).append(row[metric])
    return {task: reduce(values) for task, values in trials.items()}


def shared_tasks(runs: Sequence[Rows]) -> list[str]:
    """Return the tasks with a measured episode in every run, in the order of the first run."""
    # Crossed factors need a full table: a task without a value for one seed cannot be in it.
    measured_in_all = {row["task"] for row in measured(runs[0])}
    for rows in runs[1:]:
        measured_in_all &= {row["task"] for row in measured(rows)}
    # Trials repeat a task, which is listed once.
    tasks = dict.fromkeys(row["task"] for row in runs[0])
    return [task for task in tasks if task in measured_in_all]


def table(
    runs: Sequence[Rows], tasks: Sequence[str], metric: str, reduce: Reduce = fmean
) -> Floats:
    """Return one number for each task of each run, (S, T).

    Args:
        runs: the rows of each run.
        tasks: see `shared_tasks`.
        metric: a key of the rows.
        reduce: from a task's trials to one number.
    """
    values: list[list[float]] = []
    for rows in runs:
        value_of_task = by_task(rows, metric, reduce)
        values.append([value_of_task[task] for task in tasks])
    return np.array(values, dtype=np.float64)


def _available(runs: Sequence[Rows], names: Sequence[str]) -> list[str]:
    """Return the metrics that every measured episode of every run has."""
    available = list(names)
    for rows in runs:
        for row in measured(rows):
            available = [name for name in available if name in row]
    return available


def passed(trials: Sequence[float]) -> float:
    """Return 1 if any of the trials is a success, else 0 (Pass@N)."""
    return float(max(trials) >= 1.0)


# --- what evaluations report -------------------------------------------------------------


def statistics(runs: Sequence[Rows], trials: int) -> dict[str, dict[str, Interval]]:
    """Compute Avg@N, and with several trials Max@N and Pass@N, each with its interval.

    Args:
        runs: the rows of each run, under one decoding, on the same tasks.
        trials: N, how often each task was tried.
    Returns:
        metric -> `avg` (and with N > 1 for qualities `max`, for `success` `pass`) -> mean, low,
        high. {} where the runs share no measured task.
    """
    tasks = shared_tasks(runs)
    if not tasks:
        return {}
    results: dict[str, dict[str, Interval]] = {}
    for metric in _available(runs, (*QUALITY, *COST)):
        results[metric] = {"avg": estimate(table(runs, tasks, metric))}
    if trials == 1:
        return results
    for metric in _available(runs, QUALITY):
        if metric == "success":
            results[metric]["pass"] = estimate(table(runs, tasks, metric, passed))
        else:
            results[metric]["max"] = estimate(table(runs, tasks, metric, max))
    return results


def compare(runs: Sequence[Rows], others: Sequence[Rows]) -> dict[str, dict[str, Any]]:
    """Compare two sets of runs, paired by seed and by task.

    A pair is one task in `runs[k]` and in `others[k]`. Tasks differ far more than policies do, so
    the interval of the paired difference is much narrower than the intervals of the two means
    suggest. Over several trials it compares Avg@N.

    Args:
        runs: rows of each run.
        others: rows of the runs to compare with, the same number in the same order.
    Returns:
        metric -> `own` and `other` (the means), `difference` (own - other, with its interval) and,
        for costs, `ratio` (other / own: above 1, `others` need more).
    """
    both = [*runs, *others]
    tasks = shared_tasks(both)
    if not tasks:
        return {}
    results: dict[str, dict[str, Any]] = {}
    for metric in _available(both, (*QUALITY, *COST)):
        values = table(runs, tasks, metric)
        other_values = table(others, tasks, metric)
        results[metric] = {
            "own": float(values.mean()),
            "other": float(other_values.mean()),
            "difference": estimate(values - other_values),
        }
        if metric in COST:
            results[metric]["ratio"] = ratio(other_values, values)
    return results
