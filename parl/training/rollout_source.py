"""Which problems a step trains on, and when they are sampled: before it or ahead of it.

A problem is a task with the K episodes of its group. Their sequence is endless and fixed by the
seed, and every problem is trained exactly once in both modes, a resumed run included.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from fractions import Fraction
from statistics import fmean
from types import MappingProxyType
from typing import Protocol, cast

import numpy as np

from parl.config import Config
from parl.core.seeds import seed_for
from parl.core.types import Episode, Task
from parl.learner.checkpoint import State
from parl.policy.base import PolicyHandle
from parl.rollout.pool.local import Job, Pool, StreamPool
from parl.rollout.swarm import SwarmRunner

SINGLE: Mapping[str, float] = MappingProxyType({"": 1.0})
"""The weights of a single environment."""


class MixtureSampler:
    """Deals abilities by weight: of any n problems each has weight * n, less than one off.

    So a step has its exact share wherever that is a whole number, and over steps nothing is lost.
    This is Balinski and Young's quota method: of the abilities below their share, the next problem
    goes to the one that it leaves furthest below.

    Args:
        weights: ability -> weight.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        # Exact fractions: with floats 0.1 + 0.2 is off by one in a long run.
        self._weights = {ability: Fraction(str(weight)) for ability, weight in weights.items()}
        self._total = sum(self._weights.values())
        self._counts = dict.fromkeys(weights, 0)
        self._dealt: list[tuple[str, int]] = []

    def at(self, number: int) -> tuple[str, int]:
        """Return the ability of problem `number`, and how many problems before it had the same."""
        while len(self._dealt) <= number:
            ability = self._next(len(self._dealt) + 1)
            self._dealt.append((ability, self._counts[ability]))
            self._counts[ability] += 1
        return self._dealt[number]

    def _next(self, num_problems: int) -> str:
        best_ability, best_need = "", Fraction(-1)
        for ability, weight in self._weights.items():
            is_below_share = self._counts[ability] * self._total < weight * num_problems
            need = weight / (self._counts[ability] + 1)
            if is_below_share and need > best_need:
                best_ability, best_need = ability, need
        return best_ability


class TaskSampler:
    """Deals problems: in each epoch a new permutation of the tasks, with K episodes of each.

    Args:
        weights: ability -> weight. The tasks of each ability have permutations of their own. A
            single environment has the ability "".
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        seed: int,
        tasks_per_step: int,
        group_size: int,
        weights: Mapping[str, float] = SINGLE,
    ) -> None:
        self.seed = seed
        self.tasks_per_step = tasks_per_step
        self.group_size = group_size
        self._abilities = MixtureSampler(weights)
        self._tasks: dict[str, list[Task]] = {}
        for task in tasks:
            ability = task.ability if task.ability in weights else ""
            self._tasks.setdefault(ability, []).append(task)

    def task(self, number: int) -> Task:
        """Return the task of problem `number` (0-based, over the whole run)."""
        ability, count = self._abilities.at(number)
        tasks = self._tasks[ability]
        epoch, position = divmod(count, len(tasks))
        stream = ("tasks", ability, epoch) if ability else ("tasks", epoch)
        # Drawn from (seed, epoch) and not from a running generator: a resumed run needs no state.
        order = np.random.default_rng(seed_for(self.seed, *stream)).permutation(len(tasks))
        return tasks[int(order[position])]

    def jobs(self, number: int) -> list[Job]:
        """Return the K episodes of a problem; names and seeds do not depend on when they run."""
        step, k = divmod(number, self.tasks_per_step)
        task = self.task(number)
        jobs = []
        for j in range(self.group_size):
            name = f"{step}-{k}-{j}"
            jobs.append(Job(task, name, f"{step}-{k}", step, f"{self.seed}/{name}"))
        return jobs


class RolloutSource(Protocol):
    """Where the groups of a step come from."""

    def next(self, step: int, runner: SwarmRunner) -> list[list[Episode]]:
        """Return the groups to train at a step, in the order of their problems."""
        ...

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        """Take note that the weights have changed."""
        ...

    @property
    def pending(self) -> tuple[int, ...]:
        """Problems that were started and not trained: a resumed run takes them first."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the last step that its trained episodes do not tell."""
        ...


def make_source(config: Config, tasks: Sequence[Task], pool: Pool, state: State) -> RolloutSource:
    """Return the source that `train.mode` names.

    Args:
        state: of a run that goes on: its next step, and the problems that were started before.
    """
    train = config.train
    sampler = TaskSampler(
        tasks, config.seed, train.tasks_per_step, train.group_size, config.env.weights
    )
    if train.mode == "sync":
        return SyncSource(sampler, pool)
    stream = cast(StreamPool, pool)  # the config allows async mode on Ray alone, whose pool streams
    return AsyncSource(
        sampler, stream, train.max_off_policy_steps, train.num_steps, state.step, state.pending
    )


