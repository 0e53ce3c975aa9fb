"""Tasks of WideSearch: entities, columns, and the gold table in WideSearch's own format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parl.core.errors import ConfigError
from parl.core.types import Task
from parl_envs.search.world import HOP, NOT_FOUND, World
from parl_rewards.wide_search import wide_search

KEY = "country"
ENV_ID = "parl/WideSearch-v0"


@dataclass(frozen=True, slots=True)
class SearchKnobs:
    """What generated tasks look like; see the arguments of `WideSearch`.

    Attributes:
        ranges: (lowest, highest) number of entities; the ranges are equally likely.
        two_hop: share of tasks with a second hop.
        attributes: columns that tasks may ask for.
        answer_format: `cells` or `markdown`.
    """

    ranges: tuple[tuple[int, int], ...]
    two_hop: float
    attributes: tuple[str, ...]
    answer_format: str

    @property
    def largest(self) -> int:
        """The largest number of entities that a task may have."""
        return max(highest for _, highest in self.ranges)


def parse_ranges(n: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Read `n`: [4, 12], or several ranges [[1, 2], [4, 10]].

    Raises:
        ConfigError: it is neither.
    """
    # [[1, 2], [4, 10]] also has two items, so the first item decides.
    is_one_range = len(n) == 2 and not isinstance(n[0], list | tuple)
    pairs = [n] if is_one_range else list(n)
    try:
        ranges = tuple((int(lo), int(hi)) for lo, hi in pairs)
    except (TypeError, ValueError):
        ranges = ()
    if not ranges or any(not 1 <= lo <= hi for lo, hi in ranges):
        raise ConfigError(
            f"env.kwargs.n is {n!r}; give [lo, hi] with 1 <= lo <= hi, or a list of such pairs"
        )
    return ranges


def generate(world: World, knobs: SearchKnobs, split: str, num: int, seed: int) -> list[Task]:
    """Generate `num` tasks about a world's entities. The same seed gives the same tasks.

    Raises:
        ConfigError: the world has no entities (the user's corpus), or fewer than a task may need.
    """
    if not world.rows:
        raise ConfigError(
            "A corpus of your own needs tasks of your own: set env.tasks.train.path (and "
            "validation, test) to a JSONL file of tasks with gold tables"
        )
    if knobs.largest > len(world.rows):
        raise ConfigError(
            f"env.kwargs.n asks for up to {knobs.largest} entities, but the split '{split}' has "
            f"{len(world.rows)}; give n at most {len(world.rows)}"
        )
    # 11 keeps this stream apart from the generators that worlds draw from.
    rng = np.random.default_rng([seed, 11])
    return [one_task(world, knobs, rng, f"{split}-{seed}-{i}") for i in range(num)]


def one_task(
    world: World,
    knobs: SearchKnobs,
    rng: np.random.Generator,
    task_id: str,
    limits: Sequence[int] | None = None,
) -> Task:
    """Draw the number of entities, the entities and the columns of a task.

    Args:
        world: where the entities are from.
        knobs: what tasks look like.
        rng: drawn from in a fixed order, so that a seed gives the same task.
        task_id: the task's id.
        limits: (lowest, highest) number of entities in place of the knobs' ranges.
    """
    # Drawn even when `limits` replaces it: what follows must not depend on it.
    lo, hi = knobs.ranges[int(rng.integers(len(knobs.ranges)))]
    if limits is not None:
        lo, hi = limits
    num_rows = int(rng.integers(lo, hi + 1))
    rows = [world.rows[i] for i in rng.permutation(len(world.rows))[:num_rows]]
    two_hop = rng.random() < knobs.two_hop
    attributes = HOP if two_hop else tuple(rng.permutation(knobs.attributes)[:2].tolist())

    columns = [KEY, *attributes]
    gold = []
    for row in rows:
        gold_row = {KEY: row.name}
        for column in attributes:
            gold_row[column] = row.facts.get(column, NOT_FOUND)
        gold.append(gold_row)
    # As lenient as WideSearch is on names: case, blanks and `*` do not count.
    rule = {"preprocess": ["norm_str"], "metric": ["exact_match"]}
    data = {
        "split": world.split,
        "columns": columns,
        "two_hop": two_hop,
        "gold": gold,
        "evaluation": {
            "required": columns,
            "unique_columns": [KEY],
            "eval_pipeline": {column: dict(rule) for column in columns},
        },
    }
    names = " ; ".join(f"#{i} {row.name}" for i, row in enumerate(rows, 1))
    # `>` tells the expert and the policy that the second column is on another page.
    question = (" > " if two_hop else " , ").join(attributes)
    return Task(task_id, ENV_ID, f"find {question} for : {names}", data)


