"""What `parl eval` prints: the numbers, their intervals, and the comparison with a single agent."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

DECIMALS = {"critical_steps": 2, "total_steps": 2, "virtual_latency_s": 2, "tokens": 1}
"""Of what has an interval; the rest are shares, with three."""


def print_evaluation(result: Mapping[str, Any]) -> None:
    """The numbers of an evaluation, a column for each decoding; the intervals; the comparison with a single agent."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False)
    decodings = [d for d in ("greedy", "sampled") if d in result]
    where = result.get("run") or result.get("config") or f"{len(result['runs'])} runs, mean"
    means = [
        [key, *(f"{result[d][key]:.4g}" if key in result[d] else "" for d in decodings)]
        for key in dict.fromkeys(key for d in decodings for key in result[d])
    ]
    title = f"{where} {result.get('checkpoint', '')}: {result['split']}, {result['mode']}"
    console.print(_table(title, ["metric", *decodings], means))
    console.print(
        _table(
            "Means with 95 % intervals", ["statistic", *decodings], _statistics(result, decodings)
        )
    )
    for decoding in decodings if "against" in result else ():
        rows = _comparison(result["against"].get(decoding, {}))
        header = ["metric", "swarm", "single agent", "difference (95 %)", "times less (95 %)"]
        console.print(
            _table(f"Against {', '.join(result['against']['runs'])}, {decoding}", header, rows)
        )
    console.print(_over(result))


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for k, name in enumerate(header):
        table.add_column(name, justify="right" if k else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _statistics(result: Mapping[str, Any], decodings: Sequence[str]) -> list[list[str]]:
    """Example of a row: ["item_f1 Max@4", "0.981 (0.967..0.992)", ...]."""
    found, trials = result["statistics"], result["trials"]
    names = {name: kinds for d in decodings for name, kinds in found[d].items()}
    return [
        [
            f"{name} {kind.title()}@{trials}" if trials > 1 else name,
            *(interval(found[d].get(name, {}).get(kind), DECIMALS.get(name, 3)) for d in decodings),
        ]
        for name, kinds in names.items()
        for kind in kinds
    ]


def _comparison(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for name, values in found.items():
        digits = DECIMALS.get(name, 3)
        means = [f"{values[who]:.{digits}f}" for who in ("own", "other")]
        rows.append(
            [
                name,
                *means,
                interval(values["difference"], digits, "+"),
                interval(values.get("ratio"), 2),
            ]
        )
    return rows


def interval(found: Mapping[str, float | None] | None, digits: int, sign: str = "") -> str:
    """Example: `0.981 (0.967..0.992)`; without an interval the mean alone, without a mean nothing."""
    if found is None or found["mean"] is None:
        return ""
    if found["low"] is None:
        return f"{found['mean']:{sign}.{digits}f}"
    return f"{found['mean']:{sign}.{digits}f} ({found['low']:{sign}.{digits}f}..{found['high']:{sign}.{digits}f})"


def _over(result: Mapping[str, Any]) -> str:
    """What the intervals speak of."""
    seeds = len(result.get("runs", [0]))
    if seeds == 1:
        return "Intervals are over tasks: other tasks, the same weights. They say nothing of another training."
    few = (
        f" {seeds} seeds are few: where they differ much, the intervals are too narrow."
        if seeds < 10
        else ""
    )
    return f"Intervals are over {seeds} seeds and the tasks.{few}"
