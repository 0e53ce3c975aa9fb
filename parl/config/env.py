"""`env`: the environment and its tasks; or several, mixed by ability."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from parl.config.base import ConfigModel, PositiveFloat, PositiveInt
from parl.config.tools import ToolsConfig
from parl.core.types import Split


class TaskSource(ConfigModel):
    """Where one split's tasks come from: a file, or the environment's own generator."""

    path: Path | None = None
    """JSONL or Parquet file of tasks, read with `datasets`. Relative to the config file."""
    num: PositiveInt | None = None
    """Number of tasks to generate (without `path`), or to keep of the file."""
    # Each split is a world of its own in the shipped environments (ADR 4); the seed draws tasks in
    # it.
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

    def of(self, split: Split) -> TaskSource:
        """Return the source of one split."""
        match split:
            case "train":
                return self.train
            case "validation":
                return self.validation
            case "test":
                return self.test


class EnvSection(ConfigModel, ABC):
    """What a run asks of its `env` section: one environment is a mix with a single part.

    The part of a config without `mix` has the empty ability, like its tasks (`Task.ability`). Code
    that goes over `parts` therefore needs no second case for it.
    """

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, EnvConfig]:
        """Ability -> environment, in the order of the config."""

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """Ability -> weight among the training tasks, in the order of the config."""

    @property
    def abilities(self) -> tuple[str, ...]:
        """Names of the abilities of a mix; () of a single environment, whose part has no name."""
        return tuple(ability for ability in self.parts if ability)

    @property
    def name(self) -> str:
        """The ids of all parts, for messages."""
        return " + ".join(part.id for part in self.parts.values())

    def id_of(self, ability: str) -> str:
        """Return the id of the environment whose tasks have this ability."""
        return self.parts[ability].id


class EnvConfig(EnvSection):
    """The environment, by its Gymnasium id."""

    id: str
    """Such as parl/WideSearch-v0. `parl envs list` prints the registered ones."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment; checked by making it once before anything expensive starts."""
    tools: ToolsConfig = ToolsConfig()
    tasks: Tasks = Tasks()

    @property
    def parts(self) -> Mapping[str, EnvConfig]:
        return {"": self}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"": 1.0}


class Part(EnvConfig):
    """One environment of a mix."""

    ability: Annotated[str, Field(pattern=r"^\w+$")]
    """What its tasks train, in one word. It names the part in metrics, task ids and kinds of
    demonstrations."""
    weight: PositiveFloat = 1.0
    """Share of the training tasks, relative to the other parts. Evaluations take the same number of
    tasks from each part."""


class MixConfig(EnvSection):
    """Several environments that one run trains on, each step on all in the ratio of their weights.

    A mix with one part is that part's specialist: its metrics have the names that the mix gives
    them.
    """

    mix: Annotated[tuple[Part, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _no_single_environment(cls, raw: Any) -> Any:
        """Refuse keys of a single environment next to `mix`."""
        if not isinstance(raw, Mapping):
            return raw
        misplaced = sorted({*raw} & {"id", "kwargs", "tools", "tasks"})
        if misplaced:
            raise ValueError(
                f"`{misplaced[0]}` belongs to one environment: move it into each part of `mix` "
                "that needs it"
            )
        return raw

    @model_validator(mode="after")
    def _abilities_differ(self) -> MixConfig:
        counts = Counter(part.ability for part in self.mix)
        ability, count = counts.most_common(1)[0]
        if count > 1:
            raise ValueError(f"two parts have the ability '{ability}'; give each a different name")
        return self

    @property
    def parts(self) -> Mapping[str, EnvConfig]:
        return {part.ability: part for part in self.mix}

    @property
    def weights(self) -> Mapping[str, float]:
        return {part.ability: part.weight for part in self.mix}


def _tag(raw: Any) -> str:
    """Tell pydantic which of the two forms is meant, so that errors speak of that one only."""
    if isinstance(raw, Mapping):
        return "(mix)" if "mix" in raw else "(one)"
    return "(mix)" if isinstance(raw, MixConfig) else "(one)"


AnyEnv = Annotated[
    Annotated[EnvConfig, Tag("(one)")] | Annotated[MixConfig, Tag("(mix)")], Discriminator(_tag)
]
"""The `env` section in either form. Code that reads it takes an `EnvSection`."""
