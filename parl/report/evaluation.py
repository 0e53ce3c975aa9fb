"""The tables of `parl eval`: means, their intervals, and the comparison with a single agent."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

DECIMALS = {"critical_steps": 2, "total_steps": 2, "virtual_latency_s": 2, "tokens": 1}
"""Decimals of costs. The other metrics with an interval are shares, with three."""
SHARE_DECIMALS = 3
FEW_SEEDS = 10
"""With fewer, intervals over seeds may be too narrow (docs/how-to/evaluate.md: 85 % for 5 seeds)."""


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Print an evaluation.

    Args:
        result: what `parl eval --json` prints.
    """
    from rich.console import Console

    # In a file or a pipe there is no width to ask for; rich would cut the tables at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False)
    decodings = [decoding for decoding in ("greedy", "sampled") if decoding in result]

    origin = result.get("run") or result.get("config") or f"{len(result['runs'])} runs, mean"
    title = f"{origin} {result.get('checkpoint', '')}: {result['split']}, {result['mode']}"
    console.print(_table(title, ["metric", *decodings], _mean_rows(result, decodings)))
    console.print(
        _table(
            "Means with 95 % intervals",
            ["statistic", *decodings],
            _statistics_rows(result, decodings),
        )
    )
    if "against" in result:
        comparison = result["against"]
        for decoding in decodings:
            console.print(
                _table(
                    f"Against {', '.join(comparison['runs'])}, {decoding}",
                    [
                        "metric",
                        "swarm",
                        "single agent",
                        "difference (95 %)",
                        "single agent / swarm (95 %)",
                    ],
                    _comparison_rows(comparison.get(decoding, {})),
                )
            )
    console.print(_scope(result))


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _mean_rows(result: Mapping[str, Any], decodings: Sequence[str]) -> list[list[str]]:
    """Return a row per metric, a cell per decoding; empty where a decoding did not measure it."""
    metrics: dict[str, None] = {}
    for decoding in decodings:
        metrics.update(dict.fromkeys(result[decoding]))
    rows: list[list[str]] = []
    for metric in metrics:
        cells = [metric]
        for decoding in decodings:
            value = result[decoding].get(metric)
            cells.append("" if value is None else f"{value:.4g}")
        rows.append(cells)
    return rows


def _statistics_rows(result: Mapping[str, Any], decodings: Sequence[str]) -> list[list[str]]:
    """Return a row per statistic. Example: ["item_f1 Max@4", "0.981 (0.967..0.992)", ...]."""
    statistics, trials = result["statistics"], result["trials"]
    kinds_by_metric: dict[str, Any] = {}
    for decoding in decodings:
        kinds_by_metric.update(statistics[decoding])

    rows: list[list[str]] = []
    for metric, kinds in kinds_by_metric.items():
        digits = DECIMALS.get(metric, SHARE_DECIMALS)
        for kind in kinds:
            cells = [f"{metric} {kind.title()}@{trials}" if trials > 1 else metric]
            for decoding in decodings:
                estimate = statistics[decoding].get(metric, {}).get(kind)
                cells.append(interval(estimate, digits))
            rows.append(cells)
    return rows


def _comparison_rows(comparison: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a row per metric of a comparison, see `parl.evaluation.statistics.compare`."""
    rows: list[list[str]] = []
    for metric, values in comparison.items():
        digits = DECIMALS.get(metric, SHARE_DECIMALS)
        cells = [
            metric,
            f"{values['own']:.{digits}f}",
            f"{values['other']:.{digits}f}",
            interval(values["difference"], digits, sign="+"),
            interval(values.get("ratio"), 2),
        ]
        rows.append(cells)
    return rows


def interval(estimate: Mapping[str, float | None] | None, digits: int, sign: str = "") -> str:
    """Format an estimate.

    Args:
        estimate: `mean`, `low` and `high`; None gives an empty text.
        digits: decimals.
        sign: "+" shows the sign of positive numbers as well.
    Returns:
        Example: `0.981 (0.967..0.992)`; without bounds the mean alone, without a mean nothing.
    """
    if estimate is None or estimate["mean"] is None:
        return ""
    mean = f"{estimate['mean']:{sign}.{digits}f}"
    if estimate["low"] is None:
        return mean
    return f"{mean} ({estimate['low']:{sign}.{digits}f}..{estimate['high']:{sign}.{digits}f})"


def _scope(result: Mapping[str, Any]) -> str:
    """Say what the intervals are over."""
    num_seeds = len(result.get("runs", [0]))
    if num_seeds == 1:
        return (
            "Intervals are over tasks: other tasks, the same weights. "
            "They say nothing of another training."
        )
    scope = f"Intervals are over {num_seeds} seeds and the tasks."
    if num_seeds < FEW_SEEDS:
        scope += (
            f" {num_seeds} seeds are few: where they differ much, the intervals are too narrow."
        )
    return scope
