"""The overview of a run: what was trained, the result, and its evaluations, ready for the template.

Everything comes from the run's folder. The config is read as it was written, so a page needs neither
the run's plugins nor a config that this version would accept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from parl.config.loss import Loss, ShippedLoss
from parl.report.summary import summary_table, verdict
from parl.runs.alarms import check
from parl.runs.reader import RunReader

Node = Mapping[str, Any]
"""A part of a JSON tree."""

EVAL_COLUMNS = (
    ("score", "score", "{:.3f}"),
    ("critical_steps", "critical steps", "{:.1f}"),
    ("virtual_latency_s", "latency (virtual s)", "{:.1f}"),
    ("tokens_per_episode", "tokens", "{:.0f}"),
    ("spawn_rate", "spawn rate", "{:.2f}"),
    ("num_truncated", "truncated", "{:.0f}"),
    ("num_failed", "failed", "{:.0f}"),
    ("num_tasks", "tasks", "{:.0f}"),
)
"""Metric, its title, and how a value is written."""
TILE_COLUMNS = EVAL_COLUMNS[:4]
LATEST_COLUMNS = (
    ("outcome/score", "outcome", "{:.3f}"),
    ("swarm/critical_steps", "critical steps", "{:.1f}"),
    ("swarm/spawn_rate", "spawn rate", "{:.2f}"),
    ("swarm/tokens_per_episode", "tokens", "{:.0f}"),
)


def overview(reader: RunReader) -> dict[str, Any]:
    """Return the context of the template `overview.html`, without the curves."""
    summary = reader.summary()
    rows = reader.metrics()
    newest_row = rows[-1] if rows else {}
    tiles = before_after(summary) if summary else latest(newest_row)
    return {
        "setup": setup(reader.config, reader.tasks()),
        "roles": roles(reader.config),
        "terms": terms(reader.config),
        "summary": summary,
        "table": summary_table(summary) if summary else None,
        "verdict": verdict(summary) if summary else [],
        "tiles": tiles,
        "evaluations": evaluations(reader.evaluations()),
        "alarms": check(rows),
        "done_steps": len(rows),
        "num_steps": reader.config["train"]["num_steps"],
    }


# --- tiles -------------------------------------------------------------------------------


def before_after(summary: Node) -> list[dict[str, str]]:
    """Return the main held-out numbers, greedy: before RL, after it, and the baseline's."""
    heldout = summary["heldout"]
    mode = "swarm" if "swarm" in heldout["trained"] else "single"
    before = heldout["cold_start"].get(mode, {}).get("greedy")
    after = heldout["trained"].get(mode, {}).get("greedy")
    if before is None or after is None:
        return []

    # In summary.json the baseline of a single agent has the key `control`.
    if mode == "swarm":
        baseline_mode, baseline_name = "single", "single agent"
    else:
        baseline_mode, baseline_name = "control", "baseline"
    baseline = heldout["trained"].get(baseline_mode, {}).get("greedy", {})

    tiles: list[dict[str, str]] = []
    for metric, title, form in TILE_COLUMNS:
        if metric not in before or metric not in after:
            continue
        note = ""
        if metric in baseline:
            note = f"{baseline_name} {form.format(baseline[metric])}"
        tile = {
            "label": title,
            "before": form.format(before[metric]),
            "after": form.format(after[metric]),
            "note": note,
        }
        tiles.append(tile)
    return tiles


def latest(row: Mapping[str, float]) -> list[dict[str, str]]:
    """Return the numbers of the newest step, for the tiles of a run without a summary."""
    tiles: list[dict[str, str]] = []
    for metric, title, form in LATEST_COLUMNS:
        if metric in row:
            tile = {
                "label": title,
                "before": "",
                "after": form.format(row[metric]),
                "note": f"training, step {row['step']}",
            }
            tiles.append(tile)
    return tiles


# --- what was trained --------------------------------------------------------------------


def setup(config: Node, tasks: Node) -> list[tuple[str, str]]:
    """Return the run's config in a few (label, text) lines.

    Args:
        config: the config as JSON.
        tasks: split -> `num` and `fingerprint`.
    """
    train = config["train"]
    loss = config["loss"]
    batch = f"{train['tasks_per_step']} tasks × {train['group_size']} attempts"
    splits = ", ".join(f"{split['num']} {name}" for name, split in tasks.items())
    if loss["type"] == "kimi_k2_5":
        loss_knobs = ["alpha", "beta", "tau"]
    elif loss["type"] in get_args(ShippedLoss):
        loss_knobs = ["clip_low", "clip_high"]
    else:
        # A plugin's loss: its knobs are the keys that the section does not have itself.
        loss_knobs = [key for key in loss if key not in Loss.model_fields]
    shown_loss = {knob: loss[knob] for knob in loss_knobs}

    lines: list[tuple[str, str]] = []
    for environment in config["env"].get("mix", [config["env"]]):
        kwargs = _knobs(environment.get("kwargs", {}))
        label = f"Environment{_ability(environment)}"
        lines.append((label, f"{environment['id']} {kwargs}".strip()))
    lines.append(("Tasks", splits))
    lines.append(("Mode", _mode(config["swarm"])))
    lines.append(("Training", f"{train['num_steps']} steps of {batch}, {train['mode']}"))
    lines.append(("Loss", f"{loss['type']} {_knobs(shown_loss)}"))
    lines.append(("Seed", str(config["seed"])))
    return [line for line in lines if line[1]]


