"""The visual configs, shortened: cold start, rollouts with images in several agents, a step of RL, an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from parl.config import Config, load, parse
from parl.report.overview import before_after
from parl.report.summary import summary_table
from parl.training.trainer import train
from tests.integration.test_smoke import parl
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def short(name: str, folder: Path, kwargs: dict[str, Any], control: Path | None = None) -> Config:
    """Two steps of each stage, one of RL."""
    raw = load(ROOT / "configs" / f"{name}.yaml").model_dump(mode="json")
    raw["env"]["kwargs"] |= kwargs
    for split in raw["env"]["tasks"].values():
        split["num"] = 4
    for stage in raw["cold_start"]["stages"]:
        stage["tokens_per_step"] = 600
        stage["until"] |= {"max_steps": 2, "min_steps": 0}
    raw["cold_start"]["max_attempts"] = 1
    raw["train"] |= {
        "num_steps": 1,
        "tasks_per_step": 2,
        "group_size": 4,
        "max_off_policy_steps": 1,
    }
    raw["eval"]["num_tasks"] = 2
    raw["tracking"]["wandb"]["mode"] = "disabled"
    return parse(raw | {"baseline": control, "run_dir": str(folder)})


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("visual_single", {"unanswerable": 0.3}),
        ("visual_blind", {}),
        ("visual_swarm", {}),
        ("visual_pages", {"questions": ["list", "max"], "n": [2, 3], "unanswerable": 0.3}),
        ("visual_pages-single", {}),
    ],
)
def test_a_visual_config_trains(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(short(name, run, kwargs), None, False)
    (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert row["policy/main/sync_mismatch"] < 1e-5
    assert row["failures/num_failed"] == 0
    assert 0 <= row["outcome/zoom_iou"] <= row["outcome/tool_use"] <= 1
    if name == "visual_blind":
        assert row["outcome/tool_use"] == 0
    stages = json.loads((run / "summary.json").read_text())["cold_start_stages"]
    assert all(0 <= stage["value"] <= 1 for stage in stages)


def test_the_baseline_of_a_single_agent_stands_beside_it_in_its_summary(tmp_path: Path) -> None:
    blind = short("visual_blind", tmp_path / "unused", {}).model_dump(
        mode="json", exclude={"run_dir"}
    )
    (tmp_path / "blind.yaml").write_text(yaml.safe_dump(blind))
    train(short("visual_single", tmp_path / "run", {}, tmp_path / "blind.yaml"), None, False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    beside = json.loads((tmp_path / "run-single" / "summary.json").read_text())
    for phase in ("cold_start", "trained"):
        assert set(summary["heldout"][phase]) == {"single", "control"}
        assert summary["heldout"][phase]["control"] == beside["heldout"][phase]["single"]
        assert summary["heldout"][phase]["control"]["greedy"]["tool_use"] == 0
    labels = {row[0] for row in summary_table(summary)[1]}
    assert labels == {
        "cold start, single agent",
        "cold start, baseline",
        "trained single agent",
        "trained baseline",
    }
    assert any(tile["note"].startswith("baseline ") for tile in before_after(summary))
    parl("report", tmp_path / "run")
