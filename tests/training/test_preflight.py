"""What a run refuses before it has a folder: one clear message, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parl.cli.ablate import ablate
from parl.config import load
from parl.config.tiny import TinyModel
from parl.core import manifest
from parl.core.errors import CheckpointError, ConfigError, ModelUnavailable
from parl.env.base import AgentEnv
from parl.evaluation.plan import EvalRequest, plan_run
from parl.learner import checkpoint
from parl.policy.models.tiny import build_model, build_tokenizer
from parl.training.trainer import train
from tests.support.helpers import ROOT

SMOKE = ROOT / "configs" / "smoke.yaml"
GATED = "[{until: {metric: %s, value: 1, max_steps: 2}, value: false}, {value: true}]"
ADAPTER = "policies={main: {}, a: {adapter: %s}, b: {}}"
STAGE = "{name: s, data: %s, until: {metric: %s, value: 0.5, max_steps: 1}}"


def stage(data: str = "{episode: 1}", metric: str = "accuracy/episode") -> str:
    return f"cold_start.stages=[{STAGE % (data, metric)}]"


@pytest.mark.parametrize(
    "override, message",
    [
        ("policies.main.model=/nope", "neither `tiny` nor `tiny_vlm`, nor a transformers folder"),
        ("policies.main.renderer=llama3", r"renderer is llama3, .* lacks <\|begin_of_text\|>"),
        ("baseline=/nope.yaml", "baseline: There is no config file"),
        ("cold_start.from_run=/nope", "/nope has no checkpoint"),
        ("cold_start.demonstrator.lasy=0.1", "'lasy': 0.1} raised TypeError"),
        ("roles.orchestrator.limits.context_tokens=40", r"\(context_tokens\). Raise that limit"),
        ("reward.terms.outcome.metric=f2", "f2"),
        (
            "reward.terms.calibration.weight=1",
            r"leaves no counts of abstentions .* env\.kwargs\.unanswerable",
        ),
        (
            "credit.type=leave_one_out",
            r"parl/WideSearch-v0 cannot tell what a subagent contributed. Implement",
        ),
        ("roles.subagent.trainable=" + GATED % "outcome/subtsk", "Did you mean 'outcome/subtask'"),
        (
            "roles.subagent.trainable=" + GATED % "eval/scor",
            "waits for the metric 'eval/scor'. Did you mean 'eval/score'",
        ),
        (
            ADAPTER % "{base: b, target_modules: [q_prj]}",
            "'q_prj' is no linear layer of policies.b. Did you mean",
        ),
        (
            ADAPTER % "{base: b}, model: /nope",
            "policies.a.model is '/nope', which is neither `tiny` nor `tiny_vlm`, nor a peft folder",
        ),
        (stage(data="{episod: 1}"), "Did you mean 'episode'"),
        (stage(data="{episode: 0}"), "a share above 0"),
        (stage(metric="acuracy/episode"), "Did you mean 'accuracy'"),
        (stage(metric="accuracy/recall"), "Allowed: episode"),
        (stage(metric="forced_parallel/scor"), "Did you mean 'score'"),
    ],
)
def test_refused_before_anything_is_written(
    tmp_path: Path, override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "leave_one_out" in override:  # the shipped environment can tell
        from parl_envs.search.wide_search import WideSearch

        monkeypatch.setattr(WideSearch, "contributions", AgentEnv.contributions)
    run = tmp_path / "run"
    with pytest.raises((ConfigError, CheckpointError), match=message):
        train(load(SMOKE, [f"run_dir={run}", override]), None, False)
    assert not run.exists()


def test_another_runs_cold_start_must_have_every_policy(tmp_path: Path) -> None:
    cold = tmp_path / "other" / "checkpoints" / manifest.COLD_START
    cold.parent.mkdir(parents=True)
    tokenizer = build_tokenizer(["w"], ())
    model = build_model(TinyModel(hidden_size=16, num_heads=2, ff_size=16), len(tokenizer), 0, 0)
    checkpoint.save(cold, checkpoint.State(0, {}, []), {"main": (model, tokenizer)}, {})
    taken = [
        f"run_dir={tmp_path / 'run'}",
        f"cold_start.from_run={tmp_path / 'other'}",
        "policies.second={}",
    ]
    with pytest.raises(
        ConfigError,
        match=r"has no policy 'second'\. Start from its weights instead: cold_start=null",
    ):
        train(load(SMOKE, taken), None, False)
    assert not (tmp_path / "run").exists()


def test_a_gate_that_is_never_measured(tmp_path: Path) -> None:
    gated = "roles.subagent.trainable=" + GATED % "eval/score"
    with pytest.raises(ConfigError, match=r"waits for eval/score; set eval\.every as well"):
        train(load(SMOKE, [f"run_dir={tmp_path / 'run'}", "eval.every=null", gated]), None, False)


def test_a_gate_may_wait_for_abstentions_where_they_are_counted(tmp_path: Path) -> None:
    gated = "roles.subagent.trainable=" + GATED % "outcome/abstention_precision"
    settings = [f"run_dir={tmp_path / 'run'}", "baseline=null", gated]
    with pytest.raises(ConfigError, match="waits for the metric 'outcome/abstention_precision'"):
        train(load(SMOKE, settings), None, True)
    train(load(SMOKE, [*settings, "env.kwargs.unanswerable=0.2"]), None, True)


def test_a_tiny_model_is_not_trained_on_words_it_lacks(tmp_path: Path) -> None:
    evaluation = {
        "required": ["country", "capital"],
        "unique_columns": ["country"],
        "eval_pipeline": {
            c: {"preprocess": ["norm_str"], "metric": ["exact_match"]}
            for c in ("country", "capital")
        },
    }
    row = {
        "instance_id": "t1",
        "query": "find capital for : #1 Narnia",
        "evaluation": evaluation,
        "gold": [{"country": "Narnia", "capital": "Cair"}],
    }
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    tasks = f"env.tasks.test={{path: {tmp_path / 'tasks.jsonl'}}}"
    with pytest.raises(ConfigError, match=r"lacks words of the task t1: Narnia\. "):
        train(load(SMOKE, [f"run_dir={tmp_path / 'run'}", tasks]), None, True)
    (tmp_path / "tasks.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    with pytest.raises(ConfigError, match="1 ids are given to several tasks, 't1' first"):
        train(load(SMOKE, [f"run_dir={tmp_path / 'run'}", tasks]), None, True)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty, and no run"):
        train(load(SMOKE, [f"run_dir={tmp_path}", "baseline=null"]), None, False)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_dry_run_writes_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(load(SMOKE, [f"run_dir={tmp_path / 'run'}"]), None, True)
    assert capsys.readouterr().out.startswith("ok: smoke would run in ")
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_be_written_is_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "parl.evaluation.plan.read_resolved", lambda run: load(SMOKE).model_dump(mode="json")
    )
    monkeypatch.setattr("parl.learner.checkpoint.find", lambda run, which: tmp_path)
    monkeypatch.setattr("parl.core.manifest.verify", lambda folder: None)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(CheckpointError, match=r"cannot be written\. Copy the run"):
        plan_run(tmp_path, EvalRequest())
    assert not (tmp_path / "eval").exists()


def test_an_ablation_does_not_start_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "ablate-smoke").write_text("mine")
    config = tmp_path / "smoke.yaml"
    config.write_text(f"extends: {SMOKE}\nname: smoke\nrun_dir: {tmp_path / 'run'}\n")
    with pytest.raises(ConfigError, match="is a file, but this ablation needs a folder"):
        ablate(config, vary=["loss.tau=0.1,0.2"], configs=[], seeds=1)
    assert (tmp_path / "ablate-smoke").read_text() == "mine"


def test_a_dry_run_without_the_model_checks_the_rest(tmp_path: Path) -> None:
    """What is wrong beside the model is said first; then, that the model alone is missing."""
    changes = [f"run_dir={tmp_path / 'r'}", "policies.main.model=nobody/nothing", "baseline=null"]
    with pytest.raises(
        ModelUnavailable, match=r"hf download nobody/nothing .* Everything else .* fits\."
    ):
        train(load(SMOKE, changes), None, dry_run=True)
    with pytest.raises(ConfigError, match="raised TypeError"):
        train(load(SMOKE, [*changes, "cold_start.demonstrator.nonsense=1"]), None, dry_run=True)
    with pytest.raises(ModelUnavailable, match=r"--local-dir FOLDER\.$"):
        train(load(SMOKE, changes), None, dry_run=False)
    assert not (tmp_path / "r").exists()
