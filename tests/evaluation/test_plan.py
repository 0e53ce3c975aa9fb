"""`parl eval`: which evaluations belong together, and what is made of their rows. Nothing is evaluated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parl.cli.eval import evaluate_command
from parl.config import load
from parl.core.errors import CheckpointError, ConfigError
from parl.core.types import Mode, Task
from parl.evaluation.metrics import heldout_rows
from parl.evaluation.plan import (
    EvalPlan,
    EvalRequest,
    EvalResult,
    check_seeds,
    combine_runs,
    compare_with_baselines,
    plan_baselines,
)
from parl.report.evaluation import interval, print_evaluation
from tests.support.helpers import ROOT, WordsEnv, assign, call, create, run, script, turns

CONFIG = load(ROOT / "configs" / "smoke.yaml")


def plan(path: Path, mode: Mode = "swarm", num: int = 2) -> EvalPlan:
    tasks = [Task(f"t{k}", "e", "p", {}) for k in range(num)]
    config = CONFIG.model_copy(update={"swarm": CONFIG.swarm.model_copy(update={"mode": mode})})
    return EvalPlan(
        config, WordsEnv(), tasks, "test", mode, 1, path, path / "checkpoints" / "step_000003"
    )


def evaluated(name: str, *scores: float, steps: float = 5.0) -> EvalResult:
    rows = [
        {
            "task": f"t{k}",
            "trial": 0,
            "status": "completed",
            "score": score,
            "critical_steps": steps + k,
        }
        for k, score in enumerate(scores)
    ]
    metrics = {"score": sum(scores) / len(scores), "num_tasks": float(len(scores))}
    result = {
        "run": name,
        "checkpoint": "step_000003",
        "split": "test",
        "mode": "swarm",
        "trials": 1,
    }
    return EvalResult({**result, "greedy": metrics, "statistics": {"greedy": {}}}, {"greedy": rows})


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_have_a_trial_and_what_statistics_need() -> None:
    episode = run(script([turns(create("a"), assign("a", "x")), "blue"], x=["X"]))
    rows = heldout_rows([episode, episode, episode, episode], trials=2)
    assert [row["trial"] for row in rows] == [0, 1, 0, 1]
    assert rows[0]["score"] == 1.0
    assert (rows[0]["critical_steps"], rows[0]["total_steps"], rows[0]["num_assigned"]) == (3, 3, 1)
    json.dumps(rows)


def test_the_rows_cost_is_that_of_the_episode() -> None:
    episode = run(script([call("peek", at="here"), "blue"]))
    (row,) = heldout_rows([episode])
    assert row["virtual_latency_s"] == episode.clock.critical_path_s > 0
    assert row["tokens"] == episode.tokens()


# --- what belongs together -------------------------------------------------------------------------------------------


def test_several_runs_must_be_seeds_of_one_experiment(tmp_path: Path) -> None:
    first = plan(tmp_path / "a")
    check_seeds([first, plan(tmp_path / "b")])
    with pytest.raises(ConfigError, match="have different tasks in their test split"):
        check_seeds([first, plan(tmp_path / "b", num=3)])
    with pytest.raises(ConfigError, match="given twice"):
        check_seeds([first, plan(tmp_path / "a")])
    with pytest.raises(ConfigError, match="swarms and single agents"):
        check_seeds([first, plan(tmp_path / "b", "single")])
    sampled = first.config.model_copy(
        update={"eval": first.config.eval.model_copy(update={"decoding": ("sampled",)})}
    )
    greedy = first.config.model_copy(
        update={"eval": first.config.eval.model_copy(update={"decoding": ("greedy",)})}
    )
    with pytest.raises(ConfigError, match="no decoding in common"):
        check_seeds([replace(first, config=sampled), replace(plan(tmp_path / "b"), config=greedy)])


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RUN-single of the run `tmp_path / "a"`, finished."""
    folder = tmp_path / "a-single"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    monkeypatch.setattr(
        "parl.evaluation.plan.plan_run",
        lambda path, request: replace(plan(path, "single"), trials=request.trials),
    )
    return folder


def test_a_swarm_is_compared_with_its_baseline(tmp_path: Path, baseline: Path) -> None:
    (result,) = plan_baselines([plan(tmp_path / "a")], EvalRequest(trials=3))
    assert (result.run, result.mode, result.trials) == (baseline, "single", 3)


