"""Statistics of evaluations: trials of tasks, intervals over tasks and seeds. Pure functions of rows.

In: the rows of one run or of several (one row per episode, `evaluate.heldout_rows`). Out: estimates, each a mean with a
95 % bootstrap interval.

Avg@N, Max@N and Pass@N (WideSearch) are all means over tasks of one number per task, so one bootstrap serves them: a
task's trials stay together. Several runs are a table of seeds and tasks, and both are drawn anew, each with all its
cells: every seed met the same tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
NUM_RESAMPLES = 10_000
QUALITY = ("score", "item_f1", "row_f1", "success")
COST = ("critical_steps", "total_steps", "virtual_latency_s", "tokens")


@dataclass(frozen=True, slots=True)
class Resamples:
    """How often each seed and each task was drawn, as weights that sum to 1: `seeds` (B, S), `tasks` (B, T)."""

    seeds: Floats
    tasks: Floats

    def means(self, values: Floats) -> Floats:
        """The mean of a table (S, T) in each resample, (B,)."""
        means: Floats = ((self.seeds @ values) * self.tasks).sum(axis=1)
        return means

    def cells(self) -> Floats:
        """The weight of each cell of the table in each resample, (B, S * T)."""
        return (self.seeds[:, :, None] * self.tasks[:, None, :]).reshape(len(self.seeds), -1)


def resamples(num_seeds: int, num_tasks: int, num: int = NUM_RESAMPLES) -> Resamples:
    """The bootstrap's draws: always the same ones, so that the same rows give the same interval."""
    rng = np.random.default_rng(0)
    return Resamples(
        *(rng.multinomial(n, np.full(n, 1 / n), size=num) / n for n in (num_seeds, num_tasks))
    )


def estimate(values: Floats) -> dict[str, float | None]:
    """Mean of a table (seeds, tasks) and its percentile interval.

    `low` and `high` are null where all values are equal: no spread is no evidence of certainty.
    """
    if np.ptp(values) <= 1e-12:
        return {"mean": float(values.mean()), "low": None, "high": None}
    return _with_interval(float(values.mean()), resamples(*values.shape).means(values))


def ratio(above: Floats, below: Floats) -> dict[str, float | None]:
    """Mean of one table over the mean of another, paired cell by cell. No interval without spread or over zeros."""
    if not below.any():
        return {"mean": None, "low": None, "high": None}
    mean = float(above.mean() / below.mean())
    if (below <= 0).any() or max(np.ptp(above), np.ptp(below)) <= 1e-12:
        return {"mean": mean, "low": None, "high": None}
    drawn = resamples(*above.shape)
    return _with_interval(mean, drawn.means(above) / drawn.means(below))


def _with_interval(mean: float, replicates: Floats) -> dict[str, float | None]:
    low, high = np.quantile(replicates, (0.025, 0.975))
    return {"mean": mean, "low": float(low), "high": float(high)}


# --- from rows to a table of seeds and tasks -------------------------------------------------------------------------


def measured(rows: Rows) -> list[Mapping[str, Any]]:
    """The rows of episodes that did not fail: a failure says nothing of the policy."""
    return [row for row in rows if row["status"] != "failed"]


def by_task(
    rows: Rows, metric: str, reduce: Callable[[Sequence[float]], float] = fmean
) -> dict[str, float]:
    """One number for each task from its trials. Tasks whose trials all failed are left out."""
    trials: dict[str, list[float]] = {}
    for row in measured(rows):
        trials.setdefault(row["task"], []).append(row[metric])
    return {task: reduce(values) for task, values in trials.items()}


def shared_tasks(runs: Sequence[Rows]) -> list[str]:
    """The tasks that every run has a measured episode of, in their order in the first."""
    sets = [{row["task"] for row in measured(rows)} for rows in runs]
    return [
        task
        for task in dict.fromkeys(row["task"] for row in runs[0])
        if all(task in s for s in sets)
    ]


def table(
    runs: Sequence[Rows],
    tasks: Sequence[str],
    metric: str,
    reduce: Callable[[Sequence[float]], float] = fmean,
) -> Floats:
    """(runs, tasks): one number for each task of each run."""
    found = [by_task(rows, metric, reduce) for rows in runs]
    return np.array([[values[task] for task in tasks] for values in found], dtype=np.float64)


def _metrics(runs: Sequence[Rows], names: Sequence[str]) -> list[str]:
    """Those of the names that every measured episode has."""
    return [name for name in names if all(name in row for rows in runs for row in measured(rows))]


def passed(trials: Sequence[float]) -> float:
    """1 if any of the trials was a success."""
    return float(max(trials) >= 1.0)


# --- what is reported ------------------------------------------------------------------------------------------------


def statistics(runs: Sequence[Rows], trials: int) -> dict[str, dict[str, dict[str, float | None]]]:
    """metric -> `avg`, and of several trials `max` (`pass` for success) -> mean, low, high.

    Args:
        runs: the rows of each run, under one decoding, on the same tasks.
        trials: N, how often each task was tried.
    """
    tasks = shared_tasks(runs)
    if not tasks:
        return {}
    found = {
        name: {"avg": estimate(table(runs, tasks, name))}
        for name in _metrics(runs, (*QUALITY, *COST))
    }
    for name in _metrics(runs, QUALITY if trials > 1 else ()):
        kind, reduce = ("pass", passed) if name == "success" else ("max", max)
        found[name][kind] = estimate(table(runs, tasks, name, reduce))
    return found


def compare(runs: Sequence[Rows], others: Sequence[Rows]) -> dict[str, dict[str, Any]]:
    """metric -> the paired difference `runs` minus `others`, and for costs the ratio `others` over `runs`.

    Paired means: the same task, and the run with the same place in both lists. Over trials it compares Avg@N.
    """
    both = [*runs, *others]
    tasks = shared_tasks(both)
    found: dict[str, dict[str, Any]] = {}
    for name in _metrics(both, (*QUALITY, *COST)) if tasks else ():
        own, other = table(runs, tasks, name), table(others, tasks, name)
        found[name] = {
            "own": float(own.mean()),
            "other": float(other.mean()),
            "difference": estimate(own - other),
        }
        if name in COST:
            found[name]["ratio"] = ratio(other, own)
    return found
