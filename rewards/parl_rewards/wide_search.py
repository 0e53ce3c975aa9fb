"""WideSearch's scoring of a table, without its judge model: cells, rows, and the table as a whole.

An answer with a Markdown table is compared with the gold rows under the task's `evaluation`
(WideSearch's own JSON). The result is precision, recall and F1 by row and by item, and the success
of the whole table, each 0..1.

Source: WideSearch (2508.07999) and the evaluator of ByteDance-Seed/WideSearch. Here as there:

    - the columns must be exactly the required ones (any order), else all is 0; repeated keys count
      once;
    - rows are joined on the key columns; a key cell of a joined row scores 1, another cell by its
      own metric;
    - item precision = TP / (predicted rows x columns), recall over the gold rows; a row is its
      worst cell.

Different on purpose, because a reward is optimised against:

    - no model aligns column names or keys, and metrics that need one raise `ValueError`;
    - a gold row is joined once. There, "Chad", "CHAD" and "*Chad*" all join it, and recall exceeds
      1;
    - a cell that normalises to nothing ("**") is no substring of a gold cell. There, it matches
      every one;
    - several metrics on a column must all hold. There, they add up, again to more than 1;
    - dates are read by `parse_date`, whose result never depends on today's date.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from parl_rewards.cells import PREPROCESS, Rule, read_rule
from parl_rewards.dates import parse_date

__all__ = ["Cell", "item_f1_nonkey", "parse_date", "parse_table", "read_cells", "wide_search"]

Row = dict[str, str]
Gold = Sequence[Mapping[str, str]]
Columns = dict[str, list[str]]
"""A table by columns: name -> one cell for each row."""


class Cell(NamedTuple):
    """One cell of the gold table outside the key, with the answer's cell.

    Example: Cell("Nairobi", "nairobi", 1.0)
    """

    gold: str
    answer: str
    """As written; "" where the cell is empty or its row is missing."""
    score: float
    """0 or 1, by the column's metrics."""