def load_task(row: Mapping[str, Any], knobs: SearchKnobs) -> Task:
    """Make a task from a row of the user's file.

    Args:
        row: WideSearch's own fields (instance_id, query, evaluation) and `gold`: a list of rows, a
            CSV text, or the path of a CSV file.
        knobs: not used; all environments are called in the same way.
    Raises:
        ConfigError: a field is missing, or the gold table cannot be scored.
    """
    task_id = str(row.get("instance_id") or row.get("id") or "")
    prompt = row.get("query") or row.get("prompt")
    if not task_id or not prompt:
        raise ConfigError(f"A task needs instance_id and query; got the fields {sorted(row)}")
    evaluation = _evaluation(row.get("evaluation"), task_id)
    gold = _gold_rows(row.get("gold"), task_id)
    try:
        # An empty answer asks for everything that scoring will need of the two.
        wide_search("", gold, evaluation)
    except ValueError as error:
        raise ConfigError(f"Task {task_id} cannot be scored: {error}") from None

    columns = list(evaluation["required"])
    gold = _with_columns(gold, columns)
    data = {"split": "train", "columns": columns, "gold": gold, "evaluation": dict(evaluation)}
    return Task(task_id, ENV_ID, str(prompt), data)


def _evaluation(value: Any, task_id: str) -> Mapping[str, Any]:
    # WideSearch's own files have the evaluation as a text of JSON.
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(
                f"Task {task_id}: `evaluation` is a text that is not JSON: {error}"
            ) from None
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"Task {task_id}: `evaluation` needs required, unique_columns and eval_pipeline"
        )
    return value


def _gold_rows(value: Any, task_id: str) -> list[dict[str, str]]:
    """The gold table from a list of rows, a CSV text, or the path of a CSV file."""
    if isinstance(value, str) and value.endswith(".csv") and "\n" not in value:
        if not Path(value).is_file():
            raise ConfigError(f"Task {task_id}: there is no gold file {value}")
        # With a BOM: spreadsheets write one, and it would become part of the first column's name.
        value = Path(value).read_text(encoding="utf-8-sig")
    if isinstance(value, str):
        value = list(csv.DictReader(io.StringIO(value)))
    is_table = isinstance(value, list) and all(isinstance(row, Mapping) for row in value)
    if not is_table or not value:
        raise ConfigError(
            f'Task {task_id} has no gold table; add "gold": a list of rows, a CSV text, or the '
            "path of a CSV file"
        )
    rows = []
    for row in value:
        rows.append({str(column): str(cell) for column, cell in row.items()})
    return rows


def _with_columns(
    gold: Sequence[Mapping[str, str]], columns: Sequence[str]
) -> list[dict[str, str]]:
    """Rename the columns that differ from those of the evaluation in blanks and case only."""
    name_by_plain = {_plain(column): column for column in columns}
    rows = []
    for row in gold:
        cells = {name_by_plain.get(_plain(name), name): cell for name, cell in row.items()}
        rows.append(cells)
    return rows


def _plain(column: str) -> str:
    """The form in which WideSearch compares column names: "Area km2" is "areakm2"."""
    return column.replace(" ", "").strip().lower()
