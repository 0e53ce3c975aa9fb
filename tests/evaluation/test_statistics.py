"""Statistics of evaluations: Avg@N, Max@N, Pass@N by hand, and what the bootstrap's intervals may say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parl.evaluation.statistics import (
    by_task,
    compare,
    estimate,
    measured,
    passed,
    ratio,
    resamples,
    shared_tasks,
    statistics,
    table,
)


def row(task: str, trial: int = 0, status: str = "completed", **values: float) -> dict[str, Any]:
    return {"task": task, "trial": trial, "status": status, **values}


TWO_TRIALS = [
    row("a", 0, item_f1=0.5, success=0.0),
    row("a", 1, item_f1=1.0, success=1.0),
    row("b", 0, item_f1=0.2, success=0.0),
    row("b", 1, item_f1=0.4, success=0.0),
]


def test_avg_max_and_pass_by_hand() -> None:
    found = statistics([TWO_TRIALS], 2)
    assert set(found) == {"item_f1", "success"}
    assert found["item_f1"]["avg"]["mean"] == pytest.approx((0.75 + 0.3) / 2)
    assert found["item_f1"]["max"]["mean"] == pytest.approx((1.0 + 0.4) / 2)
    assert found["success"]["avg"]["mean"] == pytest.approx(0.25)
    assert found["success"]["pass"]["mean"] == pytest.approx(0.5)
    assert "max" not in found["success"]


def test_one_trial_has_averages_only() -> None:
    found = statistics([TWO_TRIALS[::2]], 1)
    assert {kind for kinds in found.values() for kind in kinds} == {"avg"}


def test_the_interval_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).beta(5, 1, size=60)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=2
    ).confidence_interval
    ours = estimate(values[None, :])
    assert ours["mean"] == pytest.approx(values.mean())
    assert ours["low"] == pytest.approx(theirs.low, abs=2e-3)
    assert ours["high"] == pytest.approx(theirs.high, abs=2e-3)


def test_the_same_rows_give_the_same_interval() -> None:
    values = np.random.default_rng(0).random((3, 20))
    assert estimate(values) == estimate(values)


def test_trials_of_a_task_stay_together() -> None:
    """Ten copies of each trial are no more evidence than one."""
    once = [row(str(k), 0, score=k / 9) for k in range(10)]
    often = [row(str(k), t, score=k / 9) for k in range(10) for t in range(10)]
    assert statistics([often], 10)["score"]["avg"] == pytest.approx(
        statistics([once], 1)["score"]["avg"]
    )


def test_several_seeds_widen_the_interval_where_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    tasks = rng.normal(0, 0.1, (1, 100))
    alike, different = np.repeat(tasks, 4, axis=0), tasks + np.array([[0.0], [1.0], [2.0], [3.0]])
    one, same, spread = (estimate(values) for values in (tasks, alike, different))
    width = [found["high"] - found["low"] for found in (one, same, spread)]  # type: ignore[operator]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert width[2] > 10 * width[1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_values_have_no_interval(value: float) -> None:
    assert estimate(np.full((2, 5), value)) == {"mean": value, "low": None, "high": None}


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        found = estimate(rng.normal(0.0, 1.0, (1, 100)))
        hits += found["low"] <= 0 <= found["high"]  # type: ignore[operator]
    assert 0.90 <= hits / 200 <= 0.98


def test_resamples_are_weights() -> None:
    drawn = resamples(3, 5, num=50)
    assert drawn.seeds.sum(axis=1) == pytest.approx(np.ones(50))
    assert drawn.tasks.sum(axis=1) == pytest.approx(np.ones(50))
    values = np.arange(15.0).reshape(3, 5)
    assert drawn.cells() @ values.ravel() == pytest.approx(drawn.means(values))


# --- failed episodes -------------------------------------------------------------------------------------------------


def test_failed_episodes_are_no_zeros() -> None:
    rows = [
        row("a", 0, score=0.5),
        row("a", 1, "failed"),
        row("b", 0, "failed"),
        row("b", 1, "failed"),
    ]
    assert len(measured(rows)) == 1
    assert by_task(rows, "score") == {"a": 0.5}
    assert statistics([rows], 2)["score"]["avg"] == {"mean": 0.5, "low": None, "high": None}
    assert statistics([rows[1:2]], 1) == {}


def test_only_tasks_that_all_runs_measured_are_pooled() -> None:
    first = [row("a", score=1.0), row("b", score=0.0), row("c", score=0.5)]
    other = [row("c", score=0.25), row("b", status="failed"), row("a", score=0.5)]
    assert shared_tasks([first, other]) == ["a", "c"]
    assert table([first, other], ["a", "c"], "score").tolist() == [[1.0, 0.5], [0.5, 0.25]]


def test_a_pass_is_a_whole_success() -> None:
    assert [passed(trials) for trials in ([0.0, 1.0], [0.9, 0.5], [0.0])] == [1.0, 0.0, 0.0]


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_a_paired_difference_leaves_the_tasks_out() -> None:
    """Tasks differ by far more than the two policies: only pairing shows the difference."""
    rng = np.random.default_rng(0)
    level = rng.random(50)
    gain = rng.normal(0.02, 0.005, 50)
    own = [row(str(k), score=level[k] + gain[k], critical_steps=5.0 + k) for k in range(50)]
    other = [row(str(k), score=level[k], critical_steps=4 * (5.0 + k)) for k in reversed(range(50))]
    found = compare([own], [other])
    difference = found["score"]["difference"]
    assert difference["mean"] == pytest.approx(gain.mean())
    assert 0.015 < difference["low"] < 0.02 < difference["high"] < 0.025
    assert statistics([own], 1)["score"]["avg"]["low"] < level.mean()  # unpaired, they overlap
    assert found["critical_steps"]["difference"]["mean"] == pytest.approx(-3 * (5 + 24.5))
    assert found["critical_steps"]["ratio"]["mean"] == pytest.approx(4.0)
    assert found["critical_steps"]["ratio"]["low"] == pytest.approx(4.0)
    assert "ratio" not in found["score"]


def test_a_ratio_of_means_by_hand() -> None:
    above, below = np.array([[2.0, 6.0]]), np.array([[1.0, 1.0]])
    assert ratio(above, below) == {
        "mean": 4.0,
        "low": pytest.approx(2.0),
        "high": pytest.approx(6.0),
    }
    assert ratio(above, np.array([[0.0, 1.0]])) == {"mean": 8.0, "low": None, "high": None}
    assert ratio(above, np.zeros((1, 2))) == {"mean": None, "low": None, "high": None}


def test_nothing_shared_is_no_comparison() -> None:
    assert compare([[row("a", score=1.0)]], [[row("b", score=1.0)]]) == {}
