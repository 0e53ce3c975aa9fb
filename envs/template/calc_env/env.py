"""An environment in which the agents sum numbers that only a tool can see.

A task names some things. Behind each name is a number, which the tool `lookup` tells. The answer is the
sum of these numbers. The look-ups do not depend on each other, so an orchestrator can divide the names
among subagents that run at the same time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from parl import AgentEnv, ConfigError, Task, tool

SPLITS = ("train", "validation", "test")

KINDS = ("amber", "basil", "cedar", "delta", "ember", "fable")
NAMES = [f"{kind}{i}" for kind in KINDS for i in range(5)]

MAX_NUMBER = 99

# Words that tools and the runtime may write. `model: tiny` knows only the words of `vocabulary`.
RUNTIME_WORDS = (
    *("ok", "error:", "no", "name", "duplicate", "task"),
    *("budget", "exhausted", "stopped", "(turns)"),
)


class CalcEnv(AgentEnv):
    """Sum numbers that are hidden behind names.

    Args:
        num: the number of names in a task.
    """

    def __init__(self, *, num: int = 4) -> None:
        super().__init__()
        max_names = len(NAMES) // len(SPLITS)
        if not 2 <= num <= max_names:
            raise ConfigError(f"env.kwargs.num is {num}; give 2 to {max_names} names.")
        self.num = num

    # --- tasks ---

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        """Generate `num` tasks of a split. The same arguments give the same tasks."""
        if split not in SPLITS:
            raise ConfigError(f"There is no split '{split}'; choose one of {', '.join(SPLITS)}.")
        split_index = SPLITS.index(split)

        # Each split has every third name, so that no name is in two splits: a policy cannot
        # remember a number from training.
        split_names = NAMES[split_index :: len(SPLITS)]

        rng = np.random.default_rng([split_index, seed])
        tasks = []
        for i in range(num):
            names = [str(name) for name in rng.choice(split_names, self.num, replace=False)]
            numbers = {name: int(rng.integers(1, MAX_NUMBER + 1)) for name in names}
            task = Task(
                id=f"{split}-{seed}-{i}",
                env="calc/Calc-v0",
                prompt=f"sum : {' '.join(names)}",
                data={"numbers": numbers},
            )
            tasks.append(task)
        return tasks

    def start(self, task: Task) -> None:
        """Set up what one episode changes. `reset` calls this."""
        self.numbers: dict[str, int] = dict(task.data["numbers"])
        self.names = list(self.numbers)
        self.num_lookups = 0

    # --- tools ---

    @tool
    def lookup(
        self, name: Annotated[str, Field(description="One of the names in the task.")]
    ) -> str:
        """Tell the number behind a name."""
        # `name` is a `str` here whatever the model wrote: a call with an argument of another type
        # gets an error text and does not reach this line.
        self.num_lookups += 1
        if name not in self.numbers:
            return f"error: no name '{name}'"
        return str(self.numbers[name])

    # --- results ---

    def score(self, answer: str) -> Mapping[str, float]:
        """Score an answer: 1 for the right sum.

        Further entries of the mapping become the metrics `outcome/KEY`.
        """
        number = _last_number(answer)
        is_right = number == sum(self.numbers.values())
        return {"score": float(is_right), "answered": float(number is not None)}

    def facts(self) -> Mapping[str, int]:
        """Tell rewards more than the score; they read it as `episode.facts`."""
        return {"num_lookups": self.num_lookups}

    def num_parts(self) -> int:
        """Count the parts of the task that do not depend on each other: one for each name."""
        return self.num

    # --- subagents ---

    def fork(self, subtask: str) -> CalcEnv:
        """Make the environment of a subagent, whose part is the names in its prompt."""
        # A shallow copy suits the numbers, which nobody changes. The counter is the subagent's own.
        child = super().fork(subtask)
        assert isinstance(child, CalcEnv)
        child.num_lookups = 0
        child.names = [name for name in self.numbers if re.search(rf"\b{name}\b", subtask)]
        return child

    def check_result(self, message: str) -> bool:
        """Accept a subagent's message if it holds a number."""
        return _last_number(message) is not None

    def subtask_score(self, message: str) -> float | None:
        """Score a subagent: 1 if its last number is the sum of its names, None if it has no names."""
        if not self.names:
            return None
        return float(_last_number(message) == sum(self.numbers[name] for name in self.names))

    # --- a policy that starts from nothing ---

    def vocabulary(self) -> Sequence[str]:
        """List every word that an episode may hold, for `model: tiny`.

        A pretrained model has a tokenizer: then this method is not needed.
        """
        numbers = [str(number) for number in range(self.num * MAX_NUMBER + 1)]
        return ["sum", ":", *RUNTIME_WORDS, *NAMES, *numbers]


def _last_number(text: str) -> int | None:
    numbers = re.findall(r"-?\d+", text)
    return int(numbers[-1]) if numbers else None
