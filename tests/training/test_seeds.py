"""`parl seeds`: which trainings it starts, and the table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from parl.training import seeds


def make_summary(seed: int, score: float, **more: float) -> dict[str, Any]:
    result = {"score": score, "critical_steps": 5.0, **more}
    return {
        "seed": seed,
        "wall_s": 90.0,
        "cold_start_attempts": 1 + seed,
        "split": "test",
        "heldout": {"trained": {"swarm": {"greedy": result}}},
    }


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each `parl train` that is started; it writes a summary at once."""
    commands: list[list[str]] = []

    def train(command: list[str], check: bool) -> None:
        assert check
        commands.append(command[4:])
        folder = command[-1].removeprefix("run_dir=")
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "summary.json").write_text(json.dumps(make_summary(3, 0.5)))

    monkeypatch.setattr(subprocess, "run", train)
    return commands


def test_a_seed_is_trained_from_nothing(started: list[list[str]], tmp_path: Path) -> None:
    summary = seeds.run_seed(Path("c.yaml"), 3, tmp_path, ["train.num_steps=1"])
    assert summary["seed"] == 3
    run_dir = f"run_dir={tmp_path}/seed_3"
    assert started == [["c.yaml", "seed=3", "train.num_steps=1", run_dir]]


def test_a_seed_that_is_done_is_not_trained_again(started: list[list[str]], tmp_path: Path) -> None:
    for _ in range(2):
        seeds.run_seed(Path("c.yaml"), 3, tmp_path, [])
    assert len(started) == 1


def test_a_seed_that_was_stopped_goes_on(started: list[list[str]], tmp_path: Path) -> None:
    config = tmp_path / "seed_3" / "config.resolved.yaml"
    config.parent.mkdir()
    config.touch()
    seeds.run_seed(Path("c.yaml"), 3, tmp_path, ["train.num_steps=1"])
    assert started == [[str(config), "--resume", f"{tmp_path}/seed_3"]]


def test_the_table_has_what_was_measured() -> None:
    summaries = [make_summary(0, 0.5, item_f1=0.25), make_summary(1, 1.0, item_f1=0.75)]
    first, _, legend, _, header, _, row = seeds.seeds_table(summaries)
    assert first == "Seeds 0, 1; minutes: 1.5, 1.5; cold-start attempts at most 2."
    assert "(test)" in legend
    assert header == "| policy | decoding | score | item_f1 | critical_steps |"
    cells = "0.75 [0.5, 1] | 0.5 [0.25, 0.75] | 5 [5, 5]"
    assert row == f"| trained, swarm | greedy | {cells} |"


def test_a_metric_that_no_seed_has_leaves_its_cell_empty() -> None:
    summaries = [make_summary(0, 0.5, item_f1=0.25), make_summary(1, 1.0)]
    assert list(seeds.seeds_table(summaries))[-1].count("0.25 [0.25, 0.25]") == 1
