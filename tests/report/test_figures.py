"""`parl figures`: pictures from the files of runs that have finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from parl.core.errors import CheckpointError, ConfigError
from parl.report.figures import FiguresRequest, targets_table, write_figures
from parl.runs.folder import SCHEMA_VERSION


def make_rows(seconds: float, quality: float = 1.0) -> list[dict[str, Any]]:
    """Three tasks; each takes one second more than the one before it."""
    return [
        {
            "task": f"t{i}",
            "status": "completed",
            "item_f1": quality,
            "virtual_latency_s": seconds + i,
            "critical_steps": int(seconds) + i,
        }
        for i in range(3)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished swarm with its single agent."""
    for mode, name, seconds in (("swarm", "r", 1.0), ("single", "r-single", 4.0)):
        folder = tmp_path / name
        (folder / "eval").mkdir(parents=True)
        rows = json.dumps(make_rows(seconds))
        (folder / "eval" / f"trained-{mode}-greedy.tasks.json").write_text(rows)
        metrics = [{"step": step, "outcome/score": 0.5} for step in range(2)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    result = {"score": 1.0, "critical_steps": 2.0, "num_tasks": 3}
    summary = {
        "seed": 0,
        "split": "test",
        "heldout": {"trained": {"swarm": {"greedy": result}, "single": {"greedy": result}}},
    }
    (tmp_path / "r" / "summary.json").write_text(json.dumps(summary))
    config = {"schema_version": SCHEMA_VERSION, "name": "r"}
    (tmp_path / "r" / "config.resolved.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "r"


def test_pictures_from_the_files_of_a_run(run: Path, tmp_path: Path) -> None:
    pictures = ("result", "time_to_target")
    request = FiguresRequest(runs=[run], output=tmp_path / "figures", pictures=pictures)
    lines = list(write_figures(request))
    for name in pictures:
        file = tmp_path / "figures" / f"{name}.png"
        assert file.read_bytes().startswith(b"\x89PNG")
        assert any(line.startswith(str(file)) for line in lines)


def test_a_target_takes_the_longest_of_the_episodes_that_it_needs() -> None:
    tasks = ["t0", "t1", "t2"]
    lines = list(targets_table([make_rows(1.0)], [make_rows(4.0)], tasks, "item_f1"))
    row = next(line for line in lines if line.startswith("| 0.5 |"))
    swarm, single, ratio = (cell.split()[0] for cell in row.split("|")[2:5])
    assert (swarm, single, ratio) == ("2.0", "5.0", "2.5")


def test_what_cannot_be_drawn(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 runs, but 2 single agents"):
        list(write_figures(FiguresRequest(runs=[run], singles=[run, run])))
    no_single = FiguresRequest(runs=[run], singles=[tmp_path], pictures=["time_to_target"])
    with pytest.raises(CheckpointError, match="--only result"):
        list(write_figures(no_single))
    not_sampled = FiguresRequest(runs=[run], pictures=["result"], decoding="sampled")
    with pytest.raises(CheckpointError, match="no sampled results"):
        list(write_figures(not_sampled))
