"""Normal forms of text."""

from __future__ import annotations


def normalize_text(text: str) -> str:
    """Two texts say the same if these are equal: case and blanks aside."""
    return " ".join(text.casefold().split())
