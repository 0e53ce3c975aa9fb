"""The comparison of an ablation's variants: paired statistics, verdicts, tables.

What is compared: for each metric m and decoding, the held-out mean x[v, s] of variant v trained with
seed s, from the summary.json of each run. Variants share their seeds: the same initial weights, and
the same tasks in the same order.

What is estimated: with d[s] = x[v, s] - x[0, s] over the n seeds that both have, the mean of d and a
95 % paired t interval,

    mean(d) +- t(0.975, n - 1) * sd(d) / sqrt(n)

The unit is a seed, that is, a whole training. The interval is over new seeds on the same held-out
tasks; it says nothing about other tasks. Each interval stands alone (no correction for their number).
It assumes that differences are about normal, which a few seeds cannot show.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from parl.core.abstention import RATES
from parl.runs.folder import write_atomic

METRICS = {
    "score": 3,
    "item_f1_nonkey": 3,
    **dict.fromkeys(RATES, 3),
    "critical_steps": 2,
    "total_steps": 2,
    "virtual_latency_s": 2,
    "tokens_per_episode": 1,
    "spawn_rate": 3,
    "finish_rate": 3,
    "num_subagents": 2,
}
"""Metrics that are compared where the runs measured them -> decimals."""
DECODINGS = ("greedy", "sampled")

# Two-sided 95 % quantiles of Student's t by degrees of freedom. A table, since scipy is no
# dependency; a test compares it with scipy's.
T95 = {
    **dict(
        enumerate((12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228), start=1)
    ),
    **dict(
        enumerate((2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086), start=11)
    ),
    **dict(
        enumerate((2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042), start=21)
    ),
    **{40: 2.021, 60: 2.000, 120: 1.980},
}

# Differences between floats below this are rounding.
ROUNDING = 1e-12

FOOTER = (
    "Mean ± standard deviation over seeds. Differences are from the first variant, paired by seed, "
    "with a 95 % paired t interval over the seeds (on these held-out tasks). Each interval stands "
    "alone: of twenty such comparisons without any difference, one is expected to show one."
)

Delta = Mapping[str, Any]
"""A difference: `num`, `mean`, `low`, `high`, see `difference`."""


@dataclass(frozen=True, slots=True)
class VariantResults:
    """The held-out results of a variant's finished runs."""

    label: str
    folder: str
    runs: Mapping[int, Mapping[str, Mapping[str, float]]]
    """Seed -> decoding -> metric -> value."""
    tasks: frozenset[str] = frozenset()
    """Fingerprints of the held-out tasks; more than one where runs had different ones."""

    def values(self, decoding: str, metric: str) -> dict[int, float]:
        """Return seed -> value, of the runs that measured the metric."""
        values: dict[int, float] = {}
        for seed, run in self.runs.items():
            value = run.get(decoding, {}).get(metric)
            if value is not None:
                values[seed] = value
        return values


# --- statistics --------------------------------------------------------------------------


def t95(degrees: int) -> float:
    """Return t(0.975, degrees), the factor of a two-sided 95 % interval.

    Between two entries of the table the smaller number of degrees counts, so the interval is
    slightly too wide rather than too narrow.
    """
    return T95[max(entry for entry in T95 if entry <= degrees)]


def difference(first: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any] | None:
    """Compute `other` - `first`, paired by seed, with its 95 % paired t interval.

    Args:
        first: seed -> value.
        other: seed -> value. Seeds that only one of them has are left out.
    Returns:
        `num` (paired seeds), `mean`, `low` and `high`; None without a common seed. The bounds are
        None for one seed, and where the difference is the same in all seeds: a spread of zero over
        a few seeds is no evidence of certainty.
    """
    seeds = sorted(first.keys() & other.keys())
    if not seeds:
        return None
    deltas = [other[seed] - first[seed] for seed in seeds]
    mean = fmean(deltas)
    spread = stdev(deltas) if len(deltas) > 1 else 0.0
    # Relative to the mean: 0.7 + 0.1 - 0.7 is not exactly 0.1.
    if spread <= ROUNDING * max(1.0, abs(mean)):
        return {"num": len(deltas), "mean": mean, "low": None, "high": None}
    half_width = t95(len(deltas) - 1) * spread / math.sqrt(len(deltas))
    return {
        "num": len(deltas),
        "mean": mean,
        "low": mean - half_width,
        "high": mean + half_width,
    }


