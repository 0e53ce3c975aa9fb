"""Curves of evaluations by hand: quality within a budget, its inverse, and episodes at a limited width."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from parl.config.roles import ClockConfig, Swarm
from parl.evaluation.budgets import (
    Points,
    at_width,
    cost_ratio,
    cost_to_reach,
    points,
    quality_within,
    steps_at_width,
    width_rows,
)
from tests.support.helpers import assign, call, create, run, script, turns

TASKS = ["a", "b", "c", "d"]


def rows(costs: list[float], quality: list[float]) -> list[dict[str, Any]]:
    return [
        {"task": task, "status": "completed", "item_f1": q, "s": c}
        for task, c, q in zip(TASKS, costs, quality, strict=True)
    ]


def found(costs: list[float], quality: list[float]) -> Points:
    return points([rows(costs, quality)], TASKS, "item_f1", "s")


# --- budgets and targets ---------------------------------------------------------------------------------------------


def test_quality_within_a_deadline_by_hand() -> None:
    band = quality_within(
        found([4.0, 1.0, 2.0, 2.0], [1.0, 1.0, 0.5, 0.5]), [0.5, 1.0, 1.9, 2.0, 4.0, 9.0]
    )
    assert band.y == pytest.approx([0.0, 0.25, 0.25, 0.5, 0.75, 0.75])
    assert (band.low <= band.y + 1e-12).all()
    assert (band.high >= band.y - 1e-12).all()
    assert band.high[0] == 0.0


def test_the_time_to_a_target_is_the_inverse() -> None:
    one = found([4.0, 1.0, 2.0, 2.0], [1.0, 1.0, 0.5, 0.5])
    reached = cost_to_reach(one, [0.2, 0.25, 0.3, 0.5, 0.51, 0.75, 0.76])
    assert reached.y.tolist() == [1.0, 1.0, 2.0, 2.0, 4.0, 4.0, np.inf]
    for target, cost in zip(reached.x[:-1], reached.y[:-1], strict=True):
        here, before = quality_within(one, [cost, cost - 1e-6]).y
        assert before < target <= here + 1e-9


def test_a_perfect_target_is_reached() -> None:
    assert cost_to_reach(found([1.0, 2.0, 3.0, 7.0], [1.0] * 4), [1.0]).y.tolist() == [7.0]


def test_cost_ratio_is_paired_and_silent_where_one_does_not_arrive() -> None:
    own, other = (
        found([1.0, 2.0, 3.0, 4.0], [1.0] * 4),
        found([3.0, 6.0, 9.0, 12.0], [1.0, 1.0, 1.0, 0.0]),
    )
    band = cost_ratio(own, other, [0.25, 0.75, 0.9])
    assert band.y[:2].tolist() == [3.0, 3.0]
    assert np.isnan([band.y[2], band.low[2], band.high[2]]).all()
    same = cost_ratio(own, found([3.0, 6.0, 9.0, 12.0], [1.0] * 4), [0.25, 0.5])
    assert (same.low.tolist(), same.high.tolist()) == (
        [3.0, 3.0],
        [3.0, 3.0],
    )  # the same tasks in each resample


def test_trials_share_the_weight_of_their_task() -> None:
    twice = [
        *rows([1.0, 2.0, 3.0, 4.0], [1.0] * 4),
        {"task": "a", "status": "completed", "item_f1": 0.0, "s": 9.0},
    ]
    band = quality_within(points([twice], TASKS, "item_f1", "s"), [1.0, 4.0, 9.0])
    assert band.y == pytest.approx([0.125, 0.875, 0.875])


def test_failed_episodes_and_other_tasks_are_left_out() -> None:
    more = [
        *rows([1.0, 1.0, 1.0, 1.0], [1.0] * 4),
        {"task": "a", "status": "failed"},
        {"task": "z", "status": "failed"},
    ]
    one = points([more, more], TASKS, "item_f1", "s")
    assert one.quality.tolist() == [1.0] * 8
    assert one.weights.sum(axis=1) == pytest.approx(np.ones(len(one.weights)))


# --- width -----------------------------------------------------------------------------------------------------------


def wide_episode(limit: int | None = None) -> Any:
    """Three subagents of 1, 2 and 3 turns in one turn of the orchestrator, then one alone, then the answer."""
    subagents = {
        "x": ["X"],
        "y": [call("peek", at="here"), "Y"],
        "z": [call("peek", at="here"), call("peek", at="there"), "Z"],
        "w": [call("peek", at="here"), "W"],
    }
    launch = turns(create("a"), assign("a", "x"), assign("a", "y"), assign("a", "z"))
    return run(
        script([launch, assign("a", "w"), "blue"], **subagents), Swarm(max_concurrency=limit)
    )


def test_steps_at_width_by_hand() -> None:
    traces = wide_episode().traces
    assert [steps_at_width(traces, w) for w in (1, 2, 3)] == [3 + 6 + 2, 3 + 4 + 2, 3 + 3 + 2]


def test_steps_lie_between_critical_and_total_steps() -> None:
    episode = wide_episode()
    assert steps_at_width(episode.traces, None) == episode.critical_steps == 8
    assert steps_at_width(episode.traces, 1) == episode.total_steps == 11


def test_a_rescheduled_episode_is_that_of_a_run_with_the_limit() -> None:
    episode = wide_episode()
    for width in (1, 2, 16):
        (row,) = width_rows([episode], ClockConfig(), [width])
        limited = wide_episode(width)
        assert row["virtual_latency_s"] == limited.clock.critical_path_s
        assert (row["score"], limited.outcome["score"]) == (1.0, 1.0)


def test_rows_of_each_width() -> None:
    found = width_rows([wide_episode(), wide_episode()], ClockConfig(), [1, 2])
    json.dumps(found)
    assert [row["max_concurrency"] for row in found] == [1, 2, 1, 2]
    assert [row["steps"] for row in at_width(found, 2)] == [9, 9]
