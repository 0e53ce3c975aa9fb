"""`parl/WideSearch-v0`: fill a table of entities and attributes by searching a corpus.

A task names entities and columns, and has the gold table. The answer gets the official WideSearch
score (`parl_rewards.wide_search`). The tool `search(query)` returns titles and opaque document ids,
`open(doc)` a page. The corpus is the CIA World Factbook (232 countries and their capitals, in the
package), or the user's JSONL file.
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

# Separators of both answer formats and of prompts are no words: `#1 Kenya ;` names Kenya.
WORD = re.compile(r"[^\s:;,]+")

# Building a world takes 14 ms, most of it the index over 168 pages, so demonstrations share a few.
NUM_DEMO_WORLDS = 48


class WideSearch(AgentEnv):
    """Fill a table by search.

    Args:
        corpus: `factbook`, or a JSONL file of {"title", "text", "id"?, "entity"?}.
        pages: `records` (short pages of `attribute : value` lines, for tiny models) or `prose`
            (full profiles).
        n: the range of the number of entities, [lo, hi]; or several ranges [[1, 2], [4, 10]], which
            are equally likely.
        two_hop: share of generated tasks whose second column is on the page of the first column's
            value.
        attributes: columns that tasks may ask for, of those on an entity's page.
        distractors: extra lines on each page that no task asks for.
        answer_format: `cells` (`#1 Kenya capital Nairobi ...`, rendered to a table here) or
            `markdown`.
        top_k: results of a search that names no number.
        unanswerable: share of the facts that are on no page, the capital aside (factbook's records
            only). The right cell is then `unknown`.
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
                f"env.kwargs.attributes is {list(attributes)}; "
                "a task asks for two, so give at least two"
            )
        _check_unanswerable(unanswerable, corpus, pages)
        self.world_spec = WorldSpec(corpus, pages, tuple(attributes), distractors, unanswerable)
        self.top_k = top_k
        # A first world, so that the tools work before an episode; `start` loads the task's own.
        self.world: World = load_world(self.world_spec, "train")
        self._demo_worlds: list[World] = []

    # --- tools ---

    @tool
    def search(
        self,
        query: Annotated[str, Field(description="Words of a title or a page.")],
        top_k: Annotated[int, Field(description="Most results; 0 for the usual number.")] = 0,
    ) -> str:
        """Search the corpus. Returns one line `title : id` for each result, best first."""
        # Bounded: a policy that asks for a thousand results would fill its window.
        num_results = top_k if 0 < top_k <= 20 else self.top_k
        documents = self.world.index.search(query, num_results)
        return "\n".join(f"{doc.title} : {doc.id}" for doc in documents) or NOT_FOUND

    @tool
    def open(self, doc: Annotated[str, Field(description="An id that search returned.")]) -> str:
        """Open the document with this id. Returns its page."""
        page = self.world.index.get(doc)
        if page is None:
            return NOT_FOUND
        return page.text

    # --- tasks and scores ---

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return tasks.generate(load_world(self.world_spec, split), self.knobs, split, num, seed)

    def load_task(self, row: Mapping[str, Any]) -> Task:
        return tasks.load_task(row, self.knobs)

    def start(self, task: Task) -> None:
        self.subtask_rows: dict[int, Mapping[str, str]] | None = None
        self._calibration: dict[str, float] = {}
        split = task.data.get("split", "train")
        # A demonstration's world has shuffled facts: no split's world may take its place.
        if split != self.world.split and self.world.split != "demo":
            self.world = load_world(self.world_spec, split)

    def to_markdown(self, answer: str) -> str:
        """Return the answer as a Markdown table. Cells are placed, never added."""
        if self.knobs.answer_format == "markdown":
            return answer
        # Tiny models write cells, which the official evaluator does not read.
        columns = self.task.data["columns"]
        return rows_to_markdown(parse_rows(answer, columns), columns)

    def score(self, answer: str) -> Mapping[str, float]:
        gold, evaluation = self.task.data["gold"], self.task.data["evaluation"]
        table = self.to_markdown(answer)
        # The official score joins rows by their key, so the order of rows does not matter.
        result = wide_search(table, gold, evaluation)
        # Scored on the same table as the item F1, so that both agree on which cells there are.
        if self._counts_abstentions:
            cells = read_cells(table, gold, evaluation)
            self._calibration = tally(map(_question, cells))
        return {
            "score": result["f1_by_item"],
            "item_f1": result["f1_by_item"],
            "item_f1_nonkey": item_f1_nonkey(table, gold, evaluation),
            "row_f1": result["f1_by_row"],
            "item_recall": result["recall_by_item"],
            "success": result["score"],
        }

    def facts(self) -> Mapping[str, Any]:
        """Count answers and abstentions, where questions may have no answer."""
        if not self._counts_abstentions:
            return {}
        return {"calibration": self._calibration}

    @property
    def _counts_abstentions(self) -> bool:
        """Whether facts are left out, or tasks are the user's, whose gold may say `unknown`."""
        return self.world_spec.unanswerable > 0 or self.world_spec.corpus != "factbook"

    def num_parts(self) -> int | None:
        return len(self.task.data["gold"])

    # --- subagents ---

    def fork(self, subtask: str) -> WideSearch:
        """Make the environment of a subagent.

        It shares the corpus. Its rows are those of the gold table whose entity its prompt names.
        """
        # Shallow: the corpus and the task are read-only, and a corpus can be large.
        child = copy.copy(self)
        key = self.task.data["columns"][0]
        words = _words(subtask)
        named_rows: dict[int, Mapping[str, str]] = {}
        numbered_rows = enumerate(self.task.data["gold"], 1)
        # The longest names first: "Papua New Guinea" does not name Guinea.
        for number, row in sorted(numbered_rows, key=lambda item: -len(item[1][key])):
            name = _words(row[key])
            if name in words:
                named_rows[number] = row
                words = words.replace(name, " ; ")
        child.subtask_rows = dict(sorted(named_rows.items()))
        return child

    def check_result(self, message: str) -> bool:
        """Accept a subagent's message that has all rows it was asked for, with all cells filled.

        In Markdown any text is accepted. With `unanswerable`, `unknown` is a cell like any other.
        """
        # Prose has no form that could be checked without the gold answer.
        if self.knobs.answer_format == "markdown" or self.subtask_rows is None:
            return bool(message.strip())
        columns = self.task.data["columns"]
        rows = parse_rows(message, columns)
        if not rows or set(rows) != set(self.subtask_rows):
            return False
        # Elsewhere `unknown` means that the subagent has given up.
        empty_cells = {""} if self.world_spec.unanswerable else {"", NOT_FOUND}
        for row in rows.values():
            if set(row) != set(columns) or empty_cells & set(row.values()):
                return False
        return True

    def subtask_score(self, message: str) -> float | None:
        """Score a subagent: the share of its cells outside the key that its message gives right.

        Gold-informed. None for the orchestrator.
        """
        if self.subtask_rows is None:
            return None
        columns = self.task.data["columns"]
        # A Markdown message may be prose: there a cell counts wherever the value is.
        in_cells = self.knobs.answer_format == "cells"
        rows = parse_rows(message, columns) if in_cells else {}
        num_cells = 0
        num_right = 0
        for number, gold_row in self.subtask_rows.items():
            for column in columns[1:]:
                gold_cell = gold_row[column].casefold()
                num_cells += 1
                if in_cells:
                    cell = rows.get(number, {}).get(column, "")
                    num_right += cell.casefold() == gold_cell
                else:
                    num_right += gold_cell in message.casefold()
        if num_cells == 0:
            return 0.0
        return num_right / num_cells

    def claims(self, message: str) -> Mapping[str, str]:
        """Return what a message states: `entity column` -> cell. Unknown cells state nothing.

        In Markdown, only a table that has the key states anything.
        """
        rows, columns = self._rows(message)
        keys = columns[:1]
        if self.knobs.answer_format == "markdown":
            keys = self.task.data["evaluation"]["unique_columns"]
        claims: dict[str, str] = {}
        for row in rows.values():
            # Messages are compared by entity and column: row numbers may differ between subagents.
            entity = " ".join(row.get(key, "") for key in keys).strip()
            if not entity:
                continue
            for column, cell in row.items():
                if column not in keys and cell and cell.casefold() != NOT_FOUND:
                    claims[f"{entity} {column}"] = cell
        return claims

    def contributions(self, answer: str, messages: Sequence[str]) -> Sequence[float]:
        """Return how much each subagent's message contributed to the item F1 of the answer.

        A contribution is the item F1 minus the item F1 without the cells that only this message
        gives. A cell that another message gives too stays, and so does a key that the task itself
        names; a row whose key goes, goes. What the orchestrator looked up itself is not known here:
        it counts as given by the message.
        """
        rows, columns = self._rows(answer)
        cells_by_message = [self._cells_of_message(message, rows) for message in messages]
        num_messages: Counter[tuple[int, str]] = Counter()
        for cells in cells_by_message:
            num_messages.update(cells)
        full_score = self._item_f1(rows, columns)
        contributions = []
        for cells in cells_by_message:
            # What several messages give would still be in the answer without one of them.
            lost = {cell for cell in cells if num_messages[cell] == 1}
            if not lost:
                contributions.append(0.0)
                continue
            remaining = _without_cells(rows, lost, key=columns[0])
            contributions.append(full_score - self._item_f1(remaining, columns))
        return contributions

    def _rows(self, answer: str) -> tuple[Mapping[int, Mapping[str, str]], Sequence[str]]:
        """The answer's rows by number, and their columns, the key first."""
        if self.knobs.answer_format == "cells":
            columns = self.task.data["columns"]
            return parse_rows(answer, columns), columns
        table = parse_table(answer) or []
        keys = self.task.data["evaluation"]["unique_columns"]
        names = list(table[0]) if table else list(keys)
        rows = dict(enumerate(table, 1))
        # The key comes first, because `_without_cells` looks at the first column. Sorting is
        # stable.
        return rows, sorted(names, key=lambda name: name not in keys)

    def _cells_of_message(
        self, message: str, rows: Mapping[int, Mapping[str, str]]
    ) -> set[tuple[int, str]]:
        """The answer's cells that a message gives, as (row number, column).

        In cells it gives them in the same row, in Markdown anywhere. Keys that the task itself
        names are left out.
        """
        in_cells = self.knobs.answer_format == "cells"
        if in_cells:
            key = self.task.data["columns"][0]
            message_rows = parse_rows(message, self.task.data["columns"])
        else:
            key = self.task.data["evaluation"]["unique_columns"][0]
            message_rows = {}
        # The answer can have a key from the prompt alone: no message deserves it.
        prompt_words = _words(self.task.prompt)

        cells = set()
        for number, row in rows.items():
            for column, cell in row.items():
                if not cell or (column == key and _words(cell) in prompt_words):
                    continue
                if in_cells:
                    is_in_message = message_rows.get(number, {}).get(column) == cell
                else:
                    is_in_message = _has_cell(message, cell)
                if is_in_message:
                    cells.add((number, column))
        return cells

    def _item_f1(self, rows: Mapping[int, Mapping[str, str]], columns: Sequence[str]) -> float:
        table = rows_to_markdown(rows, columns)
        result = wide_search(table, self.task.data["gold"], self.task.data["evaluation"])
        return result["f1_by_item"]

    # --- a policy from nothing ---

    def vocabulary(self) -> Sequence[str]:
        return practice.vocabulary(self.world_spec, self.knobs)

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """Draw a demonstration.

        `recall` and `enumerate` are texts to practise copying; `episode` is the expert at work,
        with the knobs of `SearchExpert` and `n`, a range for the number of entities.
        """
        if kind in practice.KINDS:
            return practice.KINDS[kind](rng, self.world_spec, self.knobs)
        if kind != "episode":
            hint = did_you_mean(kind, [*practice.KINDS, "episode"])
            raise ConfigError(f"No demonstrations of kind '{kind}'.{hint}")
        # A copy: the environment of the run keeps its own world.
        env = copy.copy(self)
        env.world = self._demo_world(rng)
        task = tasks.one_task(env.world, self.knobs, rng, "demo", knobs.pop("n", None))
        return Demonstration(env, task, expert.SearchExpert(task, rng, **knobs))

    def for_rehearsal(self) -> AgentEnv:
        """Return a copy with demonstration worlds apart.

        The first worlds that are drawn stay for the whole run, so a rehearsal must not draw them.
        """
        env = copy.copy(self)
        env._demo_worlds = list(self._demo_worlds)
        return env

    def _demo_world(self, rng: np.random.Generator) -> World:
        """A world with shuffled facts: the policy learns to look facts up, not the facts."""
        if len(self._demo_worlds) < NUM_DEMO_WORLDS:
            seed = int(rng.integers(2**31))
            self._demo_worlds.append(load_world(self.world_spec, "demo", shuffle=seed))
        return self._demo_worlds[int(rng.integers(len(self._demo_worlds)))]


