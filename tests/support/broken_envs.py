"""Environments that each break one promise. A module that registers when it is imported, as any plugin's does."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Mapping
from typing import Annotated, Any

import gymnasium
import numpy as np
from pydantic import Field

from parl.core.types import Task
from parl.env.base import AgentEnv
from parl.env.tools import ToolSpec, tool

Text = Annotated[str, Field(description="A text.")]


class Good(AgentEnv):
    """Keeps all promises: say the task's word; `note` keeps notes and says how many there are."""

    def __init__(self, *, most: int = 99) -> None:
        super().__init__()
        self.most = most

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return [
            Task(f"{split}-{i}", "", f"say {split} {seed} {i}", {"word": f"{split}{i}"})
            for i in range(num)
        ]

    def start(self, task: Task) -> None:
        self.notes: list[str] = []

    def fork(self, subtask: str) -> AgentEnv:
        child = super().fork(subtask)
        assert isinstance(child, Good)
        child.notes = list(self.notes)
        return child

    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": float(answer == self.task.data["word"])}

    @tool
    def note(self, text: Text) -> str:
        """Keep a note."""
        if len(self.notes) == self.most:
            return "error: no more"
        self.notes.append(text)
        return f"{len(self.notes)} notes, {self.np_random.integers(10**6)}"


# --- it does not run


class ScoreRaises(Good):
    def score(self, answer: str) -> Mapping[str, float]:
        gold: dict[str, float] = {}
        return {"score": gold["gold"]}


class ScoreHangs(Good):
    def score(self, answer: str) -> Mapping[str, float]:
        time.sleep(3600)
        return {"score": 0.0}


class StepDoesNotEnd(Good):
    def step(self, action: Any) -> Any:
        messages, reward, _, truncated, info = super().step(action)
        return messages, reward, False, truncated, info


class ToolHangs(Good):
    @tool
    def wait(self, text: Text) -> str:
        """Wait."""
        time.sleep(3600)
        return text


class ToolRaises(Good):
    @tool
    def find(self, text: Text) -> str:
        """Find an odd text."""
        return {"no such value": {}}.get(text, {"page": text})["page"]


class CallIsNotValidated(Good):
    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        return str(getattr(self, name)(**arguments))


# --- tools


class NoDescription(Good):
    @tool
    def find(self, text: Text) -> str:
        return text


class ArgumentWithoutDescription(Good):
    @tool
    def find(self, text: str) -> str:
        """Find."""
        return text


class ArgumentWithoutType(Good):
    @tool
    def find(self, text: Annotated[Any, Field(description="Anything.")]) -> str:
        """Find."""
        return str(text)


class NoSchema(Good):
    @classmethod
    def tool_specs(cls) -> tuple[ToolSpec, ...]:
        text = {"type": "txt", "description": "A text."}
        return (
            ToolSpec(
                name="note",
                description="Note.",
                parameters={"type": "object", "properties": {"text": text}},
            ),
        )


# --- the same seed


class Unseeded(Good):
    @tool
    def roll(self) -> str:
        """Roll a die."""
        return str(np.random.default_rng().integers(10**9))


class KeepsItsNotes(Good):
    def start(self, task: Task) -> None:
        if not hasattr(self, "notes"):
            self.notes = []


class KeptInTheClass(Good):
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.number = next(self.numbers)

    @tool
    def which(self) -> str:
        """Tell which environment this is."""
        return str(self.number)


class OrderOfASet(Good):
    @tool
    def words(self) -> str:
        """List the words."""
        return " ".join({f"word{i}" for i in range(50)})


# --- splits and scores


class SplitsShare(Good):
    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return [Task(f"{split}-{i}", "", f"say {i}", {"word": f"w{i}"}) for i in range(num)]


class ScoreOfTwo(Good):
    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": 2.0 * (answer == "42")}


class ScoreIsNaN(Good):
    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": 0.0, "ratio": math.nan}


class ScoreKeysVary(Good):
    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": 0.0, **({"answered": 1.0} if answer else {})}


# --- forks


class ForkIsItself(Good):
    def fork(self, subtask: str) -> AgentEnv:
        return self


class ForkIsShallow(Good):
    def fork(self, subtask: str) -> AgentEnv:
        return AgentEnv.fork(self, subtask)


class ForkIsMerged(Good):
    """Not broken: `collect` is there to take over what subagents did. `merges` says so, or it is as good as shared."""

    def start(self, task: Task) -> None:
        super().start(task)
        self.children: list[Good] = []

    def fork(self, subtask: str) -> AgentEnv:
        child = super().fork(subtask)
        assert isinstance(child, ForkIsMerged)
        child.children = []
        self.children.append(child)
        return child

    @tool
    def collect(self) -> str:
        """Count the subagents' notes."""
        return str(sum(len(child.notes) for child in self.children))


class ForkMayBeMerged(ForkIsMerged):
    merges = ("collect",)


class SiblingsShare(Good):
    def start(self, task: Task) -> None:
        super().start(task)
        self.board: list[str] = []

    def fork(self, subtask: str) -> AgentEnv:
        child = super().fork(subtask)
        assert isinstance(child, Good)
        child.notes = self.board
        return child


class ChildReadsItsParent(Good):
    parent: ChildReadsItsParent | None = None

    def fork(self, subtask: str) -> AgentEnv:
        child = super().fork(subtask)
        assert isinstance(child, ChildReadsItsParent)
        child.parent = self
        return child

    @tool
    def read(self) -> str:
        """Read the parent's notes."""
        return str(self.parent.notes if self.parent else self.notes)


class ForkSharesRandomness(Good):
    def fork(self, subtask: str) -> AgentEnv:
        child = copy.copy(self)
        child.notes = list(self.notes)
        return child


class SubtaskScoreRaises(Good):
    def subtask_score(self, message: str) -> float:
        raise KeyError(message)


# --- the rest


class NoSuperInit(Good):
    def __init__(self) -> None:
        self.most = 99


class FactsAreNoJSON(Good):
    def facts(self) -> Mapping[str, Any]:
        return {"words": {"a"}}


class DataAreNoJSON(Good):
    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return [
            Task(t.id, "", t.prompt, {**t.data, "gold": {"a"}})
            for t in super().generate_tasks(split, num, seed)
        ]


class SlowFork(Good):
    def fork(self, subtask: str) -> AgentEnv:
        time.sleep(0.004)
        return super().fork(subtask)


class ConstructorHangs(Good):
    def __init__(self) -> None:
        super().__init__()
        time.sleep(3600)


class ConstructorRaises(Good):
    def __init__(self) -> None:
        super().__init__()
        raise RuntimeError("no server")


for _name, _cls in list(globals().items()):
    if isinstance(_cls, type) and issubclass(_cls, Good):
        gymnasium.register(id=f"broken/{_name}-v0", entry_point=_cls)  # type: ignore[arg-type]
