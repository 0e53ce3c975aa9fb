"""Dates as people write them in tables."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_MONTHS = {"sept": 9}
for _number, _name in enumerate(_MONTH_NAMES, 1):
    _MONTHS[_name] = _number
    _MONTHS[_name[:3]] = _number

# Words of a date that say nothing about which day it is.
_FILLERS = {"st", "nd", "rd", "th", "of", "the", *_DAY_NAMES, *(day[:3] for day in _DAY_NAMES)}

_YEAR_FIRST = re.compile(
    r"(\d{4})(?:[-/.年](\d{1,2})(?:[-/.月](\d{1,2}))?)?[年月日]?(?:[T ]\d\d?:.*)?"
)
_YEAR_LAST = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})(?: \d\d?:.*)?")
_WORDS = re.compile(r"[a-z]+|\d+")

# The official evaluator takes a bare year for the month in which it runs. A reward must not change
# with the calendar, so the month is fixed: September, November and December reproduce every
# recorded official score; January, the natural choice, does not.
_MONTH_OF_A_YEAR = 11


@lru_cache(maxsize=65536)
def parse_date(text: str) -> date | None:
    """Read a date.

    Known forms: 2020-03-05, 2020-03, 2020, 2020年3月5日, 3/5/2020 (month first) and English. A
    missing day is the first one, a missing month November.

    Returns:
        The date, or None where the text is none.
    """
    # Written with blanks or without.
    text = re.sub(r"\s*([年月日])\s*", r"\1", text.strip())
    match = _YEAR_FIRST.fullmatch(text)
    if match:
        return _date(match[1], match[2] or _MONTH_OF_A_YEAR, match[3] or 1)
    match = _YEAR_LAST.fullmatch(text)
    if match:
        # Month first, as the official evaluator reads it; 13/5/2020 can only be the 13th of May.
        month_first = _date(match[3], match[1], match[2])
        return month_first or _date(match[3], match[2], match[1])
    return _english_date(text)


def _english_date(text: str) -> date | None:
    """A month's name, a year of four digits and at most one day, in any order; nothing else."""
    months, years, days = [], [], []
    for word in _WORDS.findall(text.lower()):
        if word in _FILLERS:
            continue
        if word in _MONTHS:
            months.append(word)
        elif word.isdigit() and len(word) == 4:
            years.append(word)
        elif word.isdigit() and len(word) <= 2:
            days.append(word)
        else:
            return None
    if len(months) != 1 or len(years) != 1 or len(days) > 1:
        return None
    return _date(years[0], _MONTHS[months[0]], days[0] if days else 1)


def _date(year: str, month: str | int, day: str | int) -> date | None:
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None
