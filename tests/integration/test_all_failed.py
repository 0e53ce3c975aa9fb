"""A step whose episodes all failed teaches nothing, and ends nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parl.config import load
from parl.core.types import Task
from parl.runs.folder import read_episodes
from parl.training import rollout_source as feed
from parl.training.trainer import train
from parl_envs.search.wide_search import WideSearch
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = WideSearch.start
    broken = [True]

    def fail(self: WideSearch, task: Task) -> None:
        if task.id.startswith("train") and broken[0]:
            raise OSError("the disk is gone")
        start(self, task)

    shape = [
        "baseline=null",
        "eval={num_tasks: 2, every: 1}",
        "cold_start=null",
        f"run_dir={tmp_path / 'run'}",
    ]
    config = load(ROOT / "configs" / "smoke.yaml", shape)
    broken[0] = False  # the rehearsal must pass
    monkeypatch.setattr(WideSearch, "start", fail)
    next_groups = feed.SyncSource.next

    def breaking(self: feed.SyncSource, step: int, runner: object) -> list[list[object]]:
        broken[0] = step < 2
        return next_groups(self, step, runner)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(feed.SyncSource, "next", breaking)
    train(config, None, False)
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["failures/environment"] if r["failures/num_failed"] else 0 for r in rows] == [4, 4, 0]
    stored = [read_episodes(f) for f in sorted((tmp_path / "run" / "episodes").glob("*.zst"))]
    assert [[e["status"] for e in step] for step in stored[:2]] == [["failed"] * 4] * 2
    assert all(
        e["rewards"] == {} and "the disk is gone" in e["traces"][0]["stop_reason"]
        for e in stored[0]
    )
    assert len(stored[2]) == 4
    assert (tmp_path / "run" / "report.html").is_file()
