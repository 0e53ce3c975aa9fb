"""`parl rescore` on what `parl train` has stored: under its own config a run is as it was, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parl.runs.folder import read_episodes
from tests.integration.test_smoke import SHORT, SMOKE, contents, parl, train

pytestmark = pytest.mark.integration

# Two tasks that recur, so that the budgets of one step bind in the next; an untrained policy's answers must do.
TOGGLE = (
    "env.tasks.train.num=2",
    "reward.modifiers.toggle={period: 1, accuracy_threshold: 0, correct_threshold: 0, percentile: 0.5}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rescore") / "run"
    train(SMOKE, f"run_dir={path}", *SHORT, *TOGGLE)
    return path


def rescored(*args: object) -> dict[str, Any]:
    done = parl("rescore", *args, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_under_its_own_config_nothing_changes(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    result = rescored(run, run / "config.resolved.yaml", "-o", tmp_path / "out.json")
    assert result["exact"] is True
    assert result["total"]["num_episodes"] == 4 * 2 * 4
    assert all(e["advantage_old"] == e["advantage_new"] for e in result["episodes"])
    assert any(e["advantage_old"] for e in result["episodes"])
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert contents(run) == before


def test_what_was_stored_depends_on_the_budgets(run: Path) -> None:
    """Else the test above would not show that they are followed."""
    stored = [
        e for file in sorted((run / "episodes").glob("*.jsonl.zst")) for e in read_episodes(file)
    ]
    assert any(e["step"] > 0 and e["rewards"]["0"]["factors"] for e in stored)
    assert (
        rescored(run, run / "config.resolved.yaml", "reward.modifiers.toggle=null")["exact"]
        is False
    )


def test_another_reward_changes_the_order(run: Path) -> None:
    result = rescored(run, run / "config.resolved.yaml", "reward.terms.tokens.weight=-1.0")
    assert result["exact"] is False
    assert result["total"]["order_reversed"] > 0
    shown = parl(
        "rescore", run, run / "config.resolved.yaml", "reward.terms.tokens.weight=-1.0"
    ).stdout
    worst = max(result["episodes"], key=lambda e: abs(e["advantage_new"] - e["advantage_old"]))
    assert f"\n{worst['id']}: reward " in shown
