"""Several environments as one: what a run over a mix (`env.mix`) asks before it knows the task.

In: an environment for each ability. Out: one that knows the words, the tools and the demonstrations of all of them. A
task names its ability, and its episode is played in that environment itself (`env_of`), which need not know of a mix.
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
    """The environments of a mix, by ability. Its tools are those of all; an agent has those of its task's alone."""

    def __init__(self, parts: Mapping[str, AgentEnv]) -> None:
        self.parts = dict(parts)
        self.blocking = any(env.blocking for env in parts.values())
        super().__init__()

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Of all parts; one that several have in the same form stands once."""
        found = [spec for env in self.parts.values() for spec in env.tool_specs()]
        return tuple(spec for i, spec in enumerate(found) if spec not in found[:i])

    def vocabulary(self) -> Sequence[str]:
        return list(dict.fromkeys(word for env in self.parts.values() for word in env.vocabulary()))

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """`ABILITY/KIND`: that of the ability's environment. `knobs`: of each ability its own."""
        ability, _, inner = kind.partition("/")
        if not inner or ability not in self.parts:
            kinds = [f"{name}/{inner or kind}" for name in self.parts]
            raise ConfigError(
                f"'{kind}' names no ability of env.mix. Write ABILITY/KIND: {' or '.join(kinds)}."
            )
        for name, own in knobs.items():
            if name not in self.parts or not isinstance(own, Mapping):
                raise ConfigError(
                    f"cold_start: the demonstrator's knobs go by ability, such as {{{ability}: {{{name}: {own}}}}}; "
                    f"the abilities are {', '.join(self.parts)}"
                )
        made = self.parts[ability].demonstrate(inner, rng, **knobs.get(ability, {}))
        return (
            replace(made, task=of_ability(made.task, ability))
            if isinstance(made, Demonstration)
            else made
        )

    # --- as any environment ------------------------------------------------------------------------------------------

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        """`num` tasks of each part, by turns."""
        made = {
            a: [of_ability(t, a) for t in env.generate_tasks(split, num, seed)]
            for a, env in self.parts.items()
        }
        return interleave(list(made.values()))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Message], dict[str, Any]]:
        """Start an episode of `options["task"]` in its environment; without one, of any part's."""
        task = (options or {}).get("task")
        if task is None:
            gym_rng = np.random.default_rng(seed)
            task = self.generate_tasks("train", 1, int(gym_rng.integers(2**31)))[
                int(gym_rng.integers(len(self.parts)))
            ]
        self.task, self.inside = task, env_of(self, task)
        return self.inside.reset(seed=seed, options={"task": task})

    def step(self, action: Message) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        return self.inside.step(action)

    def score(self, answer: str) -> Mapping[str, float]:
        return self.inside.score(answer)

    def for_rehearsal(self) -> AgentEnv:
        return Mixture({ability: env.for_rehearsal() for ability, env in self.parts.items()})

    def fork(self, subtask: str) -> AgentEnv:
        return self.inside.fork(subtask)

    def close(self) -> None:
        for env in self.parts.values():
            env.close()  # type: ignore[no-untyped-call]


def env_of(env: AgentEnv, task: Task) -> AgentEnv:
    """The environment that a task is played in."""
    return env.parts[task.ability] if isinstance(env, Mixture) else env


def of_ability(task: Task, ability: str) -> Task:
    """The task as one of a mix, with an id that no other part gives."""
    return replace(task, id=f"{ability}/{task.id}", ability=ability)


def interleave(lists: Sequence[Sequence[Task]]) -> list[Task]:
    """The first of each, the second of each, ...: any beginning has about the same number of each, while they last."""
    longest = max(map(len, lists))
    return [tasks[i] for i in range(longest) for tasks in lists if i < len(tasks)]
