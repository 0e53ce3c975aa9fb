"""The closing table of a run: before and after, on held-out tasks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parl.runs.alarms import Alarm

COLUMNS = (
    ("score", "score", "{:.3f}"),
    ("item_f1_nonkey", "without keys", "{:.3f}"),
    ("success", "success", "{:.2f}"),
    ("critical_steps", "critical steps", "{:.1f}"),
    ("total_steps", "total steps", "{:.1f}"),
    ("virtual_latency_s", "latency (virtual s)", "{:.1f}"),
    ("tokens_per_episode", "tokens", "{:.0f}"),
    ("spawn_rate", "spawn rate", "{:.2f}"),
    ("num_truncated", "truncated", "{:.0f}"),
)
"""Metric, its title, and how a value is written."""
# In summary.json a single agent's own baseline has the key `control`.
ROWS = (
    ("cold_start", "swarm", "cold start"),
    ("cold_start", "forced_parallel", "cold start, forced to delegate"),
    ("cold_start", "single", "cold start, single agent"),
    ("cold_start", "control", "cold start, baseline"),
    ("trained", "swarm", "trained swarm"),
    ("trained", "single", "trained single agent"),
    ("trained", "control", "trained baseline"),
)
"""Phase and mode of a result, and the name of its row."""


def print_summary(
    summary: Mapping[str, Any], run: Path, report: Path | None, alarms: Sequence[Alarm]
) -> None:
    """Print the table, the comparison in words, the last alarms, and where the files are.

    Args:
        summary: the content of summary.json.
        run: the run folder.
        report: the report; None if it was not written.
        alarms: those that hold at the end.
    """
    from rich.console import Console
    from rich.table import Table

    # In a file or a pipe there is no width to ask for; rich would cut the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(title=f"Held-out tasks ({summary['split']}), seed {summary['seed']}")
    table.add_column("policy")
    table.add_column("decoding")
    titles, rows = summary_table(summary)
    for title in titles:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)

    for sentence in verdict(summary):
        console.print(sentence)
    for alarm in alarms:
        console.print(str(alarm), markup=False, highlight=False)
    minutes = summary["wall_s"] / 60
    console.print(f"{minutes:.1f} minutes. Metrics, episodes and checkpoints are in {run}.")
    if report is not None:
        console.print(
            f"The report, one file to open or to send: {report}. "
            f"Look at all episodes with: parl view {run}"
        )


def summary_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the titles of the measured metrics, and rows of policy, decoding and values.

    For a mix of environments the score of each ability stands after the score.
    """
    results = _results(summary)
    measured: dict[str, None] = {}
    for _, _, metrics in results:
        measured.update(dict.fromkeys(metrics))

    score, *others = COLUMNS
    columns = [score]
    for metric in measured:
        if metric.startswith("ability/") and metric.endswith("/score"):
            ability = metric.split("/")[1]
            columns.append((metric, ability, "{:.3f}"))
    columns.extend(others)
    columns = [column for column in columns if column[0] in measured]

    rows: list[list[str]] = []
    for name, decoding, metrics in results:
        cells = [name, decoding]
        for metric, _, form in columns:
            cells.append(form.format(metrics[metric]) if metric in metrics else "")
        rows.append(cells)
    return [title for _, title, _ in columns], rows


def _results(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, float]]]:
    """Return name of the row, decoding and metrics of each result, in the order of ROWS."""
    heldout = summary["heldout"]
    results: list[tuple[str, str, Mapping[str, float]]] = []
    for phase, mode, name in ROWS:
        decodings = heldout.get(phase, {}).get(mode, {})
        for decoding, metrics in decodings.items():
            results.append((name, decoding, metrics))
    return results


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """Compare the trained swarm with the trained single agent, greedy, in two sentences.

    Returns:
        An empty list where one of the two was not evaluated.
    """
    trained = summary["heldout"]["trained"]
    swarm = trained.get("swarm", {}).get("greedy")
    single = trained.get("single", {}).get("greedy")
    if swarm is None or single is None:
        return []
    difference = swarm["score"] - single["score"]
    token_ratio = f"{swarm['tokens_per_episode'] / single['tokens_per_episode']:.2f}"
    tokens = "as many tokens" if token_ratio == "1.00" else f"{token_ratio} times the tokens"
    steps = compare_counts(swarm["critical_steps"], single["critical_steps"])
    return [
        f"The trained swarm scores {swarm['score']:.3f}, the trained single agent "
        f"{single['score']:.3f} ({difference:+.3f}).",
        # Quality never without all of its costs: a swarm buys steps and seconds with tokens.
        f"It needs {swarm['critical_steps']:.1f} critical steps against "
        f"{single['critical_steps']:.1f} ({steps}), "
        f"{swarm['virtual_latency_s']:.1f} s against {single['virtual_latency_s']:.1f} s on the "
        f"virtual clock, and {tokens}.",
    ]


def compare_counts(number: float, other: float) -> str:
    """Put the ratio of two positive counts into words.

    Example: (5, 20) -> `4.00 times fewer`, (20, 5) -> `4.00 times as many`, (5, 5) -> `equally many`
    """
    if f"{other / number:.2f}" == "1.00":
        return "equally many"
    if number < other:
        return f"{other / number:.2f} times fewer"
    return f"{number / other:.2f} times as many"
