"""`env`: the environment and its tasks; or several, mixed by ability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from parl.config.base import ConfigModel, PositiveFloat, PositiveInt
from parl.config.tools import ToolsConfig


class TaskSource(ConfigModel):
    """Where one split's tasks come from: a file, or the environment's own generator."""

    path: Path | None = None
    """JSONL or Parquet file of tasks, read with `datasets`. Relative to the config file."""
    num: PositiveInt | None = None
    """Number of tasks to generate (without `path`), or to keep of the file."""
    seed: int = 0
    """Seed of the generator. Splits never share entities, whatever the seeds."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Generator knobs of this split, over those of `env.kwargs` (say, a wider range of N)."""

    @model_validator(mode="after")
    def _one_source(self) -> TaskSource:
        if self.path is None and self.num is None:
            raise ValueError("give `path` (a file of tasks) or `num` (how many to generate)")
        return self


class Tasks(ConfigModel):
    """The three splits."""

    train: TaskSource = TaskSource(num=2048)
    validation: TaskSource = TaskSource(num=64, seed=1)
    test: TaskSource = TaskSource(num=200, seed=2)


class EnvConfig(ConfigModel):
    """The environment, by its Gymnasium id."""

    id: str
    """For example parl/WideSearch-v0. `parl envs list` prints the registered ones."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment; checked by making it once before anything expensive starts."""
    tools: ToolsConfig = ToolsConfig()
    tasks: Tasks = Tasks()

    @property
    def name(self) -> str:
        """For messages."""
        return self.id

    def id_of(self, ability: str) -> str:
        """The environment of a task."""
        return self.id


class Part(EnvConfig):
    """One environment of a mix."""

    ability: Annotated[str, Field(pattern=r"^\w+$")]
    """What its tasks train, in a word: its name in metrics, in kinds of demonstrations and in tasks' ids."""
    weight: PositiveFloat = 1.0
    """Its share of the training tasks, relative to the other parts'. Evaluations take the same number from each."""


class MixConfig(ConfigModel):
    """Several environments that one run trains on, each step on all in the ratio of their weights.

    With one part alone it is that part's specialist, measured under the same names as the mix.
    """

    mix: Annotated[tuple[Part, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _nothing_beside(cls, given: Any) -> Any:
        beside = (
            sorted({*given} & {"id", "kwargs", "tools", "tasks"})
            if isinstance(given, Mapping)
            else []
        )
        if beside:
            raise ValueError(
                f"`{beside[0]}` belongs to one environment: move it into each part of `mix` that needs it"
            )
        return given

    @model_validator(mode="after")
    def _abilities_differ(self) -> MixConfig:
        twice = [
            ability for ability, num in Counter(p.ability for p in self.mix).items() if num > 1
        ]
        if twice:
            raise ValueError(
                f"two parts have the ability '{twice[0]}'; give each a name of its own"
            )
        return self

    @property
    def name(self) -> str:
        """For messages."""
        return " + ".join(part.id for part in self.mix)

    def id_of(self, ability: str) -> str:
        """The environment of a task of this ability."""
        return next(part.id for part in self.mix if part.ability == ability)

    @property
    def weights(self) -> dict[str, float]:
        """Ability -> weight, in the order of the config."""
        return {part.ability: part.weight for part in self.mix}


def _form(given: Any) -> str:
    several = "mix" in given if isinstance(given, Mapping) else isinstance(given, MixConfig)
    return "(mix)" if several else "(one)"


AnyEnv = Annotated[
    Annotated[EnvConfig, Tag("(one)")] | Annotated[MixConfig, Tag("(mix)")], Discriminator(_form)
]
