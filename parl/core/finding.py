"""One line of what `parl doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `ok` is None for something that is only good to know."""

    name: str
    value: str
    ok: bool | None
    fix: str = ""
