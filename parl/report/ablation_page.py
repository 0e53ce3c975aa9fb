"""The page of an ablation: verdicts, learning curves of the variants over each other, tables. One file, no network.

In: the comparison (`report.ablation.analyse`) and the folders of its finished runs. Out: ablation.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from parl.evaluation.ablation.analysis import FOOTER, table
from parl.runs.folder import write_atomic

CURVES = {
    "outcome/score": "score, training episodes",
    "eval/score": "score, validation tasks, greedy",
    "swarm/critical_steps": "critical steps",
    "swarm/num_subagents": "subagents",
    "swarm/tokens_per_episode": "tokens per episode",
    "reward/total": "reward, with its shaping",
}
"""What is drawn, and its caption. A reward is comparable only between variants that have the same terms."""


def learning_curves(runs: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """A chart for each metric of CURVES that any run has; in it a line for each variant.

    Args:
        runs: variant's label -> folders of its finished runs, one for each seed.
    """
    histories = {label: [_history(run) for run in folders] for label, folders in runs.items()}
    charts = []
    for metric, caption in CURVES.items():
        lines = [
            _line(label, [history.get(metric, {}) for history in found])
            for label, found in histories.items()
        ]
        if any(line["steps"] for line in lines):
            charts.append({"metric": metric, "caption": caption, "lines": lines})
    return charts


def _history(run: Path) -> dict[str, dict[int, float]]:
    """metric -> step -> value. Steps are counted as done, so the first is 1, as in the names of checkpoints."""
    found: dict[str, dict[int, float]] = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for metric in CURVES.keys() & line.keys():
            found.setdefault(metric, {})[line["step"] + 1] = line[metric]
    return found


def _line(label: str, seeds: Sequence[Mapping[int, float]]) -> dict[str, Any]:
    """Mean, smallest and largest over the seeds, at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
    values = [[seed[step] for seed in seeds] for step in steps]
    return {
        "label": label,
        "num_seeds": len(seeds),
        "steps": steps,
        "mean": [fmean(v) for v in values],
        "low": [min(v) for v in values],
        "high": [max(v) for v in values],
    }


def page(result: Mapping[str, Any], charts: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, with the library that draws it."""
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


def write_page(result: Mapping[str, Any], runs: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """ablation.html."""
    write_atomic(folder / "ablation.html", page(result, learning_curves(runs)))
