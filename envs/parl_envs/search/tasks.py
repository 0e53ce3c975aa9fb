"""Tasks: which entities, which columns, and the gold table in WideSearch's own format."""

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
    ranges: tuple[tuple[int, int], ...]
    two_hop: float
    attributes: tuple[str, ...]
    answer_format: str

    @property
    def largest(self) -> int:
        return max(hi for _, hi in self.ranges)


def parse_ranges(n: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """[4, 12] or [[1, 2], [4, 10]]."""
    pairs = [n] if len(n) == 2 and not isinstance(n[0], list | tuple) else list(n)
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
    """`num` tasks over the world's entities, the same for the same seed."""
    if not world.rows:
        raise ConfigError(
            "A corpus of your own needs tasks of your own: set env.tasks.train.path (and validation, test) to a "
            "JSONL file of tasks with gold tables"
        )
    if knobs.largest > len(world.rows):
        raise ConfigError(
            f"env.kwargs.n asks for up to {knobs.largest} entities, but the split '{split}' has {len(world.rows)}; "
            f"give n at most {len(world.rows)}"
        )
    rng = np.random.default_rng([seed, 11])
    return [one_task(world, knobs, rng, f"{split}-{seed}-{i}") for i in range(num)]


def one_task(
    world: World,
    knobs: SearchKnobs,
    rng: np.random.Generator,
    task_id: str,
    limits: Sequence[int] | None = None,
) -> Task:
    """Draw N, the entities and the columns."""
    lo, hi = knobs.ranges[int(rng.integers(len(knobs.ranges)))]
    if limits is not None:
        lo, hi = limits
    n = int(rng.integers(lo, hi + 1))
    rows = [world.rows[i] for i in rng.permutation(len(world.rows))[:n]]
    hop = rng.random() < knobs.two_hop
    asked = HOP if hop else tuple(rng.permutation(knobs.attributes)[:2].tolist())
    names = " ; ".join(f"#{i} {r.name}" for i, r in enumerate(rows, 1))
    columns = [KEY, *asked]
    data = {
        "split": world.split,
        "columns": columns,
        "two_hop": hop,
        "gold": [{KEY: r.name, **{a: r.facts.get(a, NOT_FOUND) for a in asked}} for r in rows],
        "evaluation": {
            "required": columns,
            "unique_columns": [KEY],
            "eval_pipeline": {
                c: {"preprocess": ["norm_str"], "metric": ["exact_match"]} for c in columns
            },
        },
    }
    return Task(
        task_id, ENV_ID, f"find {(' > ' if hop else ' , ').join(asked)} for : {names}", data
    )


def load_task(row: Mapping[str, Any], knobs: SearchKnobs) -> Task:
    """A user's task: WideSearch's own fields (instance_id, query, evaluation) and a gold table.

    `gold` is a list of rows, a CSV text, or the path of a CSV file. Raises ConfigError.
    """
    task_id = str(row.get("instance_id") or row.get("id") or "")
    prompt = row.get("query") or row.get("prompt")
    if not task_id or not prompt:
        raise ConfigError(f"A task needs instance_id and query; got the fields {sorted(row)}")
    evaluation = row.get("evaluation")
    if isinstance(evaluation, str):
        try:
            evaluation = json.loads(evaluation)
        except ValueError as error:
            raise ConfigError(
                f"Task {task_id}: `evaluation` is a text that is not JSON: {error}"
            ) from None
    if not isinstance(evaluation, Mapping):
        raise ConfigError(
            f"Task {task_id}: `evaluation` needs required, unique_columns and eval_pipeline"
        )
    gold = _gold(row.get("gold"), task_id)
    try:
        wide_search("", gold, evaluation)  # all that scoring will ask of them
    except ValueError as error:
        raise ConfigError(f"Task {task_id} cannot be scored: {error}") from None
    columns = list(evaluation["required"])
    named = {_plain(c): c for c in columns}
    gold = [{named.get(_plain(k), k): v for k, v in r.items()} for r in gold]
    data = {"split": "train", "columns": columns, "gold": gold, "evaluation": dict(evaluation)}
    return Task(task_id, ENV_ID, str(prompt), data)


def _plain(column: str) -> str:
    """Column names are compared as WideSearch does: "Area km2" is "areakm2"."""
    return column.replace(" ", "").strip().lower()


def _gold(raw: Any, task_id: str) -> list[dict[str, str]]:
    if isinstance(raw, str) and raw.endswith(".csv") and "\n" not in raw:
        if not Path(raw).is_file():
            raise ConfigError(f"Task {task_id}: there is no gold file {raw}")
        raw = Path(raw).read_text(encoding="utf-8-sig")
    if isinstance(raw, str):
        raw = list(csv.DictReader(io.StringIO(raw)))
    if not isinstance(raw, list) or not raw or not all(isinstance(r, Mapping) for r in raw):
        raise ConfigError(
            f'Task {task_id} has no gold table; add "gold": a list of rows, a CSV text, or the path of a CSV file'
        )
    return [{str(k): str(v) for k, v in r.items()} for r in raw]
