"""A cluster of two nodes: episodes run on both, and go on when one is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from parl.config import load
from parl.rollout.pool.ray import RayPool
from parl.runs.folder import read_episodes
from parl.training.hooks import StepRecord
from parl.training.trainer import Trainer, train
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def test_training_survives_the_loss_of_a_node(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second node goes after the first step; its share goes to the first node, as long as none takes its place."""
    used: set[str] = set()
    whole_step = Trainer.step

    def step(self: Trainer, number: int) -> StepRecord:
        if number == 1:
            assert isinstance(self.parts.pool, RayPool)
            used.update(
                n["NodeID"] for n in ray.nodes() if n["Resources"].get("CPU", 0) and n["Alive"]
            )
            other = next(iter(cluster.worker_nodes))
            cluster.remove_node(other, allow_graceful=False)
            time.sleep(3)  # its worker goes with it
        return whole_step(self, number)

    monkeypatch.setattr(Trainer, "step", step)
    shape = [
        "baseline=null",
        "eval={num_tasks: 2, every: null}",
        "train.num_steps=4",
        f"run_dir={tmp_path / 'run'}",
    ]
    workers = "rollout={backend: ray, num_workers: 2, hang_timeout_s: 4, max_restarts: 20}"
    train(load(ROOT / "configs" / "smoke.yaml", [*shape, workers]), None, False)
    assert len(used) == 2
    files = sorted((tmp_path / "run" / "episodes").glob("*.zst"))
    assert [len(read_episodes(f)) for f in files] == [4, 4, 4, 4]
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert sum(r.get("rollout/workers_lost", 0) for r in rows) >= 1
    assert rows[-1]["rollout/parts_reassigned"] >= 1
