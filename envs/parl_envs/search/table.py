"""Answers by row: `#1 Kenya capital Nairobi currency KES #2 ...` <-> a markdown table. Nothing is added.

A row begins with its number; the key column's cell follows, then each other column's name and cell, in any order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ROW = re.compile(r"#(\d+)")


def parse_rows(text: str, columns: Sequence[str]) -> dict[int, dict[str, str]]:
    """Rows by number, cells by column. The first of `columns` is the key.

    What stands before the first row is ignored; a repeated row or cell keeps the last text. A value that holds a
    column's name cannot be written in this form.

    Example: parse_rows("#2 Kenya capital Nairobi", ["country", "capital"])
             == {2: {"country": "Kenya", "capital": "Nairobi"}}
    """
    names = {tuple(c.split()): c for c in columns[1:]}
    longest = max((len(n) for n in names), default=0)
    rows: dict[int, dict[str, list[str]]] = {}
    cell: list[str] | None = None
    row: dict[str, list[str]] = {}
    words = text.split()
    at = 0
    while at < len(words):
        start = ROW.fullmatch(words[at])
        width = next((w for w in range(longest, 0, -1) if tuple(words[at : at + w]) in names), 0)
        if start:
            row = rows[int(start[1])] = {}
            cell = row[columns[0]] = []
        elif width and cell is not None:
            cell = row[names[tuple(words[at : at + width])]] = []
        elif cell is not None:
            cell.append(words[at])
        at += max(width, 1)
    return {number: {c: " ".join(w) for c, w in cells.items()} for number, cells in rows.items()}


def rows_to_markdown(rows: Mapping[int, Mapping[str, str]], columns: Sequence[str]) -> str:
    """A markdown table, rows by number; a missing cell is empty. No rows: no table.

    Example: rows_to_markdown({1: {"country": "Kenya", "capital": "Nairobi"}}, ["country", "capital"])
             == "| country | capital |\\n| --- | --- |\\n| Kenya | Nairobi |"
    """
    if not rows:
        return ""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [
        " | ".join(rows[n].get(c, "").replace("|", "/") for c in columns) for n in sorted(rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)
