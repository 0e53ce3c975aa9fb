"""A run over two environments as a user runs it: the whole path, a resumed run, and the commands around it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from parl.runs.folder import read_episodes
from tests.integration.test_smoke import contents, metrics, parl, train
from tests.support.helpers import ROOT

pytestmark = pytest.mark.integration

FEW = "{train: {num: 8}, validation: {num: 4}, test: {num: 4}}"
SHORT = f"""
extends: {ROOT}/configs/joint.yaml
name: joint-smoke
policies:
  main: {{tiny_vlm: {{hidden_size: 48, num_heads: 2, ff_size: 48, vision_size: 16}}}}
cold_start:
  max_attempts: 1
  stages:
    - name: demonstrations
      data: {{search/episode: 0.5, visual/episode: 0.3, visual/read: 0.2}}
      tokens_per_step: 1500
      until: {{metric: ability/visual/score, value: 0.0, max_steps: 3}}
eval: {{num_tasks: 4, every: 2}}
train: {{num_steps: 3, tasks_per_step: 4, group_size: 2, checkpoint_every: 1, keep_checkpoints: 3}}
tracking: {{wandb: {{mode: disabled}}}}
"""
SETTINGS = (f"env.mix.0.tasks={FEW}", f"env.mix.1.tasks={FEW}", "env.mix.0.weight=3")


def steady(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what the clock says."""
    return [
        {k: v for k, v in r.items() if not k.startswith(("time/", "system/")) and "_per_s" not in k}
        for r in rows
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    (folder / "c.yaml").write_text(SHORT)
    train(folder / "c.yaml", f"run_dir={folder / 'run'}", *SETTINGS)
    return folder / "run"


def test_each_step_trains_on_both_in_the_ratio_of_the_weights(run: Path) -> None:
    for step, row in enumerate(metrics(run)):
        assert (row["ability/search/num_episodes"], row["ability/visual/num_episodes"]) == (6, 2)
        stored = read_episodes(run / "episodes" / f"step_{step:06d}.jsonl.zst")
        found = Counter((e["task"]["ability"], e["task"]["env"]) for e in stored)
        assert found == {("search", "parl/WideSearch-v0"): 6, ("visual", "parl/VisualTools-v0"): 2}
        assert {"item_f1" in e["outcome"] for e in stored if e["task"]["ability"] == "search"} == {
            True
        }
        assert {"zoom_iou" in e["outcome"] for e in stored if e["task"]["ability"] == "visual"} == {
            True
        }


def test_held_out_results_are_told_by_ability(run: Path) -> None:
    for phase in json.loads((run / "summary.json").read_text())["heldout"].values():
        for found in phase["single"].values():
            assert found["num_tasks"] == 8
            assert found["ability/search/num_tasks"] == found["ability/visual/num_tasks"] == 4
            both = (found["ability/search/score"] + found["ability/visual/score"]) / 2
            assert found["score"] == pytest.approx(both)
    assert "eval/ability/visual/score" in metrics(run)[-1]
    rows = json.loads((run / "eval" / "trained-single-greedy.tasks.json").read_text())
    assert [row["ability"] for row in rows] == ["search", "visual"] * 4


def test_a_resumed_run_goes_on_bit_for_bit(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for step in (2, 3):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    train(again / "config.resolved.yaml", f"run_dir={again}", "--resume", again)
    assert steady(metrics(again)) == steady(metrics(run))
    weights = "checkpoints/step_000003/policies/main/model.safetensors"
    assert contents(again)[weights] == contents(run)[weights]


def test_the_commands_around_a_run(run: Path, tmp_path: Path) -> None:
    for args in (
        ("config", "check", run / "config.resolved.yaml"),
        ("config", "explain", run / "config.resolved.yaml"),
        ("eval", run, "--tasks", "4", "--json"),
        ("rescore", run, run / "config.resolved.yaml"),
        ("report", run, "-o", tmp_path / "r.html"),
        ("export", run, "-o", tmp_path / "data", "--episodes", "sft"),
    ):
        done = parl(*args)
        assert done.returncode == 0, (args, done.stdout + done.stderr)
        if args[0] == "eval":
            assert json.loads(done.stdout)["greedy"]["ability/visual/num_tasks"] == 2
    page = (tmp_path / "r.html").read_text()
    assert "Environment, visual (1)" in page
    assert "Outcome by ability" in page


def test_a_kind_without_its_ability_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SHORT.replace("visual/read", "read"))
    done = parl("train", tmp_path / "c.yaml", *SETTINGS, "--dry-run")
    assert done.returncode == 2
    assert (
        "'read' names no ability of env.mix. Write ABILITY/KIND: search/read or visual/read."
        in done.stderr
    )


@pytest.mark.slow
def test_workers_on_ray_play_the_same_episodes(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    on_ray = ("rollout.backend=ray", "rollout.num_workers=1")
    train(run.parent / "c.yaml", f"run_dir={again}", *SETTINGS, *on_ray)
    first, second = metrics(run)[0], metrics(again)[0]
    for name in ("ability/search/score", "ability/visual/tool_use", "swarm/tokens_per_episode"):
        assert first[name] == second[name]
