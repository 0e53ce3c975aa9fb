"""Which problems a step trains on, and when they are sampled: just before (sync), or ahead of time (async).

In: the endless, fixed sequence of problems; a pool. Out: for each step its groups of episodes. Every problem is trained
exactly once in both modes, a resumed run included.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from fractions import Fraction
from statistics import fmean
from typing import Protocol, cast

import numpy as np

from parl.config import Config
from parl.config.env import MixConfig
from parl.core.seeds import seed_for
from parl.core.types import Episode, Task
from parl.learner.checkpoint import State
from parl.policy.base import PolicyHandle
from parl.rollout.pool.local import Job, Pool, StreamPool
from parl.rollout.swarm import SwarmRunner


class MixtureSampler:
    """Which ability the n-th problem has: after any n problems each has had weight * n of them, less than one off.

    So a step has its exact share wherever that is a whole number, and over steps nothing is lost. By Balinski and
    Young's quota method: of those that are below their share, the one that a further problem leaves furthest below.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = {ability: Fraction(str(weight)) for ability, weight in weights.items()}
        self._total = sum(self._weights.values())
        self._had = dict.fromkeys(weights, 0)
        self._dealt: list[tuple[str, int]] = []

    def at(self, number: int) -> tuple[str, int]:
        """(ability of problem `number`, how many before it had the same)."""
        while len(self._dealt) <= number:
            num = len(self._dealt) + 1
            below = [a for a, w in self._weights.items() if self._had[a] * self._total < w * num]
            ability = max(below, key=lambda a: self._weights[a] / (self._had[a] + 1))
            self._dealt.append((ability, self._had[ability]))
            self._had[ability] += 1
        return self._dealt[number]


class TaskSampler:
    """The n-th problem of a run: a permutation of the tasks that is dealt anew each epoch, K episodes of each.

    Args:
        weights: of a mix of environments, ability -> weight: each ability's tasks are dealt for themselves.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        seed: int,
        tasks_per_step: int,
        group_size: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.seed, self.tasks_per_step, self.group_size = seed, tasks_per_step, group_size
        self._shares = MixtureSampler(weights or {"": 1.0})
        self._tasks: dict[str, list[Task]] = {}
        for task in tasks:
            self._tasks.setdefault(task.ability if weights else "", []).append(task)

    def task(self, number: int) -> Task:
        ability, count = self._shares.at(number)
        tasks = self._tasks[ability]
        epoch, place = divmod(count, len(tasks))
        stream = ("tasks", ability, epoch) if ability else ("tasks", epoch)
        order = np.random.default_rng(seed_for(self.seed, *stream)).permutation(len(tasks))
        return tasks[int(order[place])]

    def jobs(self, number: int) -> list[Job]:
        """The K episodes of a problem; their names and seeds do not depend on when they are run."""
        step, k = divmod(number, self.tasks_per_step)
        task = self.task(number)
        names = [f"{step}-{k}-{j}" for j in range(self.group_size)]
        return [Job(task, name, f"{step}-{k}", step, f"{self.seed}/{name}") for name in names]


class RolloutSource(Protocol):
    """Where a step's groups come from."""

    def next(self, step: int, runner: SwarmRunner) -> list[list[Episode]]:
        """The groups to train at a step, by the number of their problem."""
        ...

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        """The weights have changed."""
        ...

    @property
    def pending(self) -> tuple[int, ...]:
        """Problems that were started and not trained: a resumed run takes them first."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Of the last step, what the trained episodes do not tell."""
        ...


def make_source(config: Config, tasks: Sequence[Task], pool: Pool, state: State) -> RolloutSource:
    """Return the source that `train.mode` names.

    Args:
        state: of a run that goes on: its next step, and the problems that were started before.
    """
    train = config.train
    sampler = TaskSampler(
        tasks, config.seed, train.tasks_per_step, train.group_size, _mixture_weights(config)
    )
    if train.mode == "sync":
        return SyncSource(sampler, pool)
    stream = cast(StreamPool, pool)  # the config allows async mode on Ray alone, whose pool streams
    return AsyncSource(
        sampler, stream, train.max_off_policy_steps, train.num_steps, state.step, state.pending
    )


def _mixture_weights(config: Config) -> Mapping[str, float] | None:
    return config.env.weights if isinstance(config.env, MixConfig) else None


