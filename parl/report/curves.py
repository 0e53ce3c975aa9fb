"""Learning curves: the charts of a run's overview, with titles, units and what to look for.

`curves` turns the rows of metrics.jsonl into groups of charts, as JSON for the page's script. A chart
without a value is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, float]]
"""The lines of metrics.jsonl."""
BASELINE = "single agent (baseline)"
"""Legend of the baseline's curve; the page's script draws what ends in `(baseline)` dashed and grey."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: which metrics it draws, over RL steps."""

    title: str
    description: str
    """What to look for."""
    series: Mapping[str, str]
    """Metric -> its name in the legend. Two patterns take several metrics: `reward/` all that begin
    so, `policy/*/lr` one for each policy."""
    unit: str
    """Title of the y axis."""
    log: bool = False
    """A logarithmic y axis, where a value is above 0."""
    baseline: str | None = None
    """The metric that is drawn for the baseline as well."""
    not_all_zero: bool = False
    """Left out when every value is 0: there is nothing to see."""


GROUPS: Mapping[str, Sequence[Chart]] = {
    "Outcome and reward": (
        Chart(
            "Outcome",
            "How well tasks are solved, before any shaping: the curve to watch. "
            "Sampled in training; greedy on validation tasks.",
            {"outcome/score": "training", "eval/score": "validation"},
            unit="score, 0 to 1",
            baseline="outcome/score",
        ),
        Chart(
            "Reward by role",
            "What the learner sees: weights times terms. "
            "It also falls when a weight is annealed, which is no loss.",
            {"reward/total": "orchestrator", "reward/subagent": "subagents"},
            unit="reward per agent",
        ),
        Chart(
            "Outcome by ability",
            "For each environment of a mix, in training and validation.",
            {"ability/*/score": "", "eval/ability/*/score": "validation"},
            unit="score, 0 to 1",
        ),
        Chart(
            "Reward terms",
            "Raw values of the orchestrator's terms, without their weights.",
            {"reward/": ""},
            unit="raw value",
        ),
        Chart(
            "Further outcomes",
            "What the environment measures besides the score.",
            {"outcome/": ""},
            unit="value (mostly 0 to 1)",
        ),
    ),
    "Division of the work": (
        Chart(
            "Decision to delegate",
            "Shares of episodes that launch a subagent or are cut by a limit; "
            "share of subagents that finish.",
            {
                "swarm/spawn_rate": "spawn rate",
                "swarm/finish_rate": "finish rate",
                "swarm/truncated_rate": "truncated",
            },
            unit="share, 0 to 1",
        ),
        Chart(
            "Subagents",
            "Width: the most that one turn launched. Refused: assignments that launched none.",
            {
                "swarm/num_subagents": "launched",
                "swarm/width": "width",
                "swarm/num_refused": "refused",
            },
            unit="subagents per episode",
        ),
        Chart(
            "Critical and total steps",
            "Critical: turns that could not have run at the same time. Total: all turns.",
            {
                "swarm/critical_steps": "critical",
                "swarm/total_steps": "total",
                "eval/critical_steps": "critical, validation",
            },
            unit="turns per episode",
            baseline="swarm/critical_steps",
        ),
        Chart(
            "Tokens by role",
            "Generated tokens, tool calls included; prompts and observations are not.",
            {
                "tokens/orchestrator": "orchestrator",
                "tokens/subagent": "subagents",
                "swarm/tokens_per_episode": "all",
            },
            unit="tokens per episode",
        ),
    ),
    "Learning": (
        Chart(
            "Entropy",
            "Falls as the policy decides. "
            "Near 0 the episodes of a group become equal and learning ends.",
            {"policy/*/entropy": ""},
            unit="nats per token",
        ),
        Chart(
            "Gradient norm",
            "Before clipping, mean over the step's updates.",
            {"policy/*/grad_norm": ""},
            unit="L2 norm",
        ),
        Chart(
            "Learning rate",
            "Of ordinary parameters.",
            {"policy/*/lr": ""},
            unit="learning rate",
        ),
        Chart(
            "Clipped tokens",
            "Tokens without a policy gradient, since their ratio has left the window.",
            {"policy/*/clipped_fraction": ""},
            unit="share of tokens, 0 to 1",
            not_all_zero=True,
        ),
    ),
    "Health of the run": (
        Chart(
            "Log-prob mismatch",
            "Between sampler and learner with the same weights. "
            "It should be rounding; if it grows, suspect the engine.",
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
            "Tokens that rollouts generate and that the learner trains on.",
            {"rollout/tokens_per_s": "rollouts", "learner/tokens_per_s": "learner"},
            unit="tokens per second",
        ),
        Chart(
            "Failures",
            "Episodes lost to something outside the policy; workers lost. Should stay 0.",
            {"failures/": "", "rollout/workers_lost": "workers lost"},
            unit="number per step",
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

# Drawn in charts that show nothing else, so patterns leave them out.
DRAWN_ELSEWHERE = frozenset({"reward/total", "reward/subagent", "outcome/score"})


def curves(rows: Rows, baseline: Rows = ()) -> list[dict[str, Any]]:
    """Return the groups of charts with the points of each series.

    Args:
        rows: of the run.
        baseline: of the single agent that was trained with it; empty without one.
    Returns:
        [{"title", "charts": [{"title", "description", "unit", "log", "series": [{"name", "metric",
        "x", "y"}]}]}]
    """
    metrics: set[str] = set()
    for row in rows:
        metrics.update(row)
    names = sorted(metrics)

    groups: list[dict[str, Any]] = []
    for title, charts in GROUPS.items():
        drawn: list[dict[str, Any]] = []
        for chart in charts:
            data = _chart_data(chart, names, rows, baseline)
            if data is not None:
                drawn.append(data)
        if drawn:
            groups.append({"title": title, "charts": drawn})
    return groups


def _chart_data(
    chart: Chart, names: Sequence[str], rows: Rows, baseline: Rows
) -> dict[str, Any] | None:
    """Return a chart with its points; None where there is nothing to draw."""
    candidates: list[dict[str, Any]] = []
    for metric, label in _expand(chart.series, names):
        candidates.append(_series(label, metric, rows))
    if chart.baseline is not None and baseline:
        candidates.append(_series(BASELINE, chart.baseline, baseline))
    series = [candidate for candidate in candidates if candidate["y"]]

    values: list[float] = []
    for drawn in series:
        values.extend(drawn["y"])
    if not values or (chart.not_all_zero and not any(values)):
        return None
    return {
        "title": chart.title,
        "description": chart.description,
        "unit": chart.unit,
        # A logarithmic axis cannot show a chart of zeros.
        "log": chart.log and any(value > 0 for value in values),
        "series": series,
    }


def _expand(series: Mapping[str, str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Replace patterns by the metrics that fit.

    Args:
        series: see `Chart.series`.
        names: all metrics of the run, sorted.
    Returns:
        (metric, name in the legend) pairs.
    """
    expanded: list[tuple[str, str]] = []
    for pattern, label in series.items():
        if pattern.endswith("/"):
            for name in names:
                if name.startswith(pattern) and name not in DRAWN_ELSEWHERE:
                    expanded.append((name, name.partition("/")[2]))
        elif "*" in pattern:
            kinds = _kinds(pattern, names)
            for kind in kinds:
                # With one policy its name would say nothing.
                legend = label if label and len(kinds) == 1 else f"{kind} {label}".strip()
                expanded.append((pattern.replace("*", kind), legend))
        else:
            expanded.append((pattern, label))
    return expanded


def _kinds(pattern: str, names: Sequence[str]) -> list[str]:
    """Return what `*` stands for: names of policies or abilities, sorted."""
    head = pattern.partition("*")[0]
    kinds: set[str] = set()
    for name in names:
        if name.startswith(head):
            kinds.add(name.removeprefix(head).split("/")[0])
    return sorted(kinds)


def _series(label: str, metric: str, rows: Rows) -> dict[str, Any]:
    series: dict[str, Any] = {"name": label, "metric": metric, "x": [], "y": []}
    for row in rows:
        if metric in row:
            series["x"].append(row["step"])
            series["y"].append(row[metric])
    return series
