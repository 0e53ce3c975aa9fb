"""Quality under budgets: within a deadline, the time that a quality takes, and what a limit on width costs.

In: rows of runs (`evaluate.heldout_rows`) or the traces of their episodes. Out: points with 95 % bootstrap bands. Pure
functions without a model: what a curve shows can be computed again from the files of a run.
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


@dataclass(frozen=True, slots=True)
class Points:
    """Episodes as (quality, cost), in order of cost. A task's trials share its weight."""

    quality: Floats
    """(E,)"""
    cost: Floats
    """(E,)"""
    weights: Floats
    """(1 + B, E): the data's own weights in row 0, then those of each resample. Rows sum to 1."""


@dataclass(frozen=True, slots=True)
class Band:
    """A curve: `y` over `x`, and the 95 % interval at each x. Infinite = not reached, NaN = no statement."""

    x: Floats
    y: Floats
    low: Floats
    high: Floats


def points(runs: Sequence[Rows], tasks: Sequence[str], quality: str, cost: str) -> Points:
    """Episodes of several runs (seeds) on the same tasks; seeds and tasks are resampled as in `statistics`.

    Two sets of points over equally many runs and the same tasks have the same resamples, so they can be compared.
    """
    place = {task: k for k, task in enumerate(tasks)}
    found = [
        (row[cost], row[quality], seed * len(tasks) + place[row["task"]])
        for seed, rows in enumerate(runs)
        for row in measured(rows)
        if row["task"] in place
    ]
    costs, qualities, cells = (np.array(column) for column in zip(*sorted(found), strict=True))
    num_cells = len(runs) * len(tasks)
    drawn = resamples(len(runs), len(tasks), NUM_RESAMPLES).cells()
    by_cell = np.vstack([np.full(num_cells, 1 / num_cells), drawn]) / np.bincount(
        cells, minlength=num_cells
    )
    return Points(qualities, costs, by_cell[:, cells])


def quality_within(found: Points, limits: Sequence[float]) -> Band:
    """Mean quality when every task has the same budget: an episode that costs more than it counts 0."""
    x = np.asarray(limits, dtype=np.float64)
    earned = np.hstack(
        [np.zeros((len(found.weights), 1)), np.cumsum(found.weights * found.quality, axis=1)]
    )
    values = earned[:, np.searchsorted(found.cost, x, side="right")]
    return _band(x, values)


def cost_to_reach(found: Points, targets: Sequence[float]) -> Band:
    """The inverse: the smallest budget under which the mean quality reaches a target; infinite where none does."""
    return _band(np.asarray(targets, dtype=np.float64), _reached(found, targets))


def times_less(own: Points, other: Points, targets: Sequence[float]) -> Band:
    """How many times less than `other` `own` needs to reach each target. NaN where one of them does not."""
    with np.errstate(invalid="ignore"):
        ratios = _reached(other, targets) / _reached(own, targets)
    ratios[~np.isfinite(ratios)] = np.nan
    return _band(np.asarray(targets, dtype=np.float64), ratios)


def _reached(found: Points, targets: Sequence[float]) -> Floats:
    """(1 + B, targets)."""
    earned = np.cumsum(found.weights * found.quality, axis=1)
    costs = np.append(found.cost, np.inf)
    # A sum of weights may miss 1 by rounding: a target of 1.0 is then reached all the same.
    return np.stack([costs[(earned < target - 1e-9).sum(axis=1)] for target in targets], axis=1)


def _band(x: Floats, values: Floats) -> Band:
    """Row 0 is the data, the others are resamples. Quantiles are values that occurred: infinities do not mix."""
    low, high = np.quantile(values[1:], (0.025, 0.975), axis=0, method="inverted_cdf")
    return Band(x, values[0], low, high)


# --- width -----------------------------------------------------------------------------------------------------------


def steps_at_width(traces: Sequence[AgentTrace], width: int | None) -> int:
    """Turns one after the other when at most `width` subagents run at once.

    Without a limit these are the critical steps (section 3), at width 1 the total steps.
    """
    unit = ClockConfig(prefill_tokens_per_s=1, decode_tokens_per_s=1, decode_slots=None)
    turns_of_one_second = [
        replace(
            t,
            turns=tuple(
                replace(turn, start=k, end=k + 1, env_calls=0) for k, turn in enumerate(t.turns)
            ),
        )
        for t in traces
    ]
    return round(schedule(turns_of_one_second, unit, width).critical_path_s)


def width_rows(
    episodes: Sequence[Episode], clock: ClockConfig, widths: Sequence[int]
) -> list[dict[str, Any]]:
    """Each episode under each `swarm.max_concurrency`: the same turns, scheduled anew.

    No policy sees the clock, so its decisions and the outcome are those of the episode whatever the width.
    """
    return [
        {
            "task": e.task.id,
            "status": e.status,
            "num_parts": e.facts.get("num_parts"),
            "max_concurrency": width,
            **e.outcome,
            "steps": steps_at_width(e.traces, width),
            "virtual_latency_s": schedule(e.traces, clock, width).critical_path_s,
        }
        for e in episodes
        for width in widths
    ]


def at_width(rows: Rows, width: int) -> list[Mapping[str, Any]]:
    """Those of `width_rows` with one width."""
    return [row for row in rows if row["max_concurrency"] == width]
