"""Answers by cell: `1a Kenya 1b Nairobi 1c KES` <-> a markdown table. Nothing is added that was not written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ADDRESS = re.compile(r"\d+[a-j]")


def parse_cells(text: str) -> dict[str, str]:
    """Cells by address; what stands before the first address is ignored, a repeated address keeps the last text."""
    cells: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in text.split():
        if ADDRESS.fullmatch(word):
            current = cells[word] = []
        elif current is not None:
            current.append(word)
    return {address: " ".join(words) for address, words in cells.items()}


def cells_to_markdown(cells: Mapping[str, str], columns: Sequence[str]) -> str:
    """A markdown table of the rows that have a cell; a missing cell is empty. No cells: no table.

    Example: cells_to_markdown({"1a": "Kenya", "1b": "Nairobi"}, ["country", "capital"])
             == "| country | capital |\\n| --- | --- |\\n| Kenya | Nairobi |"
    """
    rows = sorted({int(a[:-1]) for a in cells})
    if not rows:
        return ""
    letters = "abcdefghij"[: len(columns)]
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cells.get(f"{row}{c}", "").replace("|", "/") for c in letters) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
