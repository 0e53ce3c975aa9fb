"""Asynchronous training on Ray: every problem once, no token too old, also after a stop or the loss of a worker."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray

from parl.config import load
from parl.core.errors import Interrupted
from parl.runs.folder import read_episodes
from parl.training.hooks import StepRecord
from parl.training.rollout_source import AsyncSource
from parl.training.trainer import Trainer, train
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("some_number")]
STEPS, TASKS = 6, 2
SHAPE = [
    "rollout={backend: ray, num_workers: 1, hang_timeout_s: 20}",
    "baseline=null",
    "train.mode=async",
    "train.max_off_policy_steps=2",
    f"train.num_steps={STEPS}",
    f"train.tasks_per_step={TASKS}",
    "train.checkpoint_every=1",
    "reward.terms={outcome: {weight: 1}, some_number: {weight: 1}}",
    "eval={num_tasks: 2, every: null}",
    "policies.main.optimizer.lr=1e-6",
]


def config(run: Path) -> Any:
    return load(ROOT / "configs" / "smoke.yaml", [*SHAPE, f"run_dir={run}"])


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained(run: Path) -> list[str]:
    """Problems by the step that trained them, from what is stored."""
    files = sorted((run / "episodes").glob("*.zst"))
    return [
        group for file in files for group in dict.fromkeys(e["group"] for e in read_episodes(file))
    ]


EVERY_PROBLEM = sorted(f"{s}-{k}" for s in range(STEPS) for k in range(TASKS))


def test_every_problem_is_trained_once_and_tokens_tell_their_age(tmp_path: Path) -> None:
    train(config(tmp_path / "run"), None, False)
    rows = metrics(tmp_path / "run")
    assert [r["step"] for r in rows] == list(range(STEPS))
    assert sorted(trained(tmp_path / "run")) == EVERY_PROBLEM
    assert max(r["rollout/staleness_max"] for r in rows) in (1, 2)
    for step, file in enumerate(sorted((tmp_path / "run" / "episodes").glob("*.zst"))):
        turns = [t for e in read_episodes(file) for trace in e["traces"] for t in trace["turns"]]
        versions = {v for t in turns for v in t["policy_versions"]}
        assert versions <= set(range(max(0, step - 2), step + 1))
        assert max(step - v for v in versions) == rows[step]["rollout/staleness_max"]
        assert all(len(t["policy_versions"]) in (1, t["end"] - t["start"]) for t in turns)


def test_a_stopped_run_goes_on_without_losing_or_repeating_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    whole_step = Trainer.step

    def stop_in_step_two(self: Trainer, step: int) -> StepRecord:
        if step == 2:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C in the middle of the run
        return whole_step(self, step)

    monkeypatch.setattr(Trainer, "step", stop_in_step_two)
    with pytest.raises(Interrupted):
        train(config(run), None, False)
    monkeypatch.undo()
    state = json.loads((run / "checkpoints" / "step_000003" / "state.json").read_text())
    assert len(state["pending"]) == 2 * TASKS
    assert not set(trained(run)) & {f"{n // TASKS}-{n % TASKS}" for n in state["pending"]}
    train(config(run), run, False)
    assert sorted(trained(run)) == EVERY_PROBLEM
    assert [r["step"] for r in metrics(run)] == list(range(STEPS))


def test_a_lost_worker_costs_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed while it has problems in the works; they run again."""
    killed = Counter[str]()
    push = AsyncSource.push

    def kill_after_the_first_step(self: AsyncSource, policies: Any) -> None:
        pool: Any = self._pool
        if not killed and pool._running:
            [actor] = pool._manager.actors().values()
            os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
            killed["worker"] += 1
        push(self, policies)

    monkeypatch.setattr(AsyncSource, "push", kill_after_the_first_step)
    run = tmp_path / "run"
    train(config(run), None, False)
    assert killed["worker"] == 1
    assert sorted(trained(run)) == EVERY_PROBLEM
    rows = metrics(run)
    assert sum(r.get("rollout/workers_lost", 0) for r in rows) == 1
    assert all(r["failures/num_failed"] == 0 for r in rows)
