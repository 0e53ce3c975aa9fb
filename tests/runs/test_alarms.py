"""Alarms on recorded runs (data/alarms/README.md): silent on the healthy ones, at every step; heard on the others."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from parl.report.summary import print_summary
from parl.runs.alarms import ADVICE, RULES, WINDOW, Alarm, Watch, check
from tests.support.helpers import ROOT

DATA = Path(__file__).parent / "data" / "alarms"
HEALTHY = sorted(path.name.partition(".")[0] for path in (DATA / "healthy").iterdir())

Rows = list[dict[str, float]]


def load(name: str) -> Rows:
    folder = "healthy" if name in HEALTHY else "faulty"
    return [
        json.loads(line)
        for line in gzip.decompress((DATA / folder / f"{name}.jsonl.gz").read_bytes()).splitlines()
    ]


def history(rows: Rows) -> dict[str, list[int]]:
    """Alarm -> the steps at which it holds, as a training run would have seen them."""
    held: dict[str, list[int]] = {}
    for n in range(len(rows) + 1):
        for alarm in check(rows[:n]):
            held.setdefault(alarm.name, []).append(int(rows[n - 1]["step"]))
    return held


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_never_disturbed(name: str) -> None:
    rows = load(name)
    assert len(rows) >= 32
    assert history(rows) == {}


def test_there_are_all_the_recordings() -> None:
    kinds = {name.rpartition("-")[0] for name in HEALTHY}
    assert kinds == {
        "quickstart",
        "quickstart-single",
        "window",
        "window-single",
        "adaptive",
        "grpo",
        "frozen",
        "weak",
    }
    assert len(HEALTHY) == 5 + 5 + 6 * 3


@pytest.mark.parametrize(
    "name, since",
    [
        ("no-shaping-0", {"serial_collapse": 29}),
        ("no-shaping-1", {"serial_collapse": 17}),
        ("no-shaping-2", {"serial_collapse": 23}),
        ("high-costs", {"serial_collapse": 34, "reward_hacking": 28}),
        (
            "no-finish-2",
            {"reward_hacking": 21},
        ),  # rows that the task does not have are assigned, and paid for
        ("paid-attempts", {"spurious_parallelism": 9, "reward_hacking": 34}),
        ("huge-lr", {"entropy_collapse": 15}),
        # Delegating was lost, too; the last step with an advantage is step 21.
        ("paid-silence", {"serial_collapse": 13, "reward_hacking": 11, "entropy_collapse": 29}),
        ("hot-engine", {"logp_mismatch": 9}),  # the fault begins at step 6
        ("forgotten-engine", {"stale_weights": 8}),
    ],
)
def test_a_faulty_run_is_heard(name: str, since: dict[str, int]) -> None:
    alarms = check(load(name))
    assert {a.name: a.step for a in alarms} == since
    assert all(a.message.endswith(".") and a.advice == ADVICE[a.name] for a in alarms)


def test_every_rule_has_a_recording_advice_and_a_place_in_the_docs() -> None:
    page = (ROOT / "docs/reference/alarms.md").read_text()
    for rule in RULES:
        assert f"## {rule.__name__}\n" in page
        assert ADVICE[rule.__name__]
        assert rule.__doc__
    assert set(ADVICE) == {rule.__name__ for rule in RULES}


# --- recordings with altered columns ---------------------------------------------------------------------------------


def altered(
    name: str, change: Callable[[dict[str, float]], dict[str, Any]], start: int = 0
) -> Rows:
    """A recording whose rows from `start` on have other columns."""
    return [{**row, **change(row)} if i >= start else row for i, row in enumerate(load(name))]


@pytest.mark.parametrize("ratio, heard", [(1.4, True), (0.7, True), (1.15, False), (0.9, False)])
def test_a_length_bias(ratio: float, heard: bool) -> None:
    rows = altered(
        "quickstart-0",
        lambda r: {"rollout/tokens_finished": r["swarm/tokens_per_episode"] * ratio},
        start=20,
    )
    assert history(rows) == ({"length_bias": list(range(27, 60))} if heard else {})


def test_what_is_sampled_now_is_trained_a_step_later() -> None:
    """An asynchronous run without a bias, while its episodes grow to three times their length."""
    rows = load("quickstart-0")
    for row, later in pairwise(rows):
        row["rollout/tokens_finished"] = later["swarm/tokens_per_episode"]
        row |= {
            "rollout/staleness_mean": 1.0,
            "rollout/staleness_max": 1.0,
            "policy/main/logp_mismatch_mean": 0.03,
        }
    assert history(rows) == {}  # nor is a mismatch one when it is that of older weights


def test_an_entropy_that_falls_at_a_poor_outcome() -> None:
    tiny = altered(
        "window-single-0", lambda r: {k: r[k] / 50 for k in r if k.endswith("/entropy")}, start=30
    )
    held = history(tiny)
    assert set(held) == {"entropy_collapse"}
    assert held["entropy_collapse"][0] >= 33
    good = altered(
        "quickstart-0", lambda r: {k: r[k] / 50 for k in r if k.endswith("/entropy")}, start=30
    )
    assert history(good) == {}  # it has solved its tasks


def test_weights_that_stand_still() -> None:
    rows = altered("quickstart-0", lambda r: {"policy/main/weight_version": 20.0}, start=20)
    assert {a.name: a.step for a in check(rows[:40])} == {"stale_weights": 27}
    assert "still is 20" in check(rows[:40])[0].message


def test_repeated_assignments() -> None:
    rows = altered(
        "quickstart-0", lambda r: {"swarm/num_duplicates": 0.6 * r["swarm/num_assigned"]}, start=20
    )
    assert set(history(rows)) == {"spurious_parallelism"}
    assert history(altered("quickstart-0", lambda r: {"swarm/num_duplicates": 1.0}, start=20)) == {}


def test_a_swarm_that_grows_for_nothing() -> None:
    def grow(row: dict[str, float]) -> dict[str, float]:
        return {
            k: 2 * row[k] for k in ("swarm/num_subagents", "swarm/num_assigned", "tokens/subagent")
        }

    rows = altered("quickstart-0", grow, start=40)
    (alarm,) = check(rows)
    assert alarm.name == "spurious_parallelism"
    assert 40 <= alarm.step < 50
    assert "critical steps" in alarm.message
    faster = altered(
        "quickstart-0",
        lambda r: {**grow(r), "swarm/critical_steps": 0.5 * r["swarm/critical_steps"]},
        40,
    )
    assert (
        history(faster) == {}
    )  # the same outcome in half the critical steps: what parallel work is for


# --- when ------------------------------------------------------------------------------------------------------------


def test_what_no_longer_holds_is_not_reported() -> None:
    rows = load("no-shaping-0")  # of 48 episodes a step two delegate at step 17, one at step 21
    assert [a.name for a in check(rows[:16])] == ["serial_collapse"]
    assert check(rows[:24]) == []
    assert [a.step for a in check(rows)] == [29]


def test_a_run_that_profits_from_working_alone_has_not_collapsed() -> None:
    rows = altered("no-shaping-1", lambda r: {"outcome/score": 0.99}, start=8)
    assert history(rows) == {}


def test_watch_says_an_alarm_once() -> None:
    rows = load("high-costs")
    watch = Watch(rows[:10])
    said = [(row["step"], alarm.name) for row in rows[10:] for alarm in watch.add(row)]
    assert said == [(28, "reward_hacking"), (34, "serial_collapse")]


def test_a_resumed_run_says_again_what_holds() -> None:
    rows = load("high-costs")
    assert [a.name for a in Watch(rows[:40]).add(rows[40])] == ["serial_collapse", "reward_hacking"]


@pytest.mark.parametrize(
    "rows", [[], [{"step": 0.0}], [{"step": float(i)} for i in range(3 * WINDOW)]]
)
def test_metrics_that_are_not_there(rows: Rows) -> None:
    assert check(rows) == []


def test_steps_that_lost_all_their_episodes() -> None:
    rows = altered("quickstart-0", lambda r: {}, start=0)
    for row in rows[20:40]:
        for name in [k for k in row if k != "step"]:
            del row[name]
    assert history(rows) == {}


def test_an_alarm_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    alarm = Alarm("entropy_collapse", 12, "It [is] low.", "Raise it.")
    assert (
        str(alarm)
        == "ALARM entropy_collapse, since step 12: It [is] low. Raise it. (docs/reference/alarms.md)"
    )
    summary = {
        "seed": 0,
        "split": "test",
        "wall_s": 60.0,
        "heldout": {"cold_start": {}, "trained": {}},
    }
    print_summary(summary, tmp_path, None, [alarm])
    assert str(alarm) in capsys.readouterr().out