class SyncSource:
    """Samples the step's problems under the current weights, and waits for all of them."""

    pending: tuple[int, ...] = ()
    metrics: Mapping[str, float] = {}

    def __init__(self, problems: TaskSampler, pool: Pool) -> None:
        self._problems, self._pool = problems, pool

    def next(self, step: int, runner: SwarmRunner) -> list[list[Episode]]:
        num, size = self._problems.tasks_per_step, self._problems.group_size
        jobs = [job for k in range(num) for job in self._problems.jobs(step * num + k)]
        episodes = self._pool.run(runner, jobs)
        return [episodes[i : i + size] for i in range(0, len(episodes), size)]

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        """The pool takes the weights with the next episodes."""


class AsyncSource:
    """Keeps problems in the works while the learner learns.

    A problem that was started at step v is trained at step v + `max_off_policy_steps` at the latest: no more are started than
    can be trained by then, and a step waits for those that are due. Otherwise it takes what is done, the oldest first.
    Nothing is thrown away for its age. (AReaL, 2505.24298, eq. 3, bounds admission likewise.)

    Args:
        pending: of a resumed run, problems that were started before and have to be done again.
        step: the step that `next` is first asked for.
        num_steps: no problem is started that the run would not train.
    """

    def __init__(
        self,
        problems: TaskSampler,
        pool: StreamPool,
        max_off_policy_steps: int,
        num_steps: int,
        step: int = 0,
        pending: Sequence[int] = (),
    ) -> None:
        self._problems, self._pool, self._max_staleness = problems, pool, max_off_policy_steps
        self._last = num_steps * problems.tasks_per_step
        self._again = sorted(pending)
        self._cursor = step * problems.tasks_per_step + len(
            pending
        )  # all before it were trained or are pending
        self._started: dict[int, int] = {}  # problem -> the step at which it was started
        self._done: dict[int, dict[str, Episode]] = {}
        self._finished: list[Episode] = []

    @property
    def pending(self) -> tuple[int, ...]:
        return tuple(sorted([*self._started, *self._again]))

    def next(self, step: int, runner: SwarmRunner) -> list[list[Episode]]:
        self._finished = []
        self._admit(step, runner)
        while (chosen := self._choose(step)) is None:
            self._pool.poll()
        groups = []
        for number in chosen:
            del self._started[number]
            done = self._done.pop(number)
            groups.append([done[job.episode_id] for job in self._problems.jobs(number)])
        return groups

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        self._pool.push(policies)

    @property
    def metrics(self) -> Mapping[str, float]:
        """A length bias would show here: tokens of what finished since the last step, beside `swarm/tokens_per_episode`."""
        ok = [e.tokens() for e in self._finished if e.status != "failed"]
        whole = sum(self._is_done(n) for n in self._started)
        return {
            **({"rollout/tokens_finished": fmean(ok)} if ok else {}),
            "rollout/groups_waiting": float(whole),
            "rollout/groups_running": float(len(self._started) - whole),
        }

    def _admit(self, step: int, runner: SwarmRunner) -> None:
        most = min((step + 1 + self._max_staleness) * self._problems.tasks_per_step, self._last)
        while self._again or self._cursor < most:
            number = self._again.pop(0) if self._again else self._cursor
            if number == self._cursor:
                self._cursor += 1
            self._started[number], self._done[number] = step, {}

            def sink(job: Job, episode: Episode, number: int = number) -> None:
                self._done[number][job.episode_id] = episode
                self._finished.append(episode)

            self._pool.submit(runner, self._problems.jobs(number), sink)

    def _choose(self, step: int) -> list[int] | None:
        done = {n for n in self._started if self._is_done(n)}
        return choose_due_problems(
            self._started, done, step, self._max_staleness, self._problems.tasks_per_step
        )

    def _is_done(self, number: int) -> bool:
        return len(self._done[number]) == self._problems.group_size


def choose_due_problems(
    started: Mapping[int, int], done: Container[int], step: int, max_off_policy_steps: int, num: int
) -> list[int] | None:
    """The `num` problems of a step, None while it has to wait: of those that are done the oldest, if all others can
    still be trained in time, as many a step. `started`: problem -> the step at which it was started."""
    order = sorted(started, key=lambda n: (started[n], n))
    chosen = [n for n in order if n in done][:num]
    taken = set(chosen)
    left = [started[n] + max_off_policy_steps for n in order if n not in taken]
    late = any(step + 1 + i // num > due for i, due in enumerate(left))
    return None if late or len(chosen) < num else sorted(chosen)
