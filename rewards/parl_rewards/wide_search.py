"""WideSearch's scoring of a table, without its judge model: cells, rows, and the table as a whole.

In: an answer with a markdown table, the gold rows, and the task's `evaluation` (WideSearch's own JSON).
Out: precision, recall and F1 by row and by item and the success of the whole table, each 0..1.

Source: WideSearch (2508.07999) and the evaluator of ByteDance-Seed/WideSearch. Here as there:

    - the columns must be exactly the required ones (any order), else all is 0; repeated keys count once;
    - rows are joined on the key columns; a key cell of a joined row scores 1, another cell by its own metric;
    - item precision = TP / (predicted rows x columns), recall over the gold rows; a row is its worst cell.

Different on purpose, because a reward is optimised against:

    - no model aligns column names or keys, and metrics that need one raise `ValueError`;
    - a gold row is joined once. There, "Chad", "CHAD" and "*Chad*" all join it, and recall exceeds 1;
    - a cell that normalises to nothing ("**") is no substring of a gold cell. There, it matches every one;
    - several metrics on a column must all hold. There, they add up, again to more than 1;
    - dates are read by `parse_date`, whose result never depends on today's date.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

__all__ = ["Cell", "item_f1_nonkey", "parse_date", "parse_table", "read_cells", "wide_search"]

Row = dict[str, str]
Gold = Sequence[Mapping[str, str]]


class Cell(NamedTuple):
    """One cell of the gold table outside the key, and what an answer says there."""

    gold: str
    said: str
    """As written; "" where the cell is empty or its row is missing."""
    score: float
    """0 or 1, by the column's metrics."""


