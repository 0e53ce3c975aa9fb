"""Learning curves: which metrics are drawn together, and what a reader should look for in them.

In: the rows of metrics.jsonl, of the run and of its control. Out: groups of charts, JSON as the page's script draws it.
A chart without a value is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, float]]
CONTROL = "single agent (control)"


@dataclass(frozen=True, slots=True)
class Chart:
    """`series`: the metric -> its name in the legend. An entry that ends in / takes all metrics that begin so."""

    title: str
    says: str
    series: Mapping[str, str]
    unit: str = ""
    log: bool = False
    control: str | None = None
    """The metric that is drawn for the control, too."""
    not_all_zero: bool = False
    """Left out when every value is 0: there is nothing to see."""


GROUPS: Mapping[str, Sequence[Chart]] = {
    "What it earns": (
        Chart(
            "Outcome",
            "How well tasks are solved, before any shaping: the curve to watch. Sampled in training; "
            "greedy on validation tasks.",
            {"outcome/score": "training", "eval/score": "validation"},
            control="outcome/score",
        ),
        Chart(
            "Reward by role",
            "What the learner sees: weights times terms. It also falls when a weight is annealed, which is no loss.",
            {"reward/total": "orchestrator", "reward/subagent": "subagents"},
        ),
        Chart(
            "Outcome by ability",
            "Of a mix of environments: training and validation.",
            {"ability/*/score": "", "eval/ability/*/score": "validation"},
        ),
        Chart("Reward terms", "Raw values, without their weights (orchestrator).", {"reward/": ""}),
        Chart("Outcome in parts", "What else the environment measures.", {"outcome/": ""}),
    ),
    "How it divides the work": (
        Chart(
            "Decision to delegate",
            "Shares of episodes that launch a subagent or are cut by a limit; of subagents that finish.",
            {
                "swarm/spawn_rate": "spawn rate",
                "swarm/finish_rate": "finish rate",
                "swarm/truncated_rate": "truncated",
            },
        ),
        Chart(
            "Subagents",
            "Per episode. Width: the most that one turn launched.",
            {
                "swarm/num_subagents": "launched",
                "swarm/width": "width",
                "swarm/num_refused": "refused",
            },
            unit="subagents",
        ),
        Chart(
            "Critical and total steps",
            "Critical: turns that could not have run at the same time. Total: all turns.",
            {
                "swarm/critical_steps": "critical",
                "swarm/total_steps": "total",
                "eval/critical_steps": "critical, validation",
            },
            unit="turns",
            control="swarm/critical_steps",
        ),
        Chart(
            "Tokens by role",
            "Written per episode.",
            {
                "tokens/orchestrator": "orchestrator",
                "tokens/subagent": "subagents",
                "swarm/tokens_per_episode": "all",
            },
            unit="tokens",
        ),
    ),
    "How it learns": (
        Chart(
            "Entropy",
            "Falls as the policy decides. Near 0 the episodes of a group become equal and learning ends.",
            {"policy/*/entropy": ""},
            unit="nats per token",
        ),
        Chart("Gradient norm", "Before clipping.", {"policy/*/grad_norm": ""}),
        Chart("Learning rate", "Of ordinary parameters.", {"policy/*/lr": ""}),
        Chart(
            "Clipped tokens",
            "Share that the loss leaves out.",
            {"policy/*/clipped_fraction": ""},
            not_all_zero=True,
        ),
    ),
    "How the run is doing": (
        Chart(
            "Log-prob mismatch",
            "Between sampler and learner, same weights. It should be rounding; if it grows, suspect the engine.",
            {
                "policy/*/logp_mismatch_mean": "mean",
                "policy/*/logp_mismatch_max": "largest",
                "policy/*/sync_mismatch": "after sync",
            },
            unit="nats",
            log=True,
        ),
        Chart(
            "Time of a step",
            "Rollouts, learning, and handing over the weights.",
            {
                "time/step_s": "whole step",
                "time/rollout_s": "rollouts",
                "time/learn_s": "learning",
                "time/sync_s": "sync",
            },
            unit="seconds",
        ),
        Chart(
            "Throughput",
            "Of rollouts and of the learner.",
            {"rollout/tokens_per_s": "rollouts", "learner/tokens_per_s": "learner"},
            unit="tokens per second",
        ),
        Chart(
            "Failures",
            "Episodes lost to something outside the policy; workers lost. Should stay 0.",
            {"failures/": "", "rollout/workers_lost": "workers lost"},
            unit="per step",
        ),
        Chart(
            "Staleness",
            "Age of the trained tokens; always 0 in synchronous training.",
            {"rollout/staleness_mean": "mean", "rollout/staleness_max": "largest"},
            unit="weight versions",
            not_all_zero=True,
        ),
    ),
}


def curves(rows: Rows, control: Rows = ()) -> list[dict[str, Any]]:
    """Groups of charts with the points of each series: [{"title", "charts": [{"title", "says", "series", ...}]}]."""
    names = sorted({name for row in rows for name in row})
    groups = []
    for title, charts in GROUPS.items():
        drawn = [made for chart in charts if (made := _draw(chart, names, rows, control))]
        if drawn:
            groups.append({"title": title, "charts": drawn})
    return groups


def _draw(chart: Chart, names: Sequence[str], rows: Rows, control: Rows) -> dict[str, Any] | None:
    found = [_series(label, name, rows) for name, label in _expanded(chart.series, names)]
    if chart.control is not None and control:
        found.append(_series(CONTROL, chart.control, control))
    series = [s for s in found if s["y"]]
    if not series or (chart.not_all_zero and not any(v for s in series for v in s["y"])):
        return None
    log = chart.log and any(v > 0 for s in series for v in s["y"])
    return {
        "title": chart.title,
        "says": chart.says,
        "unit": chart.unit,
        "log": log,
        "series": series,
    }


def _expanded(series: Mapping[str, str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Patterns replaced by the metrics that fit: `reward/` by all terms, `policy/*/lr` by one a policy (or ability)."""
    found: list[tuple[str, str]] = []
    for pattern, label in series.items():
        if pattern.endswith("/"):
            totals = {"reward/total", "reward/subagent", "outcome/score"}
            found += [
                (name, _short(name))
                for name in names
                if name.startswith(pattern) and name not in totals
            ]
        elif "*" in pattern:
            head = pattern.partition("*")[0]
            kinds = sorted(
                {name.removeprefix(head).split("/")[0] for name in names if name.startswith(head)}
            )
            found += [(pattern.replace("*", kind), _of_kind(kind, label, kinds)) for kind in kinds]
        else:
            found.append((pattern, label))
    return found


def _of_kind(kind: str, label: str, kinds: Sequence[str]) -> str:
    return label if label and len(kinds) == 1 else f"{kind} {label}".strip()


def _short(name: str) -> str:
    return name.partition("/")[2] or name


def _series(label: str, metric: str, rows: Rows) -> dict[str, Any]:
    points = [(row["step"], row[metric]) for row in rows if metric in row]
    return {
        "name": label,
        "metric": metric,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
    }