def wide_search(answer: str, gold: Gold, evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return success, and precision, recall and F1 by row and by item (WideSearch, section 4).

    Args:
        answer: text with a Markdown table; the first one counts.
        gold: the true rows; column names are compared in lower case without blanks.
        evaluation: `required` columns, `unique_columns` (the key) and `eval_pipeline`: column ->
            `preprocess` and `metric`, and for `number_near` the `criterion`, a relative tolerance.
    Raises:
        ValueError: the evaluation is incomplete, or names a metric that only a judge can apply.
    """
    joined = _join(answer, gold, evaluation)
    num_columns = joined.num_keys + joined.num_others
    num_gold = len(joined.expected)
    row_hits = 0.0
    item_hits = 0.0
    for scores in joined.scores:
        # A table that is all key has no other cells: its joined rows are right.
        row_hits += min(scores, default=1.0)
        item_hits += joined.num_keys + sum(scores)

    by_row = _precision_recall_f1(row_hits, joined.num_predicted, num_gold)
    by_item = _precision_recall_f1(
        item_hits, joined.num_predicted * num_columns, num_gold * num_columns
    )
    # All six are 1 only if both tables have the same rows and cells.
    is_perfect = all(value == 1.0 for value in (*by_row, *by_item))
    return {
        "score": float(is_perfect),
        "precision_by_row": by_row[0],
        "recall_by_row": by_row[1],
        "f1_by_row": by_row[2],
        "precision_by_item": by_item[0],
        "recall_by_item": by_item[1],
        "f1_by_item": by_item[2],
    }


def item_f1_nonkey(answer: str, gold: Gold, evaluation: Mapping[str, Any]) -> float:
    """Return the item F1 of the cells outside the key; 0 if every column is a key.

    Key cells of joined rows always count in the official item F1: with the keys in the prompt and
    two other columns, an answer with every value wrong still scores 1/3. Here it scores 0.
    """
    joined = _join(answer, gold, evaluation)
    # Key cells are not in `scores`.
    hits = sum(map(sum, joined.scores))
    num_predicted = joined.num_predicted * joined.num_others
    num_gold = len(joined.expected) * joined.num_others
    return _precision_recall_f1(hits, num_predicted, num_gold)[2]


def read_cells(answer: str, gold: Gold, evaluation: Mapping[str, Any]) -> list[Cell]:
    """Return every cell of the gold table outside the key, row by row.

    Rows of the answer that join no gold row are not in it.
    """
    joined = _join(answer, gold, evaluation)
    # `_join` has read these, too; reading them twice keeps its result small.
    columns, keys, _ = _read_evaluation(evaluation)
    others = [column for column in columns if column not in keys]
    gold_columns = _gold_columns(gold, columns)
    answer_rows = parse_table(answer) or []
    joined_rows = {}
    for (i, j), scores in zip(joined.pairs, joined.scores, strict=True):
        joined_rows[j] = (answer_rows[i], scores)

    missing_row: tuple[Row, list[float]] = ({}, [0.0] * len(others))
    cells = []
    for j in joined.expected:
        answer_row, scores = joined_rows.get(j, missing_row)
        for column, score in zip(others, scores, strict=True):
            cells.append(Cell(gold_columns[column][j], answer_row.get(column, ""), score))
    return cells


def _precision_recall_f1(hits: float, num_predicted: int, num_gold: int) -> tuple[float, ...]:
    precision = hits / num_predicted if num_predicted else 0.0
    recall = hits / num_gold if num_gold else 0.0
    total = precision + recall
    f1 = 2 * precision * recall / total if total > 1e-9 else 0.0
    return precision, recall, f1


# --- reading the table ---

_FENCE = re.compile(r"```markdown(.*?)```", re.DOTALL)
# From the first pipe, for as long as lines begin with one.
_PIPES = re.compile(r"\|.*(?:\n\|.*)*")


def parse_table(answer: str) -> list[Row] | None:
    """Return the rows of the first Markdown table, in a ```markdown fence or bare.

    Column names are in lower case without blanks, cells stripped; a short row is filled with "". A
    row with more cells than the header, such as one with a stray pipe, makes the table unreadable,
    as it does for the official evaluator.

    Returns:
        The rows; None where there is no table, or an unreadable one.
    """
    text = _table_text(answer)
    if text is None:
        return None
    lines = []
    for line in text.strip().split("\n"):
        is_ruler = set(line.strip()) <= set("|- :")
        if "|" in line and not is_ruler:
            lines.append("|".join(map(str.strip, line.split("|"))))
    try:
        # Quotes mean what they mean in CSV, as they do there.
        table = list(csv.reader(lines, delimiter="|"))
    except csv.Error:
        return None
    if not table:
        return None

    header = _unique(list(map(_column_name, table[0])))
    rows = []
    for cells in table[1:]:
        if len(cells) > len(header):
            return None
        row = {}
        for i, name in enumerate(header):
            # The pipes at both ends of a line make columns without a name.
            if name:
                row[name] = cells[i] if i < len(cells) else ""
        rows.append(row)
    return rows


def _table_text(answer: str) -> str | None:
    # A fence counts before a bare table: an agent may sketch one before its answer.
    fenced = _FENCE.search(answer)
    if fenced:
        return fenced[1]
    bare = _PIPES.search(answer)
    # Fewer than four pipes are no table of two columns with a header and a row.
    return bare[0] if bare and answer.count("|") >= 4 else None


def _column_name(name: str) -> str:
    return name.replace(" ", "").strip().lower()


def _unique(names: Sequence[str]) -> list[str]:
    """Number the repeated names, so that the table has a column too many and scores 0."""
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        count = counts.get(name, 0)
        counts[name] = count + 1
        unique.append(f"{name}.{count}" if name and count else name)
    return unique


# --- joining it with the gold table ---


class _Joined(NamedTuple):
    scores: list[list[float]]
    """For each joined row the scores of its cells outside the key."""
    pairs: list[tuple[int, int]]
    """The same rows: index in the answer, index in the gold table."""
    num_predicted: int
    """Rows of the answer with different keys."""
    expected: list[int]
    """Indices of the gold rows with different keys."""
    num_keys: int
    """Columns of the key."""
    num_others: int
    """Columns outside the key."""


def _join(answer: str, gold: Gold, evaluation: Mapping[str, Any]) -> _Joined:
    columns, keys, rules = _read_evaluation(evaluation)
    others = [column for column in columns if column not in keys]
    truth = _gold_columns(gold, columns)
    rows = parse_table(answer) or []
    # Nothing is joined then, so that all scores are 0; the gold rows still count for recall.
    if not rows or set(rows[0]) != set(columns):
        return _Joined([], [], 0, _first_of_each(truth, keys), len(keys), len(others))

    table: Columns = {}
    for column in columns:
        cells = [row[column] for row in rows]
        table[column], truth[column] = _as_pandas_reads(cells, truth[column])
    # Before preprocessing, as there: repeated keys are those that are written alike.
    predicted = _first_of_each(table, keys)
    expected = _first_of_each(truth, keys)
    for column in columns:
        for name in rules[column].preprocess:
            prepare = PREPROCESS[name]
            table[column] = list(map(prepare, table[column]))
            truth[column] = list(map(prepare, truth[column]))

    # Key -> the gold rows that nothing has joined yet, the first one last.
    open_rows: dict[tuple[str, ...], list[int]] = {}
    truth_keys = _keys_of_rows(truth, keys)
    for j in reversed(expected):
        open_rows.setdefault(truth_keys[j], []).append(j)

    scores, pairs = [], []
    table_keys = _keys_of_rows(table, keys)
    for i in predicted:
        # Removed when joined: a second row with the same key finds the next gold row, or none.
        candidates = open_rows.get(table_keys[i])
        if not candidates:
            continue
        j = candidates.pop()
        row_scores = []
        for column in others:
            row_scores.append(rules[column].score(table[column][i], truth[column][j]))
        scores.append(row_scores)
        pairs.append((i, j))
    return _Joined(scores, pairs, len(predicted), expected, len(keys), len(others))


def _gold_columns(gold: Gold, columns: Sequence[str]) -> Columns:
    """The gold table by columns. Raises ValueError: a row lacks one."""
    table: Columns = {column: [] for column in columns}
    rows = [{_column_name(name): str(cell) for name, cell in row.items()} for row in gold]
    for column in columns:
        for row in rows:
            if column not in row:
                raise ValueError(
                    f"a gold row lacks the required column '{column}'; it has {sorted(rows[0])}"
                )
            table[column].append(row[column])
    return table


def _keys_of_rows(table: Mapping[str, Sequence[str]], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """For each row its cells in the key columns."""
    return list(zip(*(table[key] for key in keys), strict=True))


def _first_of_each(table: Mapping[str, Sequence[str]], keys: Sequence[str]) -> list[int]:
    """Indices of the rows whose key, as written, has not occurred before."""
    first: dict[tuple[str, ...], int] = {}
    for i, key in enumerate(_keys_of_rows(table, keys)):
        first.setdefault(key, i)
    return list(first.values())


# What pandas' read_csv takes for a missing cell; the official evaluator then compares the text
# "nan".
_MISSING = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)
_INTEGER = re.compile(r"[-+]?\d{1,18}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def _as_pandas_reads(table: Sequence[str], truth: Sequence[str]) -> tuple[list[str], list[str]]:
    """One column of both tables as pandas reads it.

    Missing cells are "nan". Where both tables are numeric, 007 is 7, and 7 is 7.0.
    """
    table = list(map(_nan_if_missing, table))
    truth = list(map(_nan_if_missing, truth))
    cells = [*table, *truth]
    if all(map(_INTEGER.fullmatch, cells)):
        return [str(int(cell)) for cell in table], [str(int(cell)) for cell in truth]
    if all(map(_is_float, cells)):
        return [str(float(cell)) for cell in table], [str(float(cell)) for cell in truth]
    return table, truth


def _nan_if_missing(cell: str) -> str:
    return "nan" if cell in _MISSING else cell


def _is_float(cell: str) -> bool:
    return cell == "nan" or _FLOAT.fullmatch(cell) is not None


# --- the evaluation of a task ---


def _read_evaluation(
    evaluation: Mapping[str, Any],
) -> tuple[list[str], list[str], dict[str, Rule]]:
    """Required columns, key columns and each column's rule.

    All of it is checked, whether a row needs it or not: a mistake shows before the first episode.
    """
    fields = ("required", "unique_columns", "eval_pipeline")
    missing = [name for name in fields if not evaluation.get(name)]
    if missing:
        raise ValueError(f"the evaluation lacks {', '.join(missing)}")
    columns = list(evaluation["required"])
    keys = list(evaluation["unique_columns"])
    unknown = [key for key in keys if key not in columns]
    if unknown:
        raise ValueError(f"the unique columns {unknown} are not among the required ones {columns}")
    pipeline = evaluation["eval_pipeline"]
    rules = {}
    for column in columns:
        rules[column] = read_rule(column, pipeline.get(column) or {}, is_key=column in keys)
    return columns, keys, rules