def wide_search(answer: str, gold: Gold, evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Success, and precision, recall and F1 by row and by item (WideSearch, section 4).

    Args:
        answer: text with a markdown table; the first one counts.
        gold: the true rows; column names are compared in lower case without blanks.
        evaluation: `required` columns, `unique_columns` (the key) and `eval_pipeline`: column -> `preprocess`
            and `metric`, and for `number_near` the `criterion`, a relative tolerance.
    Raises:
        ValueError: the evaluation is incomplete, or names a metric that only a judge can apply.
    """
    joined = _join(answer, gold, evaluation)
    columns = joined.keys + joined.others
    gold_rows = len(joined.expected)
    by_row = _prf(
        sum(min(cells, default=1.0) for cells in joined.rows), joined.predicted, gold_rows
    )
    items = sum(joined.keys + sum(cells) for cells in joined.rows)
    by_item = _prf(items, joined.predicted * columns, gold_rows * columns)
    result = {"score": float(all(value == 1.0 for value in (*by_row, *by_item)))}
    for unit, values in (("row", by_row), ("item", by_item)):
        for name, value in zip(("precision", "recall", "f1"), values, strict=True):
            result[f"{name}_by_{unit}"] = value
    return result


def item_f1_nonkey(answer: str, gold: Gold, evaluation: Mapping[str, Any]) -> float:
    """Item F1 of the cells outside the key; 0 if every column is a key.

    Key cells of joined rows always count in the official item F1: with the keys in the prompt and two other
    columns, an answer with every value wrong still scores 1/3. Here it scores 0.
    """
    joined = _join(answer, gold, evaluation)
    hits = sum(sum(cells) for cells in joined.rows)
    return _prf(hits, joined.predicted * joined.others, len(joined.expected) * joined.others)[2]


def read_cells(answer: str, gold: Gold, evaluation: Mapping[str, Any]) -> list[Cell]:
    """Every cell of the gold table outside the key, row by row. Rows of the answer that join none are not in it."""
    joined = _join(answer, gold, evaluation)
    columns, keys, _ = _read_evaluation(evaluation)
    others = [column for column in columns if column not in keys]
    truth, table = _gold_columns(gold, columns), parse_table(answer) or []
    found = {
        j: (table[i], scores) for (i, j), scores in zip(joined.pairs, joined.rows, strict=True)
    }
    cells = []
    for j in joined.expected:
        row, scores = found.get(j, ({}, [0.0] * len(others)))
        cells += [
            Cell(truth[c][j], row.get(c, ""), score)
            for c, score in zip(others, scores, strict=True)
        ]
    return cells


def _prf(hits: float, predicted: int, gold: int) -> tuple[float, float, float]:
    precision = hits / predicted if predicted else 0.0
    recall = hits / gold if gold else 0.0
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both > 1e-9 else 0.0


# ---- reading the table

_FENCE = re.compile(r"```markdown(.*?)```", re.DOTALL)
_PIPES = re.compile(r"\|.*(?:\n\|.*)*")  # from the first pipe, as long as lines begin with one


def parse_table(answer: str) -> list[Row] | None:
    """Rows of the first markdown table, in a ```markdown fence or bare; None where there is none to read.

    Column names come in lower case without blanks, cells stripped; a short row is filled with "". A row with
    more cells than the header, such as one with a stray pipe, makes the table unreadable, as it does for the
    official evaluator.
    """
    text = _table_text(answer)
    if text is None:
        return None
    lines = [
        "|".join(cell.strip() for cell in line.split("|"))
        for line in text.strip().split("\n")
        if "|" in line and not set(line.strip()) <= set("|- :")
    ]
    try:
        table = list(
            csv.reader(lines, delimiter="|")
        )  # quotes mean what they mean in CSV, as they do there
    except csv.Error:
        return None
    if not table or any(len(row) > len(table[0]) for row in table):
        return None
    header = _unique(_column_name(name) for name in table[0])
    named = [(i, name) for i, name in enumerate(header) if name]
    return [{name: row[i] if i < len(row) else "" for i, name in named} for row in table[1:]]


def _table_text(answer: str) -> str | None:
    fenced = _FENCE.search(answer)
    if fenced:
        return fenced[1]
    bare = _PIPES.search(answer)
    # Fewer than four pipes are no table of two columns with a header and a row.
    return bare[0] if bare and answer.count("|") >= 4 else None


def _column_name(name: str) -> str:
    return name.replace(" ", "").strip().lower()


def _unique(names: Iterable[str]) -> list[str]:
    """A repeated name gets a number, so that the table has a column too many and scores 0."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}.{count}" if name and count else name)
    return unique


# ---- joining it with the gold table


class _Joined(NamedTuple):
    rows: list[list[float]]  # per joined row, the scores of its cells outside the key
    pairs: list[tuple[int, int]]  # the same rows: index in the answer, index in the gold table
    predicted: int  # rows
    expected: list[int]  # gold rows, by index
    keys: int  # columns
    others: int


def _join(answer: str, gold: Gold, evaluation: Mapping[str, Any]) -> _Joined:
    columns, keys, pipeline = _read_evaluation(evaluation)
    others = [column for column in columns if column not in keys]
    truth = _gold_columns(gold, columns)
    rows = parse_table(answer) or []
    if not rows or set(rows[0]) != set(columns):
        return _Joined([], [], 0, _first_of_each(truth, keys), len(keys), len(others))
    table = {column: [row[column] for row in rows] for column in columns}
    for column in columns:
        table[column], truth[column] = _as_pandas_reads(table[column], truth[column])
    predicted, expected = _first_of_each(table, keys), _first_of_each(truth, keys)
    for column in columns:
        for name in pipeline[column].preprocess:
            table[column] = [_PREPROCESS[name](cell) for cell in table[column]]
            truth[column] = [_PREPROCESS[name](cell) for cell in truth[column]]

    open_rows: dict[tuple[str, ...], list[int]] = {}
    for j in reversed(expected):
        open_rows.setdefault(tuple(truth[key][j] for key in keys), []).append(j)
    scores, pairs = [], []
    for i in predicted:
        candidates = open_rows.get(tuple(table[key][i] for key in keys))
        if candidates:
            j = candidates.pop()
            scores.append([pipeline[c].score(table[c][i], truth[c][j]) for c in others])
            pairs.append((i, j))
    return _Joined(scores, pairs, len(predicted), expected, len(keys), len(others))


def _gold_columns(gold: Gold, columns: Sequence[str]) -> dict[str, list[str]]:
    rows = [{_column_name(name): str(cell) for name, cell in row.items()} for row in gold]
    for column in columns:
        if any(column not in row for row in rows):
            raise ValueError(
                f"a gold row lacks the required column '{column}'; it has {sorted(rows[0])}"
            )
    return {column: [row[column] for row in rows] for column in columns}


def _first_of_each(table: Mapping[str, Sequence[str]], keys: Sequence[str]) -> list[int]:
    """Indices of the rows whose key, as written, has not occurred before."""
    first: dict[tuple[str, ...], int] = {}
    for i, key in enumerate(zip(*(table[key] for key in keys), strict=True)):
        first.setdefault(key, i)
    return list(first.values())


# What pandas' read_csv takes for a missing cell; the official evaluator then compares the text "nan".
_MISSING = frozenset(
    (
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
    )
) | frozenset(("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"))
_INTEGER = re.compile(r"[-+]?\d{1,18}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def _as_pandas_reads(table: Sequence[str], truth: Sequence[str]) -> tuple[list[str], list[str]]:
    """One column of both tables: missing cells are "nan"; where both are numeric, 007 is 7, and 7 is 7.0."""
    table, truth = (
        ["nan" if cell in _MISSING else cell for cell in side] for side in (table, truth)
    )
    cells = [*table, *truth]
    if all(_INTEGER.fullmatch(cell) for cell in cells):
        return [str(int(cell)) for cell in table], [str(int(cell)) for cell in truth]
    if all(cell == "nan" or _FLOAT.fullmatch(cell) for cell in cells):
        return [str(float(cell)) for cell in table], [str(float(cell)) for cell in truth]
    return table, truth


# ---- the evaluation of a task


class _Rule(NamedTuple):
    preprocess: tuple[str, ...]
    metrics: tuple[str, ...]
    criterion: float

    def score(self, response: str, target: str) -> float:
        return float(all(_METRICS[name](response, target, self.criterion) for name in self.metrics))


def _read_evaluation(
    evaluation: Mapping[str, Any],
) -> tuple[list[str], list[str], dict[str, _Rule]]:
    """Required columns, key columns and each column's rule. Checked whole, whether a row needs it or not."""
    missing = [
        name for name in ("required", "unique_columns", "eval_pipeline") if not evaluation.get(name)
    ]
    if missing:
        raise ValueError(f"the evaluation lacks {', '.join(missing)}")
    columns, keys = list(evaluation["required"]), list(evaluation["unique_columns"])
    unknown = [key for key in keys if key not in columns]
    if unknown:
        raise ValueError(f"the unique columns {unknown} are not among the required ones {columns}")
    pipeline = evaluation["eval_pipeline"]
    return columns, keys, {c: _read_rule(c, pipeline.get(c) or {}, c in keys) for c in columns}


def _read_rule(column: str, item: Mapping[str, Any], is_key: bool) -> _Rule:
    preprocess, metrics = tuple(item.get("preprocess") or ()), tuple(item.get("metric") or ())
    for name in preprocess:
        if name not in _PREPROCESS:
            raise ValueError(
                f"column '{column}': no preprocess '{name}', only {', '.join(_PREPROCESS)}"
            )
    for name in metrics:
        if name not in _METRICS:
            raise ValueError(
                f"column '{column}': metric '{name}' cannot be computed from the text; judge metrics need a "
                f"judge environment. Known: {', '.join(_METRICS)}"
            )
    if not metrics and not is_key:
        raise ValueError(f"column '{column}': eval_pipeline names no metric")
    criterion = item.get("criterion")
    if "number_near" not in metrics:
        return _Rule(preprocess, metrics, 0.0)  # elsewhere the criterion is prose for a judge
    try:
        return _Rule(preprocess, metrics, float(criterion))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        message = f"column '{column}': number_near needs a numeric criterion, got {criterion!r}"
        raise ValueError(message) from None


# ---- preprocessing and metrics, by the names they have in the evaluation

_NUMBER = re.compile(r"[-+]?(?:\d*\.\d+|\d+\.?)%?")
# A URL runs over the ASCII characters from $ to _ and a to z; its host ends at the first / or ?.
_HOST = re.compile(r"https?://([!$-.0->@-_a-z]+)[!$-_a-z]*")


def _extract_number(cell: str) -> str:
    """The first number, its thousands separators removed and a percent sign kept."""
    found = _NUMBER.search(cell.replace(",", ""))
    return found[0] if found else "NULL"


def _norm_str(cell: str) -> str:
    return cell.lower().strip().replace(" ", "").replace("*", "")


def _norm_date(cell: str) -> str:
    day = parse_date(cell)
    return cell if day is None else day.isoformat()


def _exact_match(response: str, target: str, criterion: float) -> bool:
    return response.lower() == target.lower()


def _in_match(response: str, target: str, criterion: float) -> bool:
    return response in target if response else not target


def _number_near(response: str, target: str, criterion: float) -> bool:
    """Within `criterion` of the target, relative to it; what is no number must be equal text."""
    number, expected = _to_float(response), _to_float(target)
    if number is None or expected is None:
        return number is expected and response == target
    return abs(number - expected) <= abs(expected) * criterion


def _to_float(text: str) -> float | None:
    try:
        number = float(text.replace("%", "")) / (100.0 if "%" in text else 1.0)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _date_near(response: str, target: str, criterion: float) -> bool:
    """At most 31 days apart; two texts that are no dates agree, as there."""
    day, expected = parse_date(response), parse_date(target)
    if day is None or expected is None:
        return day is expected
    return abs((day - expected).days) <= 31


def _url_match(response: str, target: str, criterion: float) -> bool:
    """The same set of hosts, whatever the paths; two texts without any agree."""
    return set(_HOST.findall(response)) == set(_HOST.findall(target))


_PREPROCESS: dict[str, Callable[[str], str]] = {
    "norm_str": _norm_str,
    "extract_number": _extract_number,
    "norm_date": _norm_date,
}
_METRICS: dict[str, Callable[[str, str, float], bool]] = {
    "exact_match": _exact_match,
    "number_near": _number_near,
    "date_near": _date_near,
    "url_match": _url_match,
    "in_match": _in_match,
}

_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = {n: i for i, name in enumerate(_MONTH_NAMES, 1) for n in (name, name[:3])} | {"sept": 9}
_FILLERS = {"st", "nd", "rd", "th", "of", "the"} | {
    n for name in _DAY_NAMES for n in (name, name[:3])
}
_YMD = re.compile(r"(\d{4})(?:[-/.年](\d{1,2})(?:[-/.月](\d{1,2}))?)?[年月日]?(?:[T ]\d\d?:.*)?")
_MDY = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})(?: \d\d?:.*)?")
_WORDS = re.compile(r"[a-z]+|\d+")

# There, a bare year means the month in which the evaluator runs. A reward must not change with the calendar,
# so the month is fixed: September, November and December reproduce every recorded official score; January,
# which one would rather choose, does not.
_MONTH_OF_A_YEAR = 11


@lru_cache(maxsize=65536)
def parse_date(text: str) -> date | None:
    """A date from 2020-03-05, 2020-03, 2020, 2020年3月5日, 3/5/2020 (month first) or English; else None.

    A missing day is the first one, a missing month November.
    """
    text = re.sub(r"\s*([年月日])\s*", r"\1", text.strip())
    if found := _YMD.fullmatch(text):
        return _date(found[1], found[2] or _MONTH_OF_A_YEAR, found[3] or 1)
    if found := _MDY.fullmatch(text):
        return _date(found[3], found[1], found[2]) or _date(found[3], found[2], found[1])
    words = [word for word in _WORDS.findall(text.lower()) if word not in _FILLERS]
    months = [word for word in words if word in _MONTHS]
    years = [word for word in words if word.isdigit() and len(word) == 4]
    days = [word for word in words if word.isdigit() and len(word) <= 2]
    if (len(months), len(years)) != (1, 1) or len(days) > 1 or len(words) != 2 + len(days):
        return None
    return _date(years[0], _MONTHS[months[0]], days[0] if days else 1)


def _date(year: str, month: str | int, day: str | int) -> date | None:
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None