def analyse(variants: Sequence[VariantResults], seeds: Sequence[int]) -> dict[str, Any]:
    """Compute all numbers of the comparison.

    Args:
        variants: the others are compared with the first.
        seeds: those that the ablation runs, finished or not.
    Returns:
        The content of ablation.json, without `base` and `failed`:

        - `seeds`, and `interval`, the kind of the intervals in words
        - `variants`: label, folder, `seeds_done`, and `same_tasks` as the first variant
        - `results`: metric -> decoding -> one row per variant with `num`, `mean`, `sd` (both over
          seeds), `by_seed`, and `difference` (see `difference`; None for the first variant)
        - `verdicts` and `notes`: sentences
    """
    first = variants[0]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for metric in _metric_names(variants):
        for decoding in DECODINGS:
            rows = _rows(variants, metric, decoding)
            if any(row["num"] for row in rows):
                results.setdefault(metric, {})[decoding] = rows

    descriptions: list[dict[str, Any]] = []
    for variant in variants:
        description = {
            "label": variant.label,
            "folder": variant.folder,
            "seeds_done": sorted(variant.runs),
            "same_tasks": not _has_other_tasks(variant, first),
        }
        descriptions.append(description)

    comparison: dict[str, Any] = {
        "seeds": list(seeds),
        "variants": descriptions,
        "interval": "paired t over seeds, 95 %",
        "results": results,
    }
    comparison["verdicts"] = verdicts(comparison)
    comparison["notes"] = _notes(variants, seeds)
    return comparison


def _metric_names(variants: Sequence[VariantResults]) -> list[str]:
    """Return the metrics to compare in order: the score, that of each ability, the others."""
    ability_scores: dict[str, None] = {}
    for variant in variants:
        for run in variant.runs.values():
            for metrics in run.values():
                for name in metrics:
                    if name.startswith("ability/") and name.endswith("/score"):
                        ability_scores[name] = None
    score, *others = METRICS
    return [score, *ability_scores, *others]


def _digits(metric: str) -> int:
    return METRICS.get(metric, METRICS["score"])  # an ability's metric is a score


def _rows(variants: Sequence[VariantResults], metric: str, decoding: str) -> list[dict[str, Any]]:
    """Return one row per variant, see `analyse`."""
    rows: list[dict[str, Any]] = []
    first_values = variants[0].values(decoding, metric)
    for index, variant in enumerate(variants):
        values = variant.values(decoding, metric)
        numbers = list(values.values())
        row = {
            "num": len(numbers),
            "mean": fmean(numbers) if numbers else None,
            "sd": stdev(numbers) if len(numbers) > 1 else None,
            "by_seed": {str(seed): values[seed] for seed in sorted(values)},
            "difference": difference(first_values, values) if index > 0 else None,
        }
        rows.append(row)
    return rows


def _has_other_tasks(variant: VariantResults, first: VariantResults) -> bool:
    # Without a finished run the tasks are not known.
    if not variant.tasks or not first.tasks:
        return False
    return variant.tasks != first.tasks


def _notes(variants: Sequence[VariantResults], seeds: Sequence[int]) -> list[str]:
    """Return what a reader has to know before comparing."""
    first = variants[0]
    notes: list[str] = []
    for variant in variants:
        missing_seeds = [str(seed) for seed in seeds if seed not in variant.runs]
        if missing_seeds:
            notes.append(f"{variant.label}: no result for seed {', '.join(missing_seeds)}.")
        num_failed = _num_failed(variant)
        if num_failed:
            notes.append(
                f"{variant.label}: {num_failed:.0f} held-out episodes failed and are not in the means."
            )
        if _has_other_tasks(variant, first):
            notes.append(
                f"{variant.label}: measured on other tasks than {first.label}, "
                "so not comparable as is."
            )
    return notes


def _num_failed(variant: VariantResults) -> float:
    num_failed = 0.0
    for run in variant.runs.values():
        for metrics in run.values():
            num_failed += metrics.get("num_failed", 0)
    return num_failed


