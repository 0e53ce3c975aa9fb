"""Several environments as one (`env.mix`).

A run over a mix needs some things before it knows the task: the vocabulary, the tools and the
demonstrations of all parts. `Mixture` gives them. A task names its ability, and its episode is
played in the environment of that ability itself (`env_of`), which need not know of a mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from parl.core.errors import ConfigError
from parl.core.messages import Message
from parl.core.types import Task
from parl.env.base import AgentEnv, Demonstration
from parl.env.demonstrations import Segment
from parl.env.tools import ToolSpec


class Mixture(AgentEnv):
    """The environments of a mix, by ability.

    Its tools are those of all parts, and serve to render prompts; an agent has those of its task's
    part.
    """

    def __init__(self, parts: Mapping[str, AgentEnv]) -> None:
        self.parts = dict(parts)
        self.blocking = any(env.blocking for env in parts.values())
        super().__init__()

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Return the tools of all parts; a tool that several have in the same form stands once."""
        specs: list[ToolSpec] = []
        for env in self.parts.values():
            for spec in env.tool_specs():
                if spec not in specs:
                    specs.append(spec)
        return tuple(specs)

    def vocabulary(self) -> Sequence[str]:
        """Return the words of all parts, each once, in the order of the parts."""
        # A dict keeps the order, which decides the ids of the words and so a tiny model's weights.
        words: dict[str, None] = {}
        for env in self.parts.values():
            words.update(dict.fromkeys(env.vocabulary()))
        return list(words)

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """Return a demonstration of one part.

        Args:
            kind: `ABILITY/KIND`; the part of this ability receives KIND.
            rng: source of randomness.
            knobs: ability -> mapping of the knobs for that part.
        """
        ability, _, part_kind = kind.partition("/")
        if not part_kind or ability not in self.parts:
            kinds = [f"{name}/{part_kind or kind}" for name in self.parts]
            raise ConfigError(
                f"'{kind}' names no ability of env.mix. Write ABILITY/KIND: {' or '.join(kinds)}."
            )
        for name, part_knobs in knobs.items():
            if name not in self.parts or not isinstance(part_knobs, Mapping):
                example = f"{{{ability}: {{{name}: {part_knobs}}}}}"
                raise ConfigError(
                    f"cold_start: the demonstrator's knobs go by ability, such as {example}; "
                    f"the abilities are {', '.join(self.parts)}"
                )
        demonstration = self.parts[ability].demonstrate(part_kind, rng, **knobs.get(ability, {}))
        if isinstance(demonstration, Demonstration):
            return replace(demonstration, task=of_ability(demonstration.task, ability))
        return demonstration

    # --- the interface of an environment ---------------------------------------------------------

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        """Return `num` tasks of each part, in turn."""
        tasks_by_part = []
        for ability, env in self.parts.items():
            tasks = env.generate_tasks(split, num, seed)
            tasks_by_part.append([of_ability(task, ability) for task in tasks])
        return interleave(tasks_by_part)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Message], dict[str, Any]]:
        """Start an episode of `options["task"]` in its part, or without a task in a drawn part."""
        task = (options or {}).get("task")
        if task is None:
            # Not self.np_random: the seed belongs to the part's own stream.
            rng = np.random.default_rng(seed)
            one_of_each = self.generate_tasks("train", 1, int(rng.integers(2**31)))
            task = one_of_each[int(rng.integers(len(self.parts)))]
        self.task = task
        self.active = env_of(self, task)
        return self.active.reset(seed=seed, options={"task": task})

    def step(self, action: Message) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        return self.active.step(action)

    def score(self, answer: str) -> Mapping[str, float]:
        return self.active.score(answer)

    def for_rehearsal(self) -> AgentEnv:
        return Mixture({ability: env.for_rehearsal() for ability, env in self.parts.items()})

    def fork(self, subtask: str) -> AgentEnv:
        return self.active.fork(subtask)

    def close(self) -> None:
        for env in self.parts.values():
            env.close()  # type: ignore[no-untyped-call]


def combine(envs: Mapping[str, AgentEnv]) -> AgentEnv:
    """Return the environment of a run.

    Args:
        envs: ability -> environment. The single environment of a run without a mix has the ability
            "" and is returned as it is, so that its tasks, tools and metrics have no prefix.
    """
    if list(envs) == [""]:
        return envs[""]
    return Mixture(envs)


def parts_of(env: AgentEnv) -> Mapping[str, AgentEnv]:
    """Return ability -> environment; the inverse of `combine`."""
    return env.parts if isinstance(env, Mixture) else {"": env}


def env_of(env: AgentEnv, task: Task) -> AgentEnv:
    """Return the environment in which a task is played."""
    return env.parts[task.ability] if isinstance(env, Mixture) else env


def of_ability(task: Task, ability: str) -> Task:
    """Return the task with an ability, and an id that differs from those of all other parts.

    Without an ability ("", a run without a mix) the task and its id stay as they are.
    """
    if not ability:
        return task
    return replace(task, id=f"{ability}/{task.id}", ability=ability)


def interleave(lists: Sequence[Sequence[Task]]) -> list[Task]:
    """Return the first task of each list, then the second of each, and so on.

    Any beginning of the result has about the same number of tasks from each list, until one is
    exhausted.

    Example: interleave([[a1, a2, a3], [b1]]) == [a1, b1, a2, a3]
    """
    tasks = []
    for index in range(max(map(len, lists))):
        for part in lists:
            if index < len(part):
                tasks.append(part[index])
    return tasks
