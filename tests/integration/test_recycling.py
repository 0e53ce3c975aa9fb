"""A worker that has grown too much is started anew, and its successor does the rest."""

from __future__ import annotations

from typing import Any

import pytest

from parl.config import load
from parl.env import registry as plugins
from parl.env.demonstrations import Segment
from parl.env.registry import make_env
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import ScriptedEngine
from parl.rollout.pool.local import Job, LocalPool
from parl.rollout.pool.ray import RayPool
from parl.rollout.swarm import SwarmRunner
from tests.support.helpers import ROOT, Characters

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_a_worker_above_the_limit_is_replaced() -> None:
    plugins.load()
    config = load(
        ROOT / "configs" / "smoke.yaml",
        ["rollout={backend: ray, num_workers: 1, max_worker_mb: 1}"],
    )
    renderer: Any = Characters()
    handle = PolicyHandle(
        "main", renderer, ScriptedEngine(lambda messages, rng: [Segment("x")], renderer), False
    )
    runner = SwarmRunner(
        {"orchestrator": handle, "subagent": handle}, config.roles, config.swarm, config.clock
    )
    tasks = make_env(config.env).generate_tasks("train", 2, 0)
    jobs = [Job(t, f"e{i}", "g", 0, f"s{i}") for i, t in enumerate(tasks)]
    pool = RayPool(config.env, config.rollout, 1)
    try:
        first, second = pool.run(runner, jobs), pool.run(runner, jobs)
    finally:
        pool.close()
    local = LocalPool(lambda: make_env(config.env), config.rollout).run(runner, jobs)
    assert first == second == local
    assert pool.lost["workers_recycled"] == 2
    assert pool.lost["workers_lost"] == 0
