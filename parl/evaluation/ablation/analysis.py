"""The comparison of an ablation: statistics over paired seeds, tables, and verdicts that claim no more than they show.

In: held-out results by variant and seed. Out: a JSON object, the same as text (rich) and as a Markdown page.

The interval is a paired t interval: the differences between two variants that share a seed, their mean, and Student's
t over the seeds. It speaks of new seeds on the same held-out tasks.
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
"""What is compared where runs measure it, and the decimals it is shown with."""
DECODINGS = ("greedy", "sampled")
# Two-sided 95 % quantiles of Student's t by degrees of freedom; between two entries the smaller one (wider) holds.
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
FOOTER = (
    "Mean ± standard deviation over seeds. Differences are from the first variant, paired by seed, with a 95 % paired "
    "t interval over the seeds (on these held-out tasks). Each interval stands alone: of twenty such comparisons "
    "without any difference, one is expected to show one."
)


@dataclass(frozen=True, slots=True)
class VariantResults:
    """What a variant's finished runs measured: seed -> decoding -> metric -> value, and on which tasks."""

    label: str
    folder: str
    runs: Mapping[int, Mapping[str, Mapping[str, float]]]
    tasks: frozenset[str] = frozenset()

    def values(self, decoding: str, metric: str) -> dict[int, float]:
        found = {seed: run.get(decoding, {}).get(metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


# --- statistics --------------------------------------------------------------------------------------------------


def t95(degrees: int) -> float:
    """The factor of a 95 % interval: Student's t, two-sided, at most a little too wide."""
    return T95[max(known for known in T95 if known <= degrees)]


def difference(first: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any] | None:
    """`other` minus `first` over the seeds that both have; None without one.

    `low` and `high` are null when the seeds allow no interval: one seed only, or the same difference in all of them
    (a spread of zero over a few seeds is no evidence of certainty).
    """
    seeds = sorted(first.keys() & other.keys())
    if not seeds:
        return None
    deltas = [other[seed] - first[seed] for seed in seeds]
    mean = fmean(deltas)
    spread = stdev(deltas) if len(deltas) > 1 else 0.0
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return {"num": len(deltas), "mean": mean, "low": None, "high": None}
    half = t95(len(deltas) - 1) * spread / math.sqrt(len(deltas))
    return {"num": len(deltas), "mean": mean, "low": mean - half, "high": mean + half}


def analyse(variants: Sequence[VariantResults], seeds: Sequence[int]) -> dict[str, Any]:
    """All numbers of the comparison. The first variant is what the others are compared with."""
    first = variants[0]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for metric in _metrics(variants):
        for decoding in DECODINGS:
            base = first.values(decoding, metric)
            rows = [
                _row(v.values(decoding, metric), None if v is first else base) for v in variants
            ]
            if any(row["num"] for row in rows):
                results.setdefault(metric, {})[decoding] = rows
    out: dict[str, Any] = {
        "seeds": list(seeds),
        "variants": [
            {
                "label": v.label,
                "folder": v.folder,
                "seeds_done": sorted(v.runs),
                "same_tasks": not (v.tasks and first.tasks) or v.tasks == first.tasks,
            }
            for v in variants
        ],
        "interval": "paired t over seeds, 95 %",
        "results": results,
    }
    return out | {"verdicts": verdicts(out), "notes": _notes(variants, seeds)}


def _metrics(variants: Sequence[VariantResults]) -> list[str]:
    """What is compared, in order: the score, that of each ability of a mix, the others."""
    measured = dict.fromkeys(
        name for v in variants for run in v.runs.values() for row in run.values() for name in row
    )
    abilities = [
        name for name in measured if name.startswith("ability/") and name.endswith("/score")
    ]
    first, *others = METRICS
    return [first, *abilities, *others]


def _digits(metric: str) -> int:
    return METRICS.get(metric, METRICS["score"])  # that of an ability is a score


def _row(values: Mapping[int, float], base: Mapping[int, float] | None) -> dict[str, Any]:
    known = list(values.values())
    return {
        "num": len(known),
        "mean": fmean(known) if known else None,
        "sd": stdev(known) if len(known) > 1 else None,
        "by_seed": {str(seed): values[seed] for seed in sorted(values)},
        "difference": None if base is None else difference(base, values),
    }


def _notes(variants: Sequence[VariantResults], seeds: Sequence[int]) -> list[str]:
    """What a reader has to know before comparing."""
    notes = []
    for variant in variants:
        missing = [seed for seed in seeds if seed not in variant.runs]
        if missing:
            notes.append(f"{variant.label}: no result for seed {', '.join(map(str, missing))}.")
        lost = sum(
            values.get("num_failed", 0) for run in variant.runs.values() for values in run.values()
        )
        if lost:
            notes.append(
                f"{variant.label}: {lost:.0f} held-out episodes failed and are not in the means."
            )
        if variant.tasks and variants[0].tasks and variant.tasks != variants[0].tasks:
            notes.append(
                f"{variant.label}: measured on other tasks than {variants[0].label}, so not comparable as is."
            )
    return notes


# --- words -------------------------------------------------------------------------------------------------------


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """A line for each variant and decoding."""
    lines = []
    first, *others = result["variants"]
    for index, variant in enumerate(others, start=1):
        tasks = "" if variant["same_tasks"] else ", on other tasks"
        for decoding in DECODINGS:
            found = {
                metric: rows[decoding][index]["difference"]
                for metric, rows in result["results"].items()
                if decoding in rows and rows[decoding][index]["difference"] is not None
            }
            if found:
                who = f"{variant['label']} against {first['label']}"
                lines.append(f"{who} ({decoding}, {_seeds(found)}{tasks}): {_sentence(found)}")
    return lines


def _seeds(found: Mapping[str, Mapping[str, Any]]) -> str:
    num = max(delta["num"] for delta in found.values())
    return f"{num} paired seed{'s' if num > 1 else ''}"


def _sentence(found: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [
        f"{metric} {words(delta, _digits(metric))}"
        for metric, delta in found.items()
        if _is_shown(delta)
    ]
    unshown = [
        metric
        for metric, delta in found.items()
        if delta["low"] is not None and not _is_shown(delta)
    ]
    flat = [
        m
        for m, delta in found.items()
        if delta["low"] is None and delta["num"] > 1 and abs(delta["mean"]) < 1e-12
    ]
    single = [
        f"{m} {delta['mean']:+.{_digits(m)}f}" for m, delta in found.items() if delta["num"] == 1
    ]
    parts = ["; ".join(shown)] if shown else []
    if unshown:
        parts.append(f"no difference shown in {', '.join(unshown)}")
    if flat:
        parts.append(f"identical in every seed: {', '.join(flat)}")
    if single:
        parts.append(f"one seed, so no statement ({', '.join(single)})")
    return "; ".join(parts) + "."


def _is_shown(delta: Mapping[str, Any]) -> bool:
    if delta["low"] is None:
        return bool(delta["num"] > 1 and abs(delta["mean"]) >= 1e-12)
    return bool(delta["low"] > 0 or delta["high"] < 0)


def words(delta: Mapping[str, Any], digits: int) -> str:
    """A difference in words, no stronger than its interval."""
    mean, low, high = delta["mean"], delta["low"], delta["high"]
    side = "higher" if mean > 0 else "lower"
    if low is None:
        if delta["num"] == 1:
            return "one seed: no statement"
        if abs(mean) < 1e-12:
            return "identical in every seed"
        return f"{side} by {abs(mean):.{digits}f} in each of {delta['num']} seeds (no spread, so no interval)"
    if low <= 0 <= high:
        return f"no difference shown ({low:+.{digits}f}..{high:+.{digits}f})"
    near, far = sorted((abs(low), abs(high)))
    return f"{side} by {abs(mean):.{digits}f} ({near:.{digits}f}..{far:.{digits}f})"


# --- the page ----------------------------------------------------------------------------------------------------


def table(result: Mapping[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one metric: a row for each variant, mean and difference for each decoding."""
    digits, by_decoding = _digits(metric), result["results"][metric]
    header = ["variant"]
    for decoding in by_decoding:
        header += [decoding, "difference (95 %)"]
    rows = []
    for index, variant in enumerate(result["variants"]):
        cells = [variant["label"]]
        for all_rows in by_decoding.values():
            row = all_rows[index]
            cells += [_mean(row, digits), _difference(row["difference"], digits)]
        rows.append(cells)
    return header, rows


def _mean(row: Mapping[str, Any], digits: int) -> str:
    if row["mean"] is None:
        return "-"
    spread = "" if row["sd"] is None else f" ± {row['sd']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{spread} (n={row['num']})"


def _difference(delta: Mapping[str, Any] | None, digits: int) -> str:
    if delta is None:
        return ""
    if delta["low"] is None:
        return f"{delta['mean']:+.{digits}f}"
    return f"{delta['mean']:+.{digits}f} ({delta['low']:+.{digits}f}..{delta['high']:+.{digits}f})"


def markdown(result: Mapping[str, Any]) -> str:
    """The page: verdicts first, then a table for each metric."""
    lines = [
        f"# Ablation of {result['base']}",
        "",
        f"Seeds: {', '.join(map(str, result['seeds']))}. {FOOTER}",
        "",
    ]
    lines += [f"- {line}" for line in (*result["verdicts"], *result["notes"])]
    for metric in result["results"]:
        header, rows = table(result, metric)
        lines += [
            "",
            f"## {metric}",
            "",
            _bar(header),
            _bar(["---"] + ["---:"] * (len(header) - 1)),
        ]
        lines += [_bar(row) for row in rows]
    lines += ["", "Runs:", *(f"- {v['label']}: `{v['folder']}/`" for v in result["variants"])]
    lines += [f"- failed: `{item['run']}`, see `{item['log']}`" for item in result["failed"]]
    return "\n".join(lines) + "\n"


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def write_ablation(result: Mapping[str, Any], folder: Path) -> None:
    """ablation.json and ablation.md."""
    write_atomic(folder / "ablation.json", json.dumps(result, indent=1))
    write_atomic(folder / "ablation.md", markdown(result))


def print_ablation(result: Mapping[str, Any], folder: Path) -> None:
    """The tables and verdicts on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False)
    for metric in result["results"]:
        header, rows = table(result, metric)
        shown = Table(title=metric, title_justify="left")
        for k, name in enumerate(header):
            shown.add_column(name, justify="right" if k else "left")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for line in (*result["verdicts"], *result["notes"]):
        console.print(line)
    console.print(FOOTER)
    console.print(
        f"The same is in {folder}/ablation.md, with the value of each seed in ablation.json, and with learning curves "
        "in ablation.html."
    )
