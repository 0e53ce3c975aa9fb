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
ROWS = (
    ("cold_start", "swarm", "cold start"),
    ("cold_start", "forced_parallel", "cold start, forced to delegate"),
    ("cold_start", "single", "cold start, single agent"),
    ("cold_start", "control", "cold start, control"),
    ("trained", "swarm", "trained swarm"),
    ("trained", "single", "trained single agent"),
    ("trained", "control", "trained control"),
)


def print_summary(
    summary: Mapping[str, Any], run: Path, report: Path | None, alarms: Sequence[Alarm]
) -> None:
    """Print the table, the comparison in words, the alarms that hold at the end, and where the files are.

    `report` is None if it was not written.
    """
    from rich.console import Console
    from rich.table import Table

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
    console.print(
        f"{summary['wall_s'] / 60:.1f} minutes. Metrics, episodes and checkpoints are in {run}."
    )
    if report is not None:
        console.print(
            f"The report, one file to open or to send: {report}. Look at all episodes with: parl view {run}"
        )


def summary_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles of the numbers that there are, and rows: policy, decoding, numbers as text."""
    results = _results(summary)
    keys = dict.fromkeys(key for _, _, result in results for key in result)
    abilities = [
        key.split("/")[1] for key in keys if key.startswith("ability/") and key.endswith("/score")
    ]
    first, *others = COLUMNS
    columns = [first, *((f"ability/{a}/score", a, "{:.3f}") for a in abilities), *others]
    shown = [c for c in columns if c[0] in keys]
    rows = [
        [
            label,
            decoding,
            *(form.format(result[key]) if key in result else "" for key, _, form in shown),
        ]
        for label, decoding, result in results
    ]
    return [title for _, title, _ in shown], rows


def _results(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, float]]]:
    held = summary["heldout"]
    return [
        (label, decoding, result)
        for phase, mode, label in ROWS
        for decoding, result in held.get(phase, {}).get(mode, {}).items()
    ]


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, no more."""
    trained = summary["heldout"]["trained"]
    swarm, single = trained.get("swarm", {}).get("greedy"), trained.get("single", {}).get("greedy")
    if swarm is None or single is None:
        return []
    return [
        f"The trained swarm scores {swarm['score']:.3f}, the trained single agent {single['score']:.3f} "
        f"({swarm['score'] - single['score']:+.3f}).",
        f"It needs {swarm['critical_steps']:.1f} critical steps against {single['critical_steps']:.1f} "
        f"({single['critical_steps'] / swarm['critical_steps']:.2f} times fewer), "
        f"{swarm['virtual_latency_s']:.1f} s against {single['virtual_latency_s']:.1f} s on the virtual clock, and "
        f"{swarm['tokens_per_episode'] / single['tokens_per_episode']:.2f} times the tokens.",
    ]
