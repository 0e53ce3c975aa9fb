"""A world: the documents of one split behind a BM25 index, and the facts that tasks are made of.

In: a `WorldSpec` and a split. Out: a `World`. Splits share no entity: each has a corpus of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from parl.core.errors import ConfigError, did_you_mean
from parl_envs.search.corpus import Document, Entity, Index, load_corpus, load_facts, prose

SPLITS = ("train", "validation", "test")
SIZES = {"train": 84, "validation": 28, "test": 28}
"""Entities of the records profile: the most populous countries with short names, dealt out by a fixed shuffle."""
NOT_FOUND = "unknown"
"""What tools say when there is nothing, and the right answer to a question whose fact no page tells."""
HOP = ("capital", "time")
"""The two-hop columns: the city's name stands on the country's page, the city's time zone on the city's page."""


@dataclass(frozen=True, slots=True)
class WorldSpec:
    corpus: str
    pages: str
    attributes: tuple[str, ...]
    distractors: int
    unanswerable: float = 0.0
    """Share of the facts that no page tells, the capital aside."""


@dataclass(frozen=True, slots=True)
class Row:
    """One entity as tasks see it: its name and the facts that pages tell, the second hop's included."""

    name: str
    facts: dict[str, str]


@dataclass(frozen=True, eq=False)
class World:
    split: str
    rows: tuple[Row, ...]
    index: Index


@lru_cache(maxsize=1)
def short_rows() -> tuple[Row, ...]:
    """The factbook's countries that fit tiny models: names and capitals of at most two words, unambiguous."""
    entities = load_facts()
    capitals = [_capital(e) for e in entities]
    rows = []
    for entity, capital in zip(entities, capitals, strict=True):
        country = dict(entity.records[0].facts)
        city = next((dict(r.facts) for r in entity.records if r.kind == "city"), {})
        needed = ("capital", "currency", "internet", "population")
        if not all(k in country for k in needed) or "time" not in city:
            continue
        if len(entity.name.split()) > 2 or len(capital.split()) > 2:
            continue
        if capitals.count(capital) > 1 or capital == entity.name:
            continue
        rows.append(Row(entity.name, {**country, "time": city["time"]}))
    rows.sort(key=lambda r: -int(r.facts["population"]))
    rows = rows[: sum(SIZES.values())]
    order = np.random.default_rng(5).permutation(len(rows))
    return tuple(rows[i] for i in order)


@lru_cache(maxsize=1)
def own_attributes() -> tuple[str, ...]:
    """What every entity's own page can tell: the columns that tasks may ask for."""
    return tuple(sorted(set.intersection(*(set(r.facts) for r in short_rows())) - {HOP[1]}))


def _capital(entity: Entity) -> str:
    return str(entity.records[0].facts.get("capital", ""))


def split_rows(split: str) -> tuple[Row, ...]:
    """The entities of a split; `demo` has all of them (its facts are shuffled)."""
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
    """The world of a split, cached; `shuffle` deals each column's values anew over the entities (demonstrations)."""
    return (
        _shuffled_world(spec, split, shuffle) if shuffle is not None else _cached_world(spec, split)
    )


@lru_cache(maxsize=16)
def _cached_world(spec: WorldSpec, split: str) -> World:
    if spec.corpus != "factbook":
        return World(split, (), Index(load_corpus(spec.corpus)))
    rows = split_rows(split)
    if spec.pages == "prose":
        pages = [(r.name, prose(r.name) or "") for r in rows]
        docs = [Document(f"d{i}", title, text, title) for i, (title, text) in enumerate(pages, 1)]
        return World(split, rows, Index(docs))
    rows = _left_out(rows, spec, [13, SPLITS.index(split)])
    return World(
        split, rows, Index(_documents(rows, spec, np.random.default_rng([7, SPLITS.index(split)])))
    )


def _shuffled_world(spec: WorldSpec, split: str, seed: int) -> World:
    rng = np.random.default_rng(seed)
    rows = split_rows(split)
    rows = tuple(rows[i] for i in rng.permutation(len(rows))[: SIZES["train"]])
    columns = sorted({*spec.attributes, *HOP})
    dealt = {c: [rows[i].facts[c] for i in rng.permutation(len(rows))] for c in columns}
    fake = tuple(Row(r.name, {c: dealt[c][i] for c in columns}) for i, r in enumerate(rows))
    fake = _left_out(fake, spec, [13, seed])
    return World("demo", fake, Index(_documents(fake, spec, rng)))


def _left_out(rows: tuple[Row, ...], spec: WorldSpec, seed: Sequence[int]) -> tuple[Row, ...]:
    """The rows without a share of their facts, which no page tells then.

    Never the capital: its own page names the country, so it could still be found.
    """
    if not spec.unanswerable:
        return rows
    rng = np.random.default_rng(seed)
    names = [a for a in dict.fromkeys([*spec.attributes, *HOP]) if a != HOP[0]]
    gone = rng.random((len(rows), len(names))) < spec.unanswerable
    hidden = [{a for a, out in zip(names, line, strict=True) if out} for line in gone]
    return tuple(
        Row(row.name, {a: v for a, v in row.facts.items() if a not in lost})
        for row, lost in zip(rows, hidden, strict=True)
    )


def _documents(rows: Sequence[Row], spec: WorldSpec, rng: np.random.Generator) -> list[Document]:
    """Two short pages an entity: the country's and its capital's. Ids are dealt at random: they tell nothing."""
    ids = [f"d{i}" for i in rng.permutation(2 * SIZES["train"])[: 2 * len(rows)] + 1]
    docs = []
    for k, row in enumerate(rows):
        own = {a: row.facts[a] for a in dict.fromkeys([*spec.attributes, HOP[0]]) if a in row.facts}
        city = {"country": row.name, **{a: v for a, v in row.facts.items() if a == HOP[1]}}
        for title, facts, doc_id in (
            (row.name, own, ids[2 * k]),
            (row.facts[HOP[0]], city, ids[2 * k + 1]),
        ):
            lines = [f"{a} : {v}" for a, v in facts.items()]
            lines += _distractors(rows, spec.distractors, rng)
            order = rng.permutation(len(lines)) if spec.distractors else range(len(lines))
            docs.append(
                Document(doc_id, title, "\n".join([title, *(lines[i] for i in order)]), row.name)
            )
    return docs


def _distractors(rows: Sequence[Row], num: int, rng: np.random.Generator) -> list[str]:
    """Lines about other entities' attributes, such as `near currency : EUR`: they look like facts and are not asked."""
    names = ("neighbour", "partner", "visitor")
    picks = rng.integers(len(rows), size=num)
    return [f"{names[k % len(names)]} : {rows[i].name}" for k, i in enumerate(picks)]
