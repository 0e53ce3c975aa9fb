"""Answers in cells, and as Markdown tables.

In cells, a row begins with its number. The key column's cell follows, then the name and the cell of
each other column, in any order: `#1 Kenya capital Nairobi currency KES #2 ...`. Cells are placed,
never added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# `#1`, not `1`: values may be numbers.
ROW = re.compile(r"#(\d+)")


def parse_rows(text: str, columns: Sequence[str]) -> dict[int, dict[str, str]]:
    """Read the rows of an answer in cells.

    Text before the first row is ignored. A repeated row or cell keeps the last text. A value that
    holds a column's name cannot be written in this form.

    Args:
        text: the answer.
        columns: names of the columns; the first is the key.
    Returns:
        Row number -> column -> cell.

    Example:
        parse_rows("#2 Kenya capital Nairobi", ["country", "capital"])
        == {2: {"country": "Kenya", "capital": "Nairobi"}}
    """
    # A column's name may have several words, so the longest name that fits is tried first.
    column_by_words = {tuple(column.split()): column for column in columns[1:]}
    longest = max(map(len, column_by_words), default=0)
    rows: dict[int, dict[str, list[str]]] = {}
    row: dict[str, list[str]] = {}
    cell: list[str] | None = None

    words = text.split()
    position = 0
    while position < len(words):
        row_number = ROW.fullmatch(words[position])
        width = 0
        for candidate in range(longest, 0, -1):
            if tuple(words[position : position + candidate]) in column_by_words:
                width = candidate
                break
        # A row that is repeated starts again: a policy may correct itself.
        if row_number:
            cell = []
            row = {columns[0]: cell}
            rows[int(row_number[1])] = row
        elif width and cell is not None:
            column = column_by_words[tuple(words[position : position + width])]
            cell = []
            row[column] = cell
        elif cell is not None:
            cell.append(words[position])
        position += max(width, 1)

    parsed = {}
    for number, cells in rows.items():
        parsed[number] = {column: " ".join(cell_words) for column, cell_words in cells.items()}
    return parsed


def rows_to_markdown(rows: Mapping[int, Mapping[str, str]], columns: Sequence[str]) -> str:
    """Write rows as a Markdown table, by number. A missing cell is empty; so is a table of no rows.

    Example:
        rows_to_markdown({1: {"country": "Kenya", "capital": "Nairobi"}}, ["country", "capital"])
        == "| country | capital |\\n| --- | --- |\\n| Kenya | Nairobi |"
    """
    if not rows:
        return ""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for number in sorted(rows):
        # A bar in a cell would begin a new one.
        cells = [rows[number].get(column, "").replace("|", "/") for column in columns]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)
