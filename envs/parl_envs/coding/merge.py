"""Three-way merge of text, by lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple


class _Change(NamedTuple):
    """Lines `start` to `end` (exclusive) of the base, replaced by `lines`."""

    start: int
    end: int
    lines: tuple[str, ...]


def merge(base: str | None, current: str | None, incoming: str | None) -> tuple[str | None, bool]:
    """Bring the changes of both sides together. None stands for a file that does not exist.

    Args:
        base: the text from which both sides started.
        current: what this side made of it.
        incoming: what the other side made of it.
    Returns:
        The merged text, and whether there was no conflict. On a conflict the text is `current`.
    """
    if incoming in (base, current):
        return current, True
    if current == base:
        return incoming, True
    if base is None or current is None or incoming is None:
        return current, False
    lines = _merge_lines(
        base.splitlines(keepends=True),
        current.splitlines(keepends=True),
        incoming.splitlines(keepends=True),
    )
    if lines is None:
        return current, False
    return "".join(lines), True


def _merge_lines(
    base: Sequence[str], current: Sequence[str], incoming: Sequence[str]
) -> list[str] | None:
    """The changes of both sides in the order of the base's lines; None when two of them touch."""
    # A set, because a change that both sides made counts once.
    changes = sorted({*_changes(base, current), *_changes(base, incoming)})
    merged: list[str] = []
    position = 0
    last_end = -1
    for change in changes:
        # Changes of adjoining lines conflict, too: nothing tells which of them comes first.
        if change.start <= last_end:
            return None
        merged += [*base[position : change.start], *change.lines]
        position = last_end = change.end
    return [*merged, *base[position:]]


def _changes(base: Sequence[str], side: Sequence[str]) -> Iterator[_Change]:
    # Without autojunk: it ignores lines that occur often, such as blank ones, in long files.
    matcher = SequenceMatcher(a=base, b=side, autojunk=False)
    for tag, start, end, side_start, side_end in matcher.get_opcodes():
        if tag != "equal":
            yield _Change(start, end, tuple(side[side_start:side_end]))
