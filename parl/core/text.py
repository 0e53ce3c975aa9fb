"""Normal forms of text."""

from __future__ import annotations


def normalize_text(text: str) -> str:
    """Return a text without differences in case and blanks; equal results mean equal texts."""
    return " ".join(text.casefold().split())
