"""Worlds: the documents of one split behind a search index, and the facts that tasks are made of.

Splits share no entity, and each has a corpus that holds its own entities only: what a policy
remembers from training cannot answer a test task.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from parl.core.errors import ConfigError, did_you_mean
from parl_envs.search.corpus import Document, Entity, Index, load_corpus, load_facts, prose

SPLITS = ("train", "validation", "test")
SIZES = {"train": 84, "validation": 28, "test": 28}
"""Entities of each split: the most populous countries with short names, shuffled."""
NOT_FOUND = "unknown"
"""What tools answer when there is nothing; also the right answer where a fact is on no page."""
HOP = ("capital", "time")
"""The two-hop columns: the capital is on the country's page, the time zone on the capital's."""


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """What a world is made from. Hashable: worlds are cached by it.

    Attributes:
        corpus: `factbook`, or the path of a JSONL file.
        pages: `records` or `prose`.
        attributes: columns that tasks may ask for, apart from the second hop.
        distractors: extra lines on each page.
        unanswerable: share of the facts that are on no page, the capital aside.
    """

    corpus: str
    pages: str
    attributes: tuple[str, ...]
    distractors: int
    unanswerable: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One entity as tasks see it: its name, and the facts on its pages and its capital's."""

    name: str
    facts: dict[str, str]


@dataclass(frozen=True, eq=False)
class World:
    """One split: entities for tasks (none in a user's corpus), and the index that agents search."""

    split: str
    rows: tuple[Row, ...]
    index: Index


@lru_cache(maxsize=1)
def short_rows() -> tuple[Row, ...]:
    """The factbook's countries that fit tiny models, in a fixed random order.

    Names and capitals have at most two words, and each names one thing only.
    """
    # Tiny models read one token for each word, and short names keep episodes in their window.
    entities = load_facts()
    capitals = [_capital(entity) for entity in entities]
    rows = []
    for entity, capital in zip(entities, capitals, strict=True):
        country_facts = dict(entity.records[0].facts)
        city_facts = _city_facts(entity)
        required = ("capital", "currency", "internet", "population")
        if not all(fact in country_facts for fact in required) or "time" not in city_facts:
            continue
        if len(entity.name.split()) > 2 or len(capital.split()) > 2:
            continue
        # Such a page could not be told from another by its title.
        if capitals.count(capital) > 1 or capital == entity.name:
            continue
        rows.append(Row(entity.name, {**country_facts, "time": city_facts["time"]}))

    rows.sort(key=lambda row: -int(row.facts["population"]))
    rows = rows[: sum(SIZES.values())]
    # Shuffled, so that no split has the most populous countries for itself.
    order = np.random.default_rng(5).permutation(len(rows))
    return tuple(rows[i] for i in order)


@lru_cache(maxsize=1)
def own_attributes() -> tuple[str, ...]:
    """Facts that every entity's own page has: the columns that tasks may ask for."""
    shared = set.intersection(*(set(row.facts) for row in short_rows()))
    return tuple(sorted(shared - {HOP[1]}))


def _capital(entity: Entity) -> str:
    return str(entity.records[0].facts.get("capital", ""))


def _city_facts(entity: Entity) -> dict[str, str]:
    for record in entity.records:
        if record.kind == "city":
            return dict(record.facts)
    return {}


def split_rows(split: str) -> tuple[Row, ...]:
    """The entities of a split. The split `demo` has all of them: its facts are shuffled.

    Raises:
        ConfigError: there is no such split.
    """
    rows = short_rows()
    if split == "demo":
        return rows
    start = 0
    for name in SPLITS:
        if name == split:
            return rows[start : start + SIZES[name]]
        start += SIZES[name]
    raise ConfigError(f"No split '{split}'.{did_you_mean(split, SPLITS)}")


def load_world(spec: WorldSpec, split: str, shuffle: int | None = None) -> World:
    """Build the world of a split, or take it from a cache.

    Args:
        spec: what it is made from.
        split: which entities it has.
        shuffle: a seed that deals each column's values out over the entities, for demonstrations.
            None = the true facts.
    """
    if shuffle is not None:
        return _shuffled_world(spec, split, shuffle)
    return _cached_world(spec, split)


