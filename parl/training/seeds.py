"""One config over several seeds: the runs of `parl seeds`, and their table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

METRICS = (
    *("item_f1", "item_f1_nonkey", "tests_passed", "tool_use", "zoom_iou"),
    *("accuracy_answered", "abstention_precision", "abstention_recall", "success"),
    *("critical_steps", "virtual_latency_s", "tokens_per_episode", "spawn_rate", "num_truncated"),
)
"""Columns after the score. A metric that no run measured has no column."""

Summary = Mapping[str, Any]
"""The content of a run's summary.json."""


def run_seed(config: Path, seed: int, folder: Path, overrides: Sequence[str]) -> Summary:
    """Train one seed from nothing, with its baseline, unless that was done before.

    Each seed is a process, so that what one leaves in memory cannot reach the next. A seed that was
    stopped is resumed: the same command goes on after a break.

    Args:
        config: a YAML file.
        seed: becomes `seed` of the config.
        folder: the run is in `folder/seed_N`.
        overrides: dotted assignments, the same for all seeds.
    Raises:
        subprocess.CalledProcessError: the training failed or was stopped. It has said why.
    """
    run = folder / f"seed_{seed}"
    summary_file = run / "summary.json"
    if not summary_file.is_file():
        resolved = run / "config.resolved.yaml"
        if resolved.is_file():
            arguments = [str(resolved), "--resume", str(run)]
        else:
            arguments = [str(config), f"seed={seed}", *overrides, f"run_dir={run}"]
        subprocess.run([sys.executable, "-m", "parl.cli", "train", *arguments], check=True)

    summary: Summary = json.loads(summary_file.read_text())
    return summary


def seeds_table(summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield the lines of a Markdown table: one row for each policy and decoding.

    A cell is the mean over the seeds and, in brackets, the smallest and the largest value.
    """
    heldout = summaries[0]["heldout"]
    metrics = _metric_names(heldout)
    seeds = ", ".join(str(summary["seed"]) for summary in summaries)
    minutes = ", ".join(f"{summary['wall_s'] / 60:.1f}" for summary in summaries)
    attempts = max(summary["cold_start_attempts"] for summary in summaries)

    yield f"Seeds {seeds}; minutes: {minutes}; cold-start attempts at most {attempts}."
    yield ""
    yield (
        f"Mean over the seeds [smallest, largest] on held-out tasks ({summaries[0]['split']}). "
        "Latency in virtual seconds, tokens and steps per episode."
    )
    yield ""
    yield "| policy | decoding | " + " | ".join(metrics) + " |"
    yield "|" + " --- |" * (len(metrics) + 2)
    for phase, modes in heldout.items():
        for mode, decodings in modes.items():
            for decoding in decodings:
                results = [summary["heldout"][phase][mode][decoding] for summary in summaries]
                cells = []
                for metric in metrics:
                    values = [result[metric] for result in results if metric in result]
                    cells.append(_mean_and_range(values))
                yield f"| {phase}, {mode} | {decoding} | " + " | ".join(cells) + " |"


def _metric_names(heldout: Mapping[str, Any]) -> list[str]:
    """The columns that a run's held-out results have: score, the scores of a mix, then METRICS."""
    measured: set[str] = set()
    for modes in heldout.values():
        for decodings in modes.values():
            for result in decodings.values():
                measured.update(result)
    abilities = [
        name for name in measured if name.startswith("ability/") and name.endswith("/score")
    ]
    return ["score", *sorted(abilities), *(name for name in METRICS if name in measured)]


def _mean_and_range(values: Sequence[float]) -> str:
    """Example: [1.0, 2.0] -> `1.5 [1, 2]`."""
    # A run may lack a metric, such as the recall of abstention where nothing was to be abstained.
    if not values:
        return ""
    return f"{fmean(values):.3g} [{min(values):.3g}, {max(values):.3g}]"