# --- words -------------------------------------------------------------------------------


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Return a line for each variant and decoding, no stronger than the intervals."""
    lines: list[str] = []
    first, *others = result["variants"]
    for index, variant in enumerate(others, start=1):
        other_tasks = "" if variant["same_tasks"] else ", on other tasks"
        for decoding in DECODINGS:
            deltas = _deltas(result, index, decoding)
            if not deltas:
                continue
            num_seeds = max(delta["num"] for delta in deltas.values())
            seeds = f"{num_seeds} paired seed{'s' if num_seeds > 1 else ''}"
            lines.append(
                f"{variant['label']} against {first['label']} ({decoding}, {seeds}{other_tasks}): "
                f"{_sentence(deltas)}"
            )
    return lines


def _deltas(result: Mapping[str, Any], variant_index: int, decoding: str) -> dict[str, Delta]:
    """Return metric -> difference of a variant, where there is one."""
    deltas: dict[str, Delta] = {}
    for metric, rows in result["results"].items():
        if decoding not in rows:
            continue
        delta = rows[decoding][variant_index]["difference"]
        if delta is not None:
            deltas[metric] = delta
    return deltas


def _sentence(deltas: Mapping[str, Delta]) -> str:
    """Put each metric into one of four groups: different, not shown to be, identical, one seed."""
    different: list[str] = []
    not_shown: list[str] = []
    identical: list[str] = []
    one_seed: list[str] = []
    for metric, delta in deltas.items():
        digits = _digits(metric)
        if delta["num"] == 1:
            one_seed.append(f"{metric} {delta['mean']:+.{digits}f}")
        elif _is_shown(delta):
            different.append(f"{metric} {words(delta, digits)}")
        elif delta["low"] is None:
            identical.append(metric)
        else:
            not_shown.append(metric)

    parts: list[str] = []
    if different:
        parts.append("; ".join(different))
    if not_shown:
        parts.append(f"no difference shown in {', '.join(not_shown)}")
    if identical:
        parts.append(f"identical in every seed: {', '.join(identical)}")
    if one_seed:
        parts.append(f"one seed, so no statement ({', '.join(one_seed)})")
    return "; ".join(parts) + "."


def _is_shown(delta: Delta) -> bool:
    """Say whether a difference is shown: its interval does not touch 0.

    Without an interval, several seeds with one and the same difference show it as well.
    """
    if delta["low"] is None:
        return bool(delta["num"] > 1 and abs(delta["mean"]) >= ROUNDING)
    return bool(delta["low"] > 0 or delta["high"] < 0)


def words(delta: Delta, digits: int) -> str:
    """Put a difference into words, no stronger than its interval.

    Example: `lower by 0.20 (0.10..0.30)`
    """
    mean, low, high = delta["mean"], delta["low"], delta["high"]
    direction = "higher" if mean > 0 else "lower"
    size = f"{abs(mean):.{digits}f}"
    if low is None and delta["num"] == 1:
        return "one seed: no statement"
    if low is None and abs(mean) < ROUNDING:
        return "identical in every seed"
    if low is None:
        return f"{direction} by {size} in each of {delta['num']} seeds (no spread, so no interval)"
    if low <= 0 <= high:
        return f"no difference shown ({low:+.{digits}f}..{high:+.{digits}f})"
    near, far = sorted((abs(low), abs(high)))
    return f"{direction} by {size} ({near:.{digits}f}..{far:.{digits}f})"


# --- tables ------------------------------------------------------------------------------


def table(result: Mapping[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one metric.

    A row per variant; for each decoding the mean and the difference from the first variant.
    """
    digits = _digits(metric)
    rows_by_decoding = result["results"][metric]
    header = ["variant"]
    for decoding in rows_by_decoding:
        header += [decoding, "difference (95 %)"]
    rows: list[list[str]] = []
    for index, variant in enumerate(result["variants"]):
        cells = [variant["label"]]
        for decoding_rows in rows_by_decoding.values():
            row = decoding_rows[index]
            cells.append(_mean_cell(row, digits))
            cells.append(_difference_cell(row["difference"], digits))
        rows.append(cells)
    return header, rows


def _mean_cell(row: Mapping[str, Any], digits: int) -> str:
    """Example: `0.931 ± 0.012 (n=3)`."""
    if row["mean"] is None:
        return "-"
    spread = "" if row["sd"] is None else f" ± {row['sd']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{spread} (n={row['num']})"


def _difference_cell(delta: Delta | None, digits: int) -> str:
    """Example: `+0.350 (-0.285..+0.985)`."""
    if delta is None:
        return ""
    mean = f"{delta['mean']:+.{digits}f}"
    if delta["low"] is None:
        return mean
    return f"{mean} ({delta['low']:+.{digits}f}..{delta['high']:+.{digits}f})"


def markdown(result: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown: verdicts first, then a table for each metric."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [f"# Ablation of {result['base']}", "", f"Seeds: {seeds}. {FOOTER}", ""]
    for sentence in (*result["verdicts"], *result["notes"]):
        lines.append(f"- {sentence}")
    for metric in result["results"]:
        header, rows = table(result, metric)
        alignment = ["---"] + ["---:"] * (len(header) - 1)
        lines += ["", f"## {metric}", "", _table_line(header), _table_line(alignment)]
        lines += map(_table_line, rows)
    lines += ["", "Runs:"]
    for variant in result["variants"]:
        lines.append(f"- {variant['label']}: `{variant['folder']}/`")
    for run in result["failed"]:
        lines.append(f"- failed: `{run['run']}`, see `{run['log']}`")
    return "\n".join(lines) + "\n"


def _table_line(cells: Sequence[str]) -> str:
    # A bar in a label would start another cell.
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def write_ablation(result: Mapping[str, Any], folder: Path) -> None:
    """Write ablation.json and ablation.md."""
    write_atomic(folder / "ablation.json", json.dumps(result, indent=1))
    write_atomic(folder / "ablation.md", markdown(result))


def print_ablation(result: Mapping[str, Any], folder: Path) -> None:
    """Print tables and verdicts."""
    # Here: rich is for terminals alone, and training imports this module.
    from rich.console import Console
    from rich.table import Table

    # In a file or a pipe there is no width to ask for; rich would cut the tables at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False)
    for metric in result["results"]:
        header, rows = table(result, metric)
        printed = Table(title=metric, title_justify="left")
        for index, name in enumerate(header):
            printed.add_column(name, justify="right" if index else "left")
        for row in rows:
            printed.add_row(*row)
        console.print(printed)
    for sentence in (*result["verdicts"], *result["notes"]):
        console.print(sentence)
    console.print(FOOTER)
    console.print(
        f"The same is in {folder}/ablation.md, with the value of each seed in ablation.json, "
        "and with learning curves in ablation.html."
    )
