"""WideSearch's rules for one cell: how texts are prepared and compared.

They have the names that a task's `evaluation` uses. Metrics that ask a model are not here: see
`parl_rewards.judge`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple

from parl_rewards.dates import parse_date

_NUMBER = re.compile(r"[-+]?(?:\d*\.\d+|\d+\.?)%?")
# A URL runs over the ASCII characters from $ to _ and a to z; its host ends at the first / or ?.
_HOST = re.compile(r"https?://([!$-.0->@-_a-z]+)[!$-_a-z]*")

MAX_DAYS_APART = 31


class Rule(NamedTuple):
    """How the cells of one column are scored.

    Example: Rule(("norm_str",), ("exact_match",), 0.0).score("kenya", "kenya") == 1.0
    """

    preprocess: tuple[str, ...]
    """Names from PREPROCESS, applied in order to the answer's cell and to the gold cell."""
    metrics: tuple[str, ...]
    """Names from METRICS, which must all hold. There they add up, and a cell may exceed 1."""
    criterion: float
    """The relative tolerance of `number_near`."""

    def score(self, response: str, target: str) -> float:
        """Score a prepared cell against the prepared gold cell: 0 or 1."""
        for name in self.metrics:
            if not METRICS[name](response, target, self.criterion):
                return 0.0
        return 1.0


def read_rule(column: str, item: Mapping[str, Any], is_key: bool) -> Rule:
    """Read one entry of a task's `eval_pipeline`.

    Raises:
        ValueError: a name is unknown, a metric needs a judge, or a number is missing.
    """
    preprocess = tuple(item.get("preprocess") or ())
    metrics = tuple(item.get("metric") or ())
    for name in preprocess:
        if name not in PREPROCESS:
            raise ValueError(
                f"column '{column}': no preprocess '{name}', only {', '.join(PREPROCESS)}"
            )
    for name in metrics:
        if name not in METRICS:
            raise ValueError(
                f"column '{column}': metric '{name}' cannot be computed from the text; "
                f"judge metrics need a judge environment. Known: {', '.join(METRICS)}"
            )
    if not metrics and not is_key:
        raise ValueError(f"column '{column}': eval_pipeline names no metric")
    criterion = item.get("criterion")
    if "number_near" not in metrics:
        # Of other metrics the criterion is prose for a judge.
        return Rule(preprocess, metrics, 0.0)
    try:
        return Rule(preprocess, metrics, float(criterion))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(
            f"column '{column}': number_near needs a numeric criterion, got {criterion!r}"
        ) from None


# --- preprocessing ---


def _norm_str(cell: str) -> str:
    return cell.lower().strip().replace(" ", "").replace("*", "")


def _extract_number(cell: str) -> str:
    """The first number, without thousands separators and with its percent sign."""
    match = _NUMBER.search(cell.replace(",", ""))
    return match[0] if match else "NULL"


def _norm_date(cell: str) -> str:
    # A text that is no date stays as it is, and can still match exactly.
    day = parse_date(cell)
    return cell if day is None else day.isoformat()


PREPROCESS: dict[str, Callable[[str], str]] = {
    "norm_str": _norm_str,
    "extract_number": _extract_number,
    "norm_date": _norm_date,
}

# --- metrics ---


def _exact_match(response: str, target: str, criterion: float) -> bool:
    # Whatever the preprocessing is, case does not count.
    return response.lower() == target.lower()


def _number_near(response: str, target: str, criterion: float) -> bool:
    """Within `criterion` of the target, relative to it. Texts that are no numbers must be equal."""
    number = _to_float(response)
    expected = _to_float(target)
    if number is None or expected is None:
        return number is expected and response == target
    return abs(number - expected) <= abs(expected) * criterion


def _to_float(text: str) -> float | None:
    # Percents are fractions, so that 12 % and .12 agree.
    divisor = 100.0 if "%" in text else 1.0
    try:
        number = float(text.replace("%", "")) / divisor
    except ValueError:
        return None
    # `float` reads "nan" and "inf", which no tolerance can compare.
    return number if isfinite(number) else None


def _date_near(response: str, target: str, criterion: float) -> bool:
    """At most MAX_DAYS_APART. Two texts that are no dates agree, as they do there."""
    day = parse_date(response)
    expected = parse_date(target)
    if day is None or expected is None:
        return day is expected
    return abs((day - expected).days) <= MAX_DAYS_APART


def _url_match(response: str, target: str, criterion: float) -> bool:
    """The same set of hosts, whatever the paths. Two texts without a URL agree."""
    # The answer may cite another page of the same site.
    return set(_HOST.findall(response)) == set(_HOST.findall(target))


def _in_match(response: str, target: str, criterion: float) -> bool:
    # The empty text is a substring of every text: "**", normalised, would match any gold cell.
    return response in target if response else not target


METRICS: dict[str, Callable[[str, str, float], bool]] = {
    "exact_match": _exact_match,
    "number_near": _number_near,
    "date_near": _date_near,
    "url_match": _url_match,
    "in_match": _in_match,
}