class SyncSource:
    """Samples the problems of a step under the current weights, and waits for all of them."""

    pending: tuple[int, ...] = ()
    metrics: Mapping[str, float] = {}

    def __init__(self, sampler: TaskSampler, pool: Pool) -> None:
        self._sampler = sampler
        self._pool = pool

    def next(self, step: int, runner: SwarmRunner) -> list[list[Episode]]:
        num_tasks, group_size = self._sampler.tasks_per_step, self._sampler.group_size
        jobs: list[Job] = []
        for k in range(num_tasks):
            jobs += self._sampler.jobs(step * num_tasks + k)
        episodes = self._pool.run(runner, jobs)
        return [episodes[i : i + group_size] for i in range(0, len(episodes), group_size)]

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        """Do nothing: the pool takes the weights with the next episodes."""


class AsyncSource:
    """Runs problems while the learner learns.

    A problem that starts at step v is trained at step v + `max_off_policy_steps` at the latest: no
    more are started than can be trained by then, and a step waits for those that are due. Otherwise
    it takes what is done, the oldest first. Nothing is thrown away for its age. (AReaL, 2505.24298,
    eq. 3, bounds admission in the same way.)

    Args:
        max_off_policy_steps: how many updates may lie between the start of a problem and its
            training.
        num_steps: no problem is started that the run would not train.
        step: the step that `next` is first called for.
        pending: of a resumed run, problems that were started before and have to run again.
    """

    def __init__(
        self,
        sampler: TaskSampler,
        pool: StreamPool,
        max_off_policy_steps: int,
        num_steps: int,
        step: int = 0,
        pending: Sequence[int] = (),
    ) -> None:
        self._sampler = sampler
        self._pool = pool
        self._max_off_policy_steps = max_off_policy_steps
        self._num_problems = num_steps * sampler.tasks_per_step
        self._repeat = sorted(pending)
        # The next new problem: all before it were trained or are pending.
        self._cursor = step * sampler.tasks_per_step + len(pending)
        self._started: dict[int, int] = {}  # problem -> the step at which it started
        self._episodes: dict[int, dict[str, Episode]] = {}  # problem -> its finished episodes
        self._finished: list[Episode] = []  # since the last step

    @property
    def pending(self) -> tuple[int, ...]:
        return tuple(sorted([*self._started, *self._repeat]))

    def next(self, step: int, runner: SwarmRunner) -> list[list[Episode]]:
        self._finished = []
        self._admit(step, runner)
        numbers = self._due(step)
        while numbers is None:
            self._pool.poll()
            numbers = self._due(step)
        # In the order of the problems, not of their ends: sums of floats depend on the order.
        groups = []
        for number in numbers:
            del self._started[number]
            episodes = self._episodes.pop(number)
            groups.append([episodes[job.episode_id] for job in self._sampler.jobs(number)])
        return groups

    def push(self, policies: Mapping[str, PolicyHandle]) -> None:
        # Running agents take the new weights at their next turn: each token has its version.
        self._pool.push(policies)

    @property
    def metrics(self) -> Mapping[str, float]:
        num_waiting = sum(self._is_done(number) for number in self._started)
        metrics = {
            "rollout/groups_waiting": float(num_waiting),
            "rollout/groups_running": float(len(self._started) - num_waiting),
        }
        # A length bias shows in the difference to `swarm/tokens_per_episode`, which counts trained
        # episodes: short episodes finish first.
        num_tokens = [e.tokens() for e in self._finished if e.status != "failed"]
        if num_tokens:
            metrics["rollout/tokens_finished"] = fmean(num_tokens)
        return metrics

    def _admit(self, step: int, runner: SwarmRunner) -> None:
        """Start all problems that can still be trained in time."""
        horizon = step + 1 + self._max_off_policy_steps
        end = min(horizon * self._sampler.tasks_per_step, self._num_problems)
        while self._repeat or self._cursor < end:
            # Those that a stopped run had begun are the oldest: they are due first.
            if self._repeat:
                number = self._repeat.pop(0)
            else:
                number = self._cursor
                self._cursor += 1
            self._start(number, step, runner)

    def _start(self, number: int, step: int, runner: SwarmRunner) -> None:
        self._started[number] = step
        self._episodes[number] = {}

        def sink(job: Job, episode: Episode) -> None:
            self._episodes[number][job.episode_id] = episode
            self._finished.append(episode)

        self._pool.submit(runner, self._sampler.jobs(number), sink)

    def _due(self, step: int) -> list[int] | None:
        done = {number for number in self._started if self._is_done(number)}
        return choose_due_problems(
            self._started, done, step, self._max_off_policy_steps, self._sampler.tasks_per_step
        )

    def _is_done(self, number: int) -> bool:
        return len(self._episodes[number]) == self._sampler.group_size


def choose_due_problems(
    started: Mapping[int, int], done: Container[int], step: int, max_off_policy_steps: int, num: int
) -> list[int] | None:
    """Return the problems to train at a step, or None while the step has to wait.

    They are the `num` oldest of those that are done, provided that all others can still be trained
    in time at `num` problems a step.

    Args:
        started: problem -> the step at which it started.
        done: the problems whose episodes have all finished.
    """
    by_age = sorted(started, key=lambda number: (started[number], number))
    numbers = [number for number in by_age if number in done][:num]
    if len(numbers) < num:
        return None
    due_now = set(numbers)
    rest = [number for number in by_age if number not in due_now]
    for position, number in enumerate(rest):
        first_possible_step = step + 1 + position // num
        if first_possible_step > started[number] + max_off_policy_steps:
            return None
    return sorted(numbers)