@lru_cache(maxsize=16)
def _cached_world(spec: WorldSpec, split: str) -> World:
    # The user's corpus is not split: which entities are held out is up to the user's tasks.
    if spec.corpus != "factbook":
        return World(split, (), Index(load_corpus(spec.corpus)))
    rows = split_rows(split)
    if spec.pages == "prose":
        docs = []
        for number, row in enumerate(rows, 1):
            docs.append(Document(f"d{number}", row.name, prose(row.name) or "", row.name))
        return World(split, rows, Index(docs))
    rows = _without_some_facts(rows, spec, [13, SPLITS.index(split)])
    # The number of the split, so that each split deals its ids and distractors apart.
    rng = np.random.default_rng([7, SPLITS.index(split)])
    return World(split, rows, Index(_documents(rows, spec, rng)))


def _shuffled_world(spec: WorldSpec, split: str, seed: int) -> World:
    """A world as large as the training split, with each column's values dealt out at random."""
    rng = np.random.default_rng(seed)
    rows = split_rows(split)
    rows = tuple(rows[i] for i in rng.permutation(len(rows))[: SIZES["train"]])

    # Column by column in a fixed order: the generator is shared.
    values_by_column = {}
    for column in sorted({*spec.attributes, *HOP}):
        order = rng.permutation(len(rows))
        values_by_column[column] = [rows[i].facts[column] for i in order]

    shuffled = []
    for i, row in enumerate(rows):
        facts = {column: values[i] for column, values in values_by_column.items()}
        shuffled.append(Row(row.name, facts))
    rows = _without_some_facts(tuple(shuffled), spec, [13, seed])
    return World("demo", rows, Index(_documents(rows, spec, rng)))


def _without_some_facts(
    rows: tuple[Row, ...], spec: WorldSpec, seed: Sequence[int]
) -> tuple[Row, ...]:
    """Leave out a share of the facts. They are then on no page.

    Never the capital: its own page names the country, so it could still be found.
    """
    if not spec.unanswerable:
        return rows
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys([*spec.attributes, *HOP]))
    names.remove(HOP[0])
    # One draw for each fact, so that a larger share hides the same facts and more.
    is_hidden = rng.random((len(rows), len(names))) < spec.unanswerable
    remaining = []
    for row, hidden_flags in zip(rows, is_hidden, strict=True):
        facts = dict(row.facts)
        for name, hidden in zip(names, hidden_flags, strict=True):
            if hidden:
                facts.pop(name, None)
        remaining.append(Row(row.name, facts))
    return tuple(remaining)


def _documents(rows: Sequence[Row], spec: WorldSpec, rng: np.random.Generator) -> list[Document]:
    """Write two short pages for each entity: the country's and its capital's."""
    # Ids in a random order, from the range of the largest split: an id tells nothing.
    numbers = rng.permutation(2 * SIZES["train"])[: 2 * len(rows)] + 1
    # The capital is always there: the second hop starts from it.
    country_columns = dict.fromkeys([*spec.attributes, HOP[0]])
    docs = []
    for k, row in enumerate(rows):
        country = {name: row.facts[name] for name in country_columns if name in row.facts}
        city = {"country": row.name}
        if HOP[1] in row.facts:
            city[HOP[1]] = row.facts[HOP[1]]
        for title, facts, number in (
            (row.name, country, numbers[2 * k]),
            (row.facts[HOP[0]], city, numbers[2 * k + 1]),
        ):
            # One fact a line, with the separator that the expert and tiny models read.
            lines = [f"{name} : {value}" for name, value in facts.items()]
            lines += _distractors(rows, spec.distractors, rng)
            if spec.distractors:
                lines = [lines[i] for i in rng.permutation(len(lines))]
            docs.append(Document(f"d{number}", title, "\n".join([title, *lines]), row.name))
    return docs


def _distractors(rows: Sequence[Row], num: int, rng: np.random.Generator) -> list[str]:
    """Lines that look like facts and that no task asks for, such as `neighbour : Kenya`."""
    names = itertools.cycle(("neighbour", "partner", "visitor"))
    lines = []
    for i in rng.integers(len(rows), size=num):
        lines.append(f"{next(names)} : {rows[i].name}")
    return lines
