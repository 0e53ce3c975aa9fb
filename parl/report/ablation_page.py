"""The page of an ablation: verdicts, learning curves of the variants over each other, tables.

One file (ablation.html) that loads nothing from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from parl.evaluation.ablation.analysis import FOOTER, table
from parl.runs.folder import write_atomic

# A reward is comparable only between variants with the same terms; its caption says so.
CURVES = {
    "outcome/score": "score (0 to 1), training episodes",
    "eval/score": "score (0 to 1), validation tasks, greedy",
    "swarm/critical_steps": "critical steps per episode",
    "swarm/num_subagents": "subagents per episode",
    "swarm/tokens_per_episode": "generated tokens per episode",
    "reward/total": "reward of orchestrators, shaping included: compare where the terms are the same",
}
"""Metric -> caption of its chart."""


def write_page(result: Mapping[str, Any], runs: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """Write ablation.html.

    Args:
        result: see `parl.evaluation.ablation.analysis.analyse`, with `base` and `failed`.
        runs: label of a variant -> folders of its finished runs, one for each seed.
        folder: the ablation's folder.
    """
    write_atomic(folder / "ablation.html", page(result, learning_curves(runs)))


def page(result: Mapping[str, Any], charts: Sequence[Mapping[str, Any]]) -> str:
    """Return the page, with the library that draws its charts."""
    # Here, since plotly and jinja2 are in extras and training imports this module.
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=PackageLoader("parl.report", "templates"), autoescape=True)
    return environment.get_template("ablation.html").render(
        result=result,
        charts=charts,
        tables={metric: table(result, metric) for metric in result["results"]},
        footer=FOOTER,
        plotly=get_plotlyjs(),
    )


def learning_curves(runs: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """Return a chart for each metric of CURVES that any run has, with a line for each variant.

    Args:
        runs: label of a variant -> folders of its finished runs, one for each seed.
    """
    histories = {label: [_history(run) for run in folders] for label, folders in runs.items()}
    charts: list[dict[str, Any]] = []
    for metric, caption in CURVES.items():
        lines: list[dict[str, Any]] = []
        for label, seed_histories in histories.items():
            curves = [history.get(metric, {}) for history in seed_histories]
            lines.append(_line(label, curves))
        if any(line["steps"] for line in lines):
            charts.append({"metric": metric, "caption": caption, "lines": lines})
    return charts


def _history(run: Path) -> dict[str, dict[int, float]]:
    """Read metric -> step -> value.

    Steps are counted as done, so the first is 1, as in the names of checkpoints.
    """
    history: dict[str, dict[int, float]] = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for metric in CURVES.keys() & line.keys():
            history.setdefault(metric, {})[line["step"] + 1] = line[metric]
    return history


def _line(label: str, seeds: Sequence[Mapping[int, float]]) -> dict[str, Any]:
    """Return mean, smallest and largest value over the seeds, at the steps that all of them have."""
    # A mean over the seeds that got that far would jump where one of them ends.
    steps = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
    line: dict[str, Any] = {
        "label": label,
        "num_seeds": len(seeds),
        "steps": steps,
        "mean": [],
        "low": [],
        "high": [],
    }
    for step in steps:
        values = [seed[step] for seed in seeds]
        line["mean"].append(fmean(values))
        line["low"].append(min(values))
        line["high"].append(max(values))
    return line