def _question(cell: Cell) -> Question:
    """A cell as a question with an answer, an abstention, or nothing."""
    # The official rules take `*` away, so it must not make an answer of an abstention.
    gold_cell = cell.gold.replace("*", "").strip().casefold()
    answer = cell.answer.replace("*", "").strip().casefold()
    is_answerable = gold_cell != NOT_FOUND
    if answer == NOT_FOUND:
        return Question(is_answerable, "unknown")
    return Question(is_answerable, "answer" if answer else "nothing", cell.score)


def _without_cells(
    rows: Mapping[int, Mapping[str, str]], lost: set[tuple[int, str]], key: str
) -> dict[int, dict[str, str]]:
    """The rows without some cells; a row that loses its key goes."""
    remaining = {}
    for number, row in rows.items():
        if key in row and (number, key) in lost:
            continue
        remaining[number] = {c: cell for c, cell in row.items() if (number, c) not in lost}
    return remaining


def _words(text: str) -> str:
    """The words of a text between blanks, so that whole words of another can be looked for."""
    return f" {' '.join(WORD.findall(text))} "


def _has_cell(text: str, cell: str) -> bool:
    """Whether a text has the cell, not as a part of a longer word or number."""
    pattern = rf"(?<!\w){re.escape(cell.casefold())}(?!\w|[.,]\d)"
    return re.search(pattern, text.casefold()) is not None


def _check_unanswerable(share: float, corpus: str, pages: str) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"env.kwargs.unanswerable is {share}; give a share of the facts, 0 to 1.")
    if share and (corpus != "factbook" or pages != "records"):
        raise ConfigError(
            f"env.kwargs.unanswerable is {share}, but facts can be left out of the factbook's "
            f"records only. Set it to 0; in tasks of your own, write {NOT_FOUND} into the gold "
            "cells that your corpus does not tell."
        )


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"env.kwargs.{name} is '{value}'.{did_you_mean(str(value), allowed)}")
