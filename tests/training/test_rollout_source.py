"""Which problems a step trains on: once each, none too old, the oldest first."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from parl.core.types import Episode, Task
from parl.policy.base import PolicyHandle
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.pool.local import Job, Sink, StreamPool
from parl.rollout.swarm import failed_episode
from parl.training.rollout_source import AsyncSource, TaskSampler

PROBLEMS = TaskSampler(
    [Task(f"t{i}", "x", "p", {}) for i in range(5)], seed=3, tasks_per_step=3, group_size=2
)
RUNNER: Any = None


class Pool:
    """Episodes that take as many polls as a die says."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.running: list[tuple[int, Job, Sink]] = []
        self.started: list[str] = []
        self.lost = Counter[str]()

    def submit(self, runner: Any, jobs: Sequence[Job], sink: Sink) -> None:
        self.started += [job.group for job in jobs[:1]]
        self.running += [(self.rng.choice([0, 1, 2, 30]), job, sink) for job in jobs]

    def poll(self) -> None:
        for _, job, sink in [r for r in self.running if r[0] == 0]:
            sink(
                job,
                failed_episode(
                    job.episode_id, job.task, job.group, job.step, EpisodeFailure("x", "x")
                ),
            )
        self.running = [(n - 1, job, sink) for n, job, sink in self.running if n > 0]

    def push(self, policies: Mapping[str, PolicyHandle]) -> None: ...

    def run(self, *_: Any) -> list[Episode]:
        raise NotImplementedError

    def close(self) -> None: ...


def feed(pool: Pool, staleness: int, steps: int = 20, **resumed: Any) -> AsyncSource:
    stream: StreamPool = pool
    return AsyncSource(PROBLEMS, stream, staleness, steps, **resumed)


def groups(batch: Sequence[Sequence[Episode]]) -> list[str]:
    assert all(len(g) == 2 for g in batch)
    return [g[0].group for g in batch]


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_every_problem_is_trained_once_and_none_is_too_old(staleness: int, seed: int) -> None:
    pool = Pool(seed)
    source = feed(pool, staleness)
    started_at: dict[str, int] = {}
    trained: list[str] = []
    for step in range(20):
        batch = groups(source.next(step, RUNNER))
        started_at |= {g: step for g in pool.started if g not in started_at}
        assert len(batch) == 3
        assert all(step - started_at[g] <= staleness for g in batch)
        trained += batch
    assert sorted(trained) == sorted(f"{s}-{k}" for s in range(20) for k in range(3))
    assert source.pending == ()
    assert len(pool.started) == 60


def test_work_goes_on_while_the_learner_learns() -> None:
    pool = Pool(0)
    source = feed(pool, 1)
    source.next(0, RUNNER)
    assert len(source.pending) == 3
    assert len(pool.started) == 6


def test_a_straggler_does_not_hold_up_a_step_that_can_do_without_it() -> None:
    pool = Pool(0)
    source = feed(pool, 2)
    pool.rng = random.Random()

    def late_first(_: Any) -> Any:
        return 30 if len(pool.started) == 1 else 0

    pool.rng.choice = late_first  # type: ignore[method-assign,assignment]
    assert "0-0" not in groups(source.next(0, RUNNER)) + groups(source.next(1, RUNNER))
    assert "0-0" in groups(source.next(2, RUNNER))  # now it is due, and waited for


@pytest.mark.parametrize("seed", range(5))
def test_a_resumed_run_loses_no_problem_and_trains_none_twice(seed: int) -> None:
    first = feed(Pool(seed), 2)
    trained = [g for step in range(7) for g in groups(first.next(step, RUNNER))]
    again = feed(Pool(seed + 100), 2, step=7, pending=first.pending)
    trained += [g for step in range(7, 20) for g in groups(again.next(step, RUNNER))]
    assert sorted(trained) == sorted(f"{s}-{k}" for s in range(20) for k in range(3))


def test_epochs_deal_every_task_once() -> None:
    for epoch in range(3):
        assert sorted(PROBLEMS.task(5 * epoch + i).id for i in range(5)) == [
            f"t{i}" for i in range(5)
        ]
    assert [j.seed for j in PROBLEMS.jobs(4)] == ["3/1-1-0", "3/1-1-1"]
