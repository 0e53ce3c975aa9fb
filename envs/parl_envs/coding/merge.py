"""Three-way merge of text, by lines.

In: the text both sides started from, and what each made of it. Out: both sides' changes, or None where they overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher


def merge(base: str | None, ours: str | None, theirs: str | None) -> tuple[str | None, bool]:
    """(merged, whether it went without a conflict); None stands for a file that is not there.

    On a conflict the merged text is ours.
    """
    if theirs in (base, ours):
        return ours, True
    if ours == base:
        return theirs, True
    if base is None or ours is None or theirs is None:
        return ours, False
    lines = _merge_lines(*(text.splitlines(keepends=True) for text in (base, ours, theirs)))
    return (ours, False) if lines is None else ("".join(lines), True)


def _merge_lines(
    base: Sequence[str], ours: Sequence[str], theirs: Sequence[str]
) -> list[str] | None:
    """The changes of both sides in the order of the base's lines; None when two of them touch."""
    changes = sorted({*_changes(base, ours), *_changes(base, theirs)})
    merged: list[str] = []
    at = 0
    last_end = -1
    for start, end, new in changes:
        if start <= last_end:
            return None
        merged += [*base[at:start], *new]
        at = last_end = end
    return [*merged, *base[at:]]


def _changes(base: Sequence[str], side: Sequence[str]) -> list[tuple[int, int, tuple[str, ...]]]:
    """(first line, line after the last, what stands there now) for each change of the base."""
    codes = SequenceMatcher(a=base, b=side, autojunk=False).get_opcodes()
    return [(i, j, tuple(side[k:m])) for tag, i, j, k, m in codes if tag != "equal"]
