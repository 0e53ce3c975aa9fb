"""Tracking: what Weights & Biases is told of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parl.config import load
from parl.training.tracking import Tracker
from tests.support.helpers import ROOT


@pytest.mark.parametrize("group", [None, "ablate-quickstart"])
def test_a_run_belongs_to_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str | None
) -> None:
    told: list[dict[str, Any]] = []
    run = SimpleNamespace(
        finish=lambda exit_code: None,
        log=lambda values, step: told.append({"step": step, **values}),
    )

    def init(**settings: Any) -> SimpleNamespace:
        told.append(settings)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    overrides = [
        "tracking.wandb.mode=offline",
        *([f"tracking.wandb.group={group}"] if group else []),
    ]
    config = load(ROOT / "configs" / "smoke.yaml", overrides)
    with Tracker(config, tmp_path) as tracker:
        tracker.log({"step": 3, "outcome/score": 0.5})
    assert (told[0]["group"], told[0]["name"], told[0]["project"]) == (group, config.name, "parl")
    assert told[1] == {"step": 3, "outcome/score": 0.5}
