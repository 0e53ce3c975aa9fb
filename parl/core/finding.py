"""One line of the report of `parl doctor`; plugins add lines of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    ok: bool | None
    """None for a line that is only good to know."""
    fix: str = ""
    """What to type where it is not ok."""
