"""Inference actors: the same episodes as with an engine in the worker, new weights, and the loss of the actor."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray

from parl.config import Config, load
from parl.core.types import Episode
from parl.env import registry as plugins
from parl.env.registry import make_env
from parl.learner.policies import PolicySet
from parl.rollout.pool.local import Job, LocalPool
from parl.rollout.pool.ray import RayPool
from parl.rollout.swarm import SwarmRunner
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[Config, PolicySet, SwarmRunner, list[Job], RayPool]]:
    plugins.load()
    shape = "rollout={backend: ray, num_workers: 1, inference: {main: {instances: 1}}}"
    config = load(ROOT / "configs" / "smoke.yaml", [shape])
    env = make_env(config.env)
    policies = PolicySet(config, env)
    policies.engines.start()
    runner = SwarmRunner(policies.handles(), config.roles, config.swarm, config.clock)
    tasks = env.generate_tasks("train", 6, 0)
    jobs = [Job(t, f"e{i}", f"g{i}", 0, f"s{i}") for i, t in enumerate(tasks)]
    pool = RayPool(config.env, config.rollout, 2)
    yield config, policies, runner, jobs, pool
    pool.close()


def same(one: list[Episode], two: list[Episode]) -> None:
    """The same tokens; their log-probs to what other batches cost."""
    for a, b in zip(one, two, strict=True):
        assert [t.token_ids for t in a.traces] == [t.token_ids for t in b.traces]
        for s, t in zip(a.traces, b.traces, strict=True):
            assert s.logprobs == pytest.approx(t.logprobs, abs=1e-4)
            assert [x.policy_versions for x in s.turns] == [x.policy_versions for x in t.turns]


def local(config: Config, runner: SwarmRunner, jobs: list[Job]) -> list[Episode]:
    return LocalPool(lambda: make_env(config.env), config.rollout).run(runner, jobs)


def test_episodes_equal_those_of_an_engine_in_this_process(parts: Any) -> None:
    config, policies, runner, jobs, pool = parts
    same(pool.run(runner, jobs), local(config, runner, jobs))
    engine = policies.handles()["orchestrator"].engine
    engine.load_weights({k: v + 0.05 for k, v in engine.model.state_dict().items()}, 3)
    after = pool.run(runner, jobs)
    same(after, local(config, runner, jobs))
    assert after[0].orchestrator.turns[0].policy_versions == (3,)


def test_its_loss_costs_no_episode(parts: Any) -> None:
    """It comes back without weights and gets them; agents in the middle of their work bring their whole context."""
    _, _, runner, jobs, pool = parts
    many = [
        replace(job, episode_id=f"{job.episode_id}-{k}", seed=f"{job.seed}-{k}")
        for job in jobs
        for k in range(40)
    ]
    whole = pool.run(runner, many)
    [server] = pool._servers["main"]
    pid = ray.get(server.pid.remote())

    def kill() -> None:
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    again = pool.run(runner, many)
    killer.join()
    assert ray.get(server.pid.remote()) != pid
    assert [e.status for e in again] == [e.status for e in whole]
    same(again, whole)
    assert pool.lost["workers_lost"] == 0
