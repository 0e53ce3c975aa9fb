"""A run on Ray that is stopped and goes on equals one that was not, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from parl.config import load
from parl.core.errors import Interrupted
from parl.training.hooks import StepRecord
from parl.training.trainer import Trainer, train
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]
SMOKE = ROOT / "configs" / "smoke.yaml"


def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some_number: None
) -> None:
    """As in this process: same metrics, same weights, whether or not it was stopped on the way."""

    def config(run: Path) -> Any:
        reward = "reward.terms={outcome: {weight: 1}, some_number: {weight: 1}}"
        shape = [
            "rollout.backend=ray",
            "baseline=null",
            "train.num_steps=4",
            "eval={num_tasks: 2, every: null}",
        ]
        return load(SMOKE, [*shape, reward, f"run_dir={run}"])

    train(config(tmp_path / "whole"), None, False)
    step = Trainer.step

    def stop(self: Trainer, number: int) -> StepRecord:
        if number == 1:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C in the middle of the run
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", stop)
    with pytest.raises(Interrupted):
        train(config(tmp_path / "stopped"), None, False)
    monkeypatch.undo()
    train(config(tmp_path / "stopped"), tmp_path / "stopped", False)

    def metrics(run: str) -> list[dict[str, float]]:
        rows = [
            json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        free = ("time/", "system/")
        return [
            {k: v for k, v in r.items() if not k.startswith(free) and not k.endswith("_per_s")}
            for r in rows
        ]

    def weights(run: str) -> bytes:
        return (
            tmp_path / run / "checkpoints/step_000004/policies/main/model.safetensors"
        ).read_bytes()

    assert metrics("stopped") == metrics("whole")
    assert max(r["policy/main/grad_norm"] for r in metrics("whole")) > 0
    assert weights("stopped") == weights("whole")
