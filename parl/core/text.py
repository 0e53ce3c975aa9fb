"""Normal forms of text."""

from __future__ import annotations


def normal(text: str) -> str:
    """Two texts say the same if these are equal: case and blanks aside."""
    return " ".join(text.casefold().split())
