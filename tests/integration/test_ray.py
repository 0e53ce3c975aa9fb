"""Rollouts on Ray: the same episodes as in this process, also when a worker dies in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parl.config import load
from parl.core.messages import Message
from parl.core.types import ROLES, Episode
from parl.env import registry as plugins
from parl.env.demonstrations import Segment
from parl.env.registry import make_env
from parl.learner.policies import PolicySet
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import ScriptedEngine
from parl.rollout.pool import make_pool
from parl.rollout.pool.local import Job, LocalPool, Pool
from parl.rollout.pool.ray import RayPool, _Part
from parl.rollout.swarm import SwarmRunner
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]
SMOKE = ROOT / "configs" / "smoke.yaml"


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[PolicySet, SwarmRunner, list[Job], Pool]]:
    plugins.load()
    config = load(SMOKE, ["rollout.backend=ray", "rollout.num_workers=2"])
    env = make_env(config.env)
    policies = PolicySet(config, env)
    policies.engines.start()
    runner = SwarmRunner(policies.handles(), config.roles, config.swarm, config.clock)
    tasks = env.generate_tasks("train", 4, 0)
    jobs = [
        Job(t, f"e{i}-{k}", f"g{i}", 0, f"s{i}-{k}") for i, t in enumerate(tasks) for k in range(2)
    ]
    pool = make_pool(config)
    yield policies, runner, jobs, pool
    pool.close()


def test_episodes_equal_those_of_two_local_pools(
    parts: tuple[PolicySet, SwarmRunner, list[Job], Pool],
) -> None:
    """Job i goes to worker i mod 2: each worker's share is what a local pool makes of it, bit for bit."""
    _, runner, jobs, pool = parts
    config = load(SMOKE)
    local: dict[int, Episode] = {}
    for worker in range(2):
        mine = list(range(worker, len(jobs), 2))
        done = LocalPool(lambda: make_env(config.env), config.rollout).run(
            runner, [jobs[i] for i in mine]
        )
        local |= dict(zip(mine, done, strict=True))
    assert pool.run(runner, jobs) == [local[i] for i in range(len(jobs))]


def test_new_weights_reach_the_workers(
    parts: tuple[PolicySet, SwarmRunner, list[Job], Pool],
) -> None:
    policies, runner, jobs, pool = parts
    before = pool.run(runner, jobs)
    engine = policies.handles()["orchestrator"].engine
    changed = {k: v + 0.05 for k, v in engine.model.state_dict().items()}  # type: ignore[attr-defined]
    engine.load_weights(changed, 7)  # type: ignore[attr-defined]
    after = pool.run(runner, jobs)
    assert {t.policy_versions for e in after for trace in e.traces for t in trace.turns} == {(7,)}
    assert [e.orchestrator.token_ids for e in after] != [e.orchestrator.token_ids for e in before]


def test_adapters_reach_the_workers(parts: tuple[PolicySet, SwarmRunner, list[Job], Pool]) -> None:
    """Both roles' adapters are in one engine of each worker, which does what a local pool's does."""
    *_, jobs, pool = parts
    own = [f"policies.{role}.adapter={{base: main, rank: 2}}" for role in ROLES]
    config = load(
        SMOKE, [*own, *(f"roles.{role}.policy={role}" for role in ROLES), "rollout.num_workers=2"]
    )
    policies = PolicySet(config, make_env(config.env))
    policies.engines.start()
    engine: Any = policies.handles()["orchestrator"].engine
    runner = SwarmRunner(policies.handles(), config.roles, config.swarm, config.clock)
    for version in (1, 2):
        changed = {k: v + 0.05 for k, v in engine.export_weights("orchestrator").items()}
        engine.load_weights(changed, version, "orchestrator")
        done = pool.run(runner, jobs)
        local: dict[int, Episode] = {}
        for worker in range(2):
            mine = list(range(worker, len(jobs), 2))
            alone = LocalPool(lambda: make_env(config.env), config.rollout).run(
                runner, [jobs[i] for i in mine]
            )
            local |= dict(zip(mine, alone, strict=True))
        assert done == [local[i] for i in range(len(jobs))]
        assert {t.policy_versions for e in done for t in e.orchestrator.turns} == {(version,)}


class Slow:
    """A script that takes its time, and tells where it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.15)
        return [Segment(f"#1 {rng.integers(1000)}")]


def test_a_killed_worker_costs_nothing_but_time(
    parts: tuple[PolicySet, SwarmRunner, list[Job], Pool], tmp_path: Path
) -> None:
    policies, runner, jobs, pool = parts
    assert isinstance(pool, RayPool)
    renderer = policies.renderers["main"]
    handle = PolicyHandle("main", renderer, ScriptedEngine(Slow(tmp_path), renderer), False)
    handles: Mapping[str, PolicyHandle] = {"orchestrator": handle, "subagent": handle}
    scripted = runner.with_policies(handles)
    whole = pool.run(scripted, jobs)
    for file in tmp_path.iterdir():
        file.unlink()
    lost_before = pool.lost["workers_lost"]

    def kill() -> None:
        while not (pids := list(tmp_path.iterdir())):
            time.sleep(0.02)
        os.kill(int(pids[0].name), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    again = pool.run(scripted, jobs)
    killer.join()
    assert again == whole
    assert pool.lost["workers_lost"] - lost_before == 1


def test_an_episode_that_keeps_losing_its_worker_fails_alone() -> None:
    """The whole batch once more, then one by one; the one that goes on killing is failed, and counted."""
    config = load(SMOKE)
    tasks = make_env(config.env).generate_tasks("train", 2, 0)
    jobs = [Job(t, f"e{i}", "g", 0, "s") for i, t in enumerate(tasks)]
    pool = RayPool(config.env, config.rollout, 2)
    failed: list[tuple[Job, Episode]] = []
    runner = SwarmRunner({}, config.roles, config.swarm, config.clock)
    part = _Part(0, jobs, runner, lambda job, episode: failed.append((job, episode)))
    [whole] = pool._after_loss(part)
    assert whole.jobs == jobs
    alone = pool._after_loss(whole)
    assert [p.jobs for p in alone] == [[jobs[0]], [jobs[1]]]
    [again] = pool._after_loss(alone[1])
    assert pool._after_loss(again) == []
    assert [(j.episode_id, e.status, e.failure) for j, e in failed] == [
        ("e1", "failed", "worker_lost")
    ]
