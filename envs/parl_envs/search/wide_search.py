"""`parl/WideSearch-v0`: fill a table of entities x attributes by searching a corpus.

In: a task (entities, columns, gold). Out: the official WideSearch score of the answer (`parl_rewards.wide_search`).
Tools: `search(query)` returns titles and opaque document ids, `open(doc)` a page. The corpus is the CIA World
Factbook (232 countries and their capitals, in the package), or the user's own JSONL.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from parl.core.abstention import Question, tally
from parl.core.errors import ConfigError, did_you_mean
from parl.core.types import Task
from parl.env.base import AgentEnv, Demonstration
from parl.env.demonstrations import Segment
from parl.env.tools import tool
from parl_envs.search import expert, practice, tasks
from parl_envs.search.table import parse_rows, rows_to_markdown
from parl_envs.search.world import NOT_FOUND, World, WorldSpec, load_world, own_attributes
from parl_rewards.wide_search import Cell, item_f1_nonkey, parse_table, read_cells, wide_search

WORD = re.compile(r"[^\s:;,]+")


class WideSearch(AgentEnv):
    """Fill a table by search.

    Args:
        corpus: `factbook`, or a JSONL file of {"title", "text", "id"?, "entity"?}.
        pages: `records` (short pages of `attribute : value` lines, for tiny models) or `prose` (full profiles).
        n: the range of N, [lo, hi], or several ranges [[1, 2], [4, 10]] that are equally likely.
        two_hop: share of generated tasks whose second column stands on the page of the first column's value.
        attributes: columns that tasks may ask for, of those on an entity's own page.
        distractors: extra lines on each page that no task asks for.
        answer_format: `cells` (`#1 Kenya capital Nairobi ...`, rendered to a table here) or `markdown`.
        top_k: results of a search that names no number.
        unanswerable: share of the facts that no page tells, the capital aside (factbook's records only). The right cell
            is then `unknown`.
    """

    def __init__(
        self,
        corpus: str = "factbook",
        pages: Literal["records", "prose"] = "records",
        n: Sequence[Any] = (4, 12),
        two_hop: float = 0.25,
        attributes: Sequence[str] = ("capital", "currency", "internet"),
        distractors: int = 0,
        answer_format: Literal["cells", "markdown"] = "cells",
        top_k: int = 2,
        unanswerable: float = 0.0,
    ) -> None:
        super().__init__()
        _one_of("pages", pages, ("records", "prose"))
        _one_of("answer_format", answer_format, ("cells", "markdown"))
        self.knobs = tasks.SearchKnobs(
            ranges=tasks.parse_ranges(n),
            two_hop=two_hop,
            attributes=tuple(attributes),
            answer_format=answer_format,
        )
        for attribute in attributes:
            _one_of("attributes", attribute, own_attributes())
        if corpus == "factbook" and len(self.knobs.attributes) < 2:
            raise ConfigError(
                f"env.kwargs.attributes is {list(attributes)}; a task asks for two, so give at least two"
            )
        _check_unanswerable(unanswerable, corpus, pages)
        self.world_spec = WorldSpec(corpus, pages, tuple(attributes), distractors, unanswerable)
        self.top_k = top_k
        self.world: World = load_world(self.world_spec, "train")
        self._demo_worlds: list[World] = []

    # --- tools -------------------------------------------------------------------------------------------------------

    @tool
    def search(
        self,
        query: Annotated[str, Field(description="Words of a title or a page.")],
        top_k: Annotated[int, Field(description="Most results; 0 for the usual number.")] = 0,
    ) -> str:
        """Search the corpus. Returns one line `title : id` for each result, best first."""
        found = self.world.index.search(query, top_k if 0 < top_k <= 20 else self.top_k)
        return "\n".join(f"{d.title} : {d.id}" for d in found) or NOT_FOUND

    @tool
    def open(self, doc: Annotated[str, Field(description="An id that search returned.")]) -> str:
        """Open the document with this id. Returns its page."""
        page = self.world.index.get(doc)
        return page.text if page is not None else NOT_FOUND

    # --- tasks and scores --------------------------------------------------------------------------------------------

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return tasks.generate(load_world(self.world_spec, split), self.knobs, split, num, seed)

    def load_task(self, row: Mapping[str, Any]) -> Task:
        return tasks.load_task(row, self.knobs)

    def start(self, task: Task) -> None:
        self.subtask_rows: dict[int, Mapping[str, str]] | None = None
        self._calibration: dict[str, float] = {}
        split = task.data.get("split", "train")
        if split != self.world.split and self.world.split != "demo":
            self.world = load_world(self.world_spec, split)

    def to_markdown(self, answer: str) -> str:
        """The answer as a markdown table. Cells are placed, never added."""
        if self.knobs.answer_format == "markdown":
            return answer
        columns = self.task.data["columns"]
        return rows_to_markdown(parse_rows(answer, columns), columns)

    def score(self, answer: str) -> Mapping[str, float]:
        gold, evaluation = self.task.data["gold"], self.task.data["evaluation"]
        table = self.to_markdown(answer)
        result = wide_search(table, gold, evaluation)
        if self._counts_abstentions:
            self._calibration = tally(
                _question(cell) for cell in read_cells(table, gold, evaluation)
            )
        return {
            "score": result["f1_by_item"],
            "item_f1": result["f1_by_item"],
            "item_f1_nonkey": item_f1_nonkey(table, gold, evaluation),
            "row_f1": result["f1_by_row"],
            "item_recall": result["recall_by_item"],
            "success": result["score"],
        }

    def facts(self) -> Mapping[str, Any]:
        """Answers and abstentions, where questions may have no answer."""
        return {"calibration": self._calibration} if self._counts_abstentions else {}

    @property
    def _counts_abstentions(self) -> bool:
        """Facts are left out, or tasks are the user's own, whose gold may say `unknown`."""
        return self.world_spec.unanswerable > 0 or self.world_spec.corpus != "factbook"

    def num_parts(self) -> int | None:
        return len(self.task.data["gold"])

    # --- subagents ---------------------------------------------------------------------------------------------------

    def fork(self, subtask: str) -> WideSearch:
        """A subagent shares the corpus; its rows are those of the table whose entity its prompt names."""
        child = copy.copy(self)
        rows = self.task.data["gold"]
        key = self.task.data["columns"][0]
        words = _words(subtask)
        named: dict[int, Mapping[str, str]] = {}
        # the longest names first: "Papua New Guinea" does not name Guinea
        for i, row in sorted(enumerate(rows, 1), key=lambda item: -len(item[1][key])):
            if _words(row[key]) in words:
                named[i] = row
                words = words.replace(_words(row[key]), " ; ")
        child.subtask_rows = {i: named[i] for i in sorted(named)}
        return child

    def check_result(self, message: str) -> bool:
        """Cells: whole rows of the rows asked for, none of them empty or unknown. Markdown: any text.

        With `unanswerable`, `unknown` is a cell like any other.
        """
        if self.knobs.answer_format == "markdown" or self.subtask_rows is None:
            return bool(message.strip())
        columns = self.task.data["columns"]
        rows = parse_rows(message, columns)
        whole = all(set(row) == set(columns) for row in rows.values())
        refused = ("",) if self.world_spec.unanswerable else ("", NOT_FOUND)
        filled = all(cell not in refused for row in rows.values() for cell in row.values())
        return bool(rows) and set(rows) == set(self.subtask_rows) and whole and filled

    def subtask_score(self, message: str) -> float | None:
        """Share of the non-key cells of the subagent's rows that its message gives right (gold-informed)."""
        if self.subtask_rows is None:
            return None
        columns = self.task.data["columns"]
        wanted = {
            (i, c): row[c].casefold() for i, row in self.subtask_rows.items() for c in columns[1:]
        }
        if not wanted:
            return 0.0
        if self.knobs.answer_format == "markdown":
            return sum(v in message.casefold() for v in wanted.values()) / len(wanted)
        rows = parse_rows(message, columns)
        return sum(
            rows.get(i, {}).get(c, "").casefold() == v for (i, c), v in wanted.items()
        ) / len(wanted)

    def claims(self, message: str) -> Mapping[str, str]:
        """Its filled cells by `entity column`, `unknown` aside; of markdown, those of a table that has the key."""
        rows, columns = self._rows(message)
        keys = columns[:1]
        if self.knobs.answer_format == "markdown":
            keys = self.task.data["evaluation"]["unique_columns"]
        claims: dict[str, str] = {}
        for row in rows.values():
            entity = " ".join(row.get(key, "") for key in keys).strip()
            cells = {
                c: v for c, v in row.items() if c not in keys and v and v.casefold() != NOT_FOUND
            }
            claims |= {f"{entity} {column}": value for column, value in cells.items() if entity}
        return claims

    def contributions(self, answer: str, messages: Sequence[str]) -> Sequence[float]:
        """Item F1 of the answer minus its item F1 without the cells that only this subagent's message gives.

        A cell that another message gives too stays, and so does a key that the task itself names; a row whose key
        goes, goes. What the orchestrator looked up itself is not known here: it counts as given by the message.
        """
        rows, columns = self._rows(answer)
        given = [self._given(message, rows) for message in messages]
        times = Counter(cell for cells in given for cell in cells)
        whole = self._item_f1(rows, columns)
        worth = []
        for cells in given:
            lost = {cell for cell in cells if times[cell] == 1}
            left = {
                n: {c: v for c, v in row.items() if (n, c) not in lost} for n, row in rows.items()
            }
            left = {
                n: row for n, row in left.items() if columns[0] in row or columns[0] not in rows[n]
            }
            worth.append(whole - self._item_f1(left, columns) if lost else 0.0)
        return worth

    def _rows(self, answer: str) -> tuple[Mapping[int, Mapping[str, str]], Sequence[str]]:
        """The answer's rows by number, and their columns, the key first."""
        if self.knobs.answer_format == "cells":
            columns = self.task.data["columns"]
            return parse_rows(answer, columns), columns
        table = parse_table(answer) or []
        keys = self.task.data["evaluation"]["unique_columns"]
        names = list(table[0]) if table else list(keys)
        return dict(enumerate(table, 1)), sorted(names, key=lambda name: name not in keys)

    def _given(self, message: str, rows: Mapping[int, Mapping[str, str]]) -> set[tuple[int, str]]:
        """Cells of the answer that stand in a message: in the same row (cells), or anywhere in it (markdown)."""
        asked, key = _words(self.task.prompt), self.task.data["columns"][0]
        if self.knobs.answer_format == "cells":
            own = parse_rows(message, self.task.data["columns"])
            found = {
                (n, c)
                for n, row in rows.items()
                for c, v in row.items()
                if v and own.get(n, {}).get(c) == v
            }
        else:
            key = self.task.data["evaluation"]["unique_columns"][0]
            found = {
                (n, c)
                for n, row in rows.items()
                for c, v in row.items()
                if v and _stands_in(v, message)
            }
        return {(n, c) for n, c in found if c != key or _words(rows[n][c]) not in asked}

    def _item_f1(self, rows: Mapping[int, Mapping[str, str]], columns: Sequence[str]) -> float:
        table = rows_to_markdown(rows, columns)
        return wide_search(table, self.task.data["gold"], self.task.data["evaluation"])[
            "f1_by_item"
        ]

    # --- a policy from nothing ---------------------------------------------------------------------------------------

    def vocabulary(self) -> Sequence[str]:
        return practice.vocabulary(self.world_spec, self.knobs)

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """`recall`, `enumerate`: texts to practise copying. `episode`: the expert at work."""
        if kind in practice.KINDS:
            return practice.KINDS[kind](rng, self.world_spec, self.knobs)
        if kind != "episode":
            raise ConfigError(
                f"No demonstrations of kind '{kind}'.{did_you_mean(kind, [*practice.KINDS, 'episode'])}"
            )
        env = copy.copy(self)
        env.world = self._demo_world(rng)
        task = tasks.one_task(env.world, self.knobs, rng, "demo", knobs.pop("n", None))
        return Demonstration(env, task, expert.SearchExpert(task, rng, **knobs))

    def for_rehearsal(self) -> AgentEnv:
        """Return a copy with demonstration worlds apart: the first 48 that are drawn stay for the whole run."""
        env = copy.copy(self)
        env._demo_worlds = list(self._demo_worlds)
        return env

    def _demo_world(self, rng: np.random.Generator) -> World:
        """Worlds whose facts are shuffled over all entities: the policy learns to look up, never the facts."""
        if len(self._demo_worlds) < 48:
            self._demo_worlds.append(
                load_world(self.world_spec, "demo", shuffle=int(rng.integers(2**31)))
            )
        return self._demo_worlds[int(rng.integers(len(self._demo_worlds)))]


def _question(cell: Cell) -> Question:
    """A cell as a question. Signs that the official rules take away do not make an abstention an answer."""
    gold, said = (text.replace("*", "").strip().casefold() for text in (cell.gold, cell.said))
    answerable = gold != NOT_FOUND
    if said == NOT_FOUND:
        return Question(answerable, "unknown")
    return Question(answerable, "answer" if said else "nothing", cell.score)


def _words(text: str) -> str:
    """The words of a text between blanks, so that one text's words can be found in another's."""
    return f" {' '.join(WORD.findall(text))} "


def _stands_in(cell: str, text: str) -> bool:
    """Whether a text holds the cell, not as a part of a longer word or number."""
    return (
        re.search(rf"(?<!\w){re.escape(cell.casefold())}(?!\w|[.,]\d)", text.casefold()) is not None
    )


def _check_unanswerable(share: float, corpus: str, pages: str) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"env.kwargs.unanswerable is {share}; give a share of the facts, 0 to 1.")
    if share and (corpus != "factbook" or pages != "records"):
        raise ConfigError(
            f"env.kwargs.unanswerable is {share}, but facts can be left out of the factbook's records only. "
            f"Set it to 0; in tasks of your own, write {NOT_FOUND} into the gold cells that your corpus does not tell."
        )


def _one_of(name: str, given: str, allowed: Sequence[str]) -> None:
    if given not in allowed:
        raise ConfigError(f"env.kwargs.{name} is '{given}'.{did_you_mean(str(given), allowed)}")