def test_only_a_swarm_has_a_baseline(tmp_path: Path, baseline: Path) -> None:
    # --mode single: the swarm without its tools.
    swarm_alone = replace(plan(tmp_path / "a"), mode="single")
    assert plan_baselines([swarm_alone], EvalRequest()) == []
    assert plan_baselines([plan(tmp_path / "no-baseline")], EvalRequest()) == []


def test_why_there_is_no_comparison_is_said(
    tmp_path: Path,
    baseline: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def reason() -> str:
        assert plan_baselines([plan(tmp_path / "a")], EvalRequest()) == []
        return capsys.readouterr().err

    monkeypatch.setattr(
        "parl.evaluation.plan.plan_run", lambda path, request: plan(path, "single", num=3)
    )
    assert "Not compared with a single agent: " in (text := reason())
    assert "different tasks" in text

    def missing(path: Path, request: EvalRequest) -> EvalPlan:
        raise CheckpointError("no checkpoint '7'")

    monkeypatch.setattr("parl.evaluation.plan.plan_run", missing)
    assert "no checkpoint '7'" in reason()
    (baseline / "summary.json").unlink()
    assert "a-single has not finished" in reason()
    assert plan_baselines([plan(tmp_path / "a"), plan(tmp_path / "b")], EvalRequest()) == []


# --- what is made of the rows ----------------------------------------------------------------------------------------


def test_one_run_is_its_own_result() -> None:
    done = evaluated("a", 0.5, 1.0)
    assert combine_runs([done]) == done.result


def test_several_runs_are_pooled_by_seed_and_task() -> None:
    result = combine_runs([evaluated("a", 0.5, 1.0), evaluated("b", 0.7, 1.0)])
    assert result["greedy"]["score"] == pytest.approx(0.8)
    assert [one["run"] for one in result["runs"]] == ["a", "b"]
    found = result["statistics"]["greedy"]["score"]["avg"]
    assert found["mean"] == pytest.approx(0.8)
    assert 0.5 <= found["low"] < 0.8 < found["high"] <= 1.0


def test_a_comparison_is_paired_by_seed_and_task() -> None:
    runs = [evaluated("a", 0.5, 1.0), evaluated("b", 0.7, 1.0)]
    baselines = [
        evaluated("a-single", 0.4, 0.9, steps=20),
        evaluated("b-single", 0.6, 0.9, steps=20),
    ]
    found = compare_with_baselines(runs, baselines)
    assert found["runs"] == ["a-single", "b-single"]
    assert found["greedy"]["score"]["difference"] == {
        "mean": pytest.approx(0.1),
        "low": None,
        "high": None,
    }
    assert found["greedy"]["critical_steps"]["ratio"]["mean"] == pytest.approx(20.5 / 5.5)


# --- what is printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found, text",
    [
        ({"mean": 0.5, "low": 0.4, "high": 0.61}, "0.50 (0.40..0.61)"),
        ({"mean": 1.0, "low": None, "high": None}, "1.00"),
        ({"mean": None, "low": None, "high": None}, ""),
        (None, ""),
    ],
)
def test_interval_in_words(found: dict[str, float | None] | None, text: str) -> None:
    assert interval(found, 2) == text


def test_all_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [evaluated("a", 0.5, 1.0), evaluated("b", 0.7, 1.0)]
    baselines = [
        evaluated("a-single", 0.4, 0.8, steps=20),
        evaluated("b-single", 0.6, 0.9, steps=20),
    ]
    print_evaluation(combine_runs(runs) | {"against": compare_with_baselines(runs, baselines)})
    out = capsys.readouterr().out
    assert "2 runs, mean" in out
    assert "+0.125 (+0.100..+0.200)" in out
    assert "Against a-single, b-single, greedy" in out
    assert "Intervals are over 2 seeds and the tasks. 2 seeds are few" in out


def test_a_command_of_a_config_has_no_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {
        "checkpoint": None,
        "mode": None,
        "tasks": 1,
        "trials": 1,
        "split": None,
    }
    monkeypatch.setattr(
        "parl.evaluation.plan.evaluate", lambda plan: evaluated(plan.config.name, 0.5, 1.0)
    )
    evaluate_command([ROOT / "configs" / "smoke.yaml"], **options, as_json=True)
    assert json.loads(capsys.readouterr().out)["config"].endswith("smoke.yaml")
    with pytest.raises(CheckpointError, match="is no run folder"):
        evaluate_command([ROOT / "configs" / "smoke.yaml", ROOT], **options, as_json=True)