def _ability(environment: Node) -> str:
    """Return the ability and the weight of a part of a mix; empty for a single environment."""
    if "ability" not in environment:
        return ""
    return f", {environment['ability']} ({environment['weight']:g})"


def _mode(swarm: Node) -> str:
    if swarm["mode"] != "swarm":
        return "single agent"
    limits = [f"at most {swarm['max_subagents']} subagents"]
    if swarm["critical_step_budget"]:
        limits.append(f"{swarm['critical_step_budget']} critical steps in training")
    return f"{swarm['mode']} ({', '.join(limits)})"


def roles(config: Node) -> list[dict[str, str]]:
    """Return a row for each role: its policy, the model behind it, and when it learns."""
    names = ["orchestrator"]
    if config["swarm"]["mode"] == "swarm":
        names.append("subagent")
    rows: list[dict[str, str]] = []
    for name in names:
        role = config["roles"][name]
        policy = config["policies"][role["policy"]]
        model = str(policy["model"])
        if policy.get("adapter"):
            model = f"adapter on {policy['adapter']['base']}"
        limits = role["limits"]
        row = {
            "role": name,
            "policy": role["policy"],
            "model": model,
            "trainable": _trainable(role["trainable"]),
            "limits": f"{limits['turns']} turns, window {limits['context_tokens']}",
        }
        rows.append(row)
    return rows


def _trainable(value: Any) -> str:
    """Put `roles.ROLE.trainable` into words.

    Example: `frozen steps 0 to 19, learns from step 20`
    """
    if isinstance(value, bool):
        return "learns" if value else "frozen"
    phases: list[str] = []
    start = "from step 0"
    for index, phase in enumerate(value):
        until = phase.get("until")
        activity = _activity(phase["value"])
        is_last = until is None or index + 1 == len(value)
        if is_last:
            phases.append(f"{activity} {start}")
        elif isinstance(until, Mapping):
            skill = f"{until['metric']} reaches {until['value']:g}"
            phases.append(f"{activity} {start} until {skill}, at most {until['max_steps']} steps")
            start = "from then on"
        else:
            steps = f"{start} to {until - 1}".replace("from step", "steps")
            phases.append(f"{activity} {steps}")
            start = f"from step {until}"
    return ", ".join(phases)


def _activity(value: Any) -> str:
    """Say what a role does in a phase: it learns, is frozen, or both in turn."""
    if isinstance(value, Mapping):
        first = "learns" if value["first"] else "frozen"
        return f"by turns of {value['steps']} ({first} first)"
    return "learns" if value else "frozen"


def terms(config: Node) -> list[dict[str, str]]:
    """Return a row for each reward term: weight or schedule, and its other settings."""
    rows: list[dict[str, str]] = []
    for name, term in config["reward"]["terms"].items():
        knobs = dict(term)
        weight = knobs.pop("weight", 1.0)
        rows.append({"name": name, "weight": _weight(weight), "knobs": _knobs(knobs)})
    return rows


def _weight(value: Any) -> str:
    """Example: `0.3 → 0 over steps 0 to 9`."""
    if not isinstance(value, Mapping):
        return f"{value:g}"
    start_step = value.get("from_step", 0)
    return f"{value['start']:g} → {value['end']:g} over steps {start_step} to {value['to_step']}"


def _knobs(values: Node) -> str:
    """Example: `(n: [4, 12], two_hop: 0.25)`."""
    text = ", ".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in values.items())
    return f"({text})" if text else ""


# --- evaluations -------------------------------------------------------------------------


def evaluations(files: Node) -> dict[str, Any]:
    """Return a table of all evaluations.

    Args:
        files: name of a file in eval/ -> its content.
    Returns:
        `titles` of the metrics that any of them has, and `rows` of texts, the name first.
    """
    results: list[tuple[str, Node]] = []
    for name, content in files.items():
        results.extend(_results(name, content))
    columns = [column for column in EVAL_COLUMNS if _is_measured(column[0], results)]
    rows: list[list[str]] = []
    for name, metrics in results:
        cells = [name]
        for metric, _, form in columns:
            cells.append(form.format(metrics[metric]) if metric in metrics else "")
        rows.append(cells)
    return {"titles": [title for _, title, _ in columns], "rows": rows}


def _results(name: str, content: Node) -> Iterator[tuple[str, Node]]:
    """Yield (name, metrics) of each result in a file.

    Files differ in their nesting (by mode, by decoding, or not at all). Metrics are where `num_tasks`
    is.
    """
    if "num_tasks" in content:
        yield name, content
        return
    for key, inner in content.items():
        if isinstance(inner, Mapping):
            yield from _results(f"{name}, {key}", inner)


def _is_measured(metric: str, results: Sequence[tuple[str, Node]]) -> bool:
    return any(metric in metrics for _, metrics in results)
