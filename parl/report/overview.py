"""The overview's facts: what was trained, how it came out, which evaluations there are.

In: a `RunReader`. Out: plain lists and mappings for the template. Everything comes from the run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from parl.report.summary import summary_table, verdict
from parl.runs.alarms import check
from parl.runs.reader import RunReader

Node = Mapping[str, Any]

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


def overview(reader: RunReader) -> dict[str, Any]:
    """What the template `overview.html` needs, but for the curves."""
    summary = reader.summary()
    rows = reader.metrics()
    return {
        "setup": setup(reader.config, reader.tasks()),
        "roles": roles(reader.config),
        "terms": terms(reader.config),
        "summary": summary,
        "table": summary_table(summary) if summary else None,
        "verdict": verdict(summary) if summary else [],
        "tiles": before_after(summary) if summary else latest(rows[-1] if rows else {}),
        "evaluations": evaluations(reader.evaluations()),
        "alarms": check(reader.metrics()),
        "done_steps": len(rows),
        "num_steps": reader.config["train"]["num_steps"],
    }


def before_after(summary: Node) -> list[dict[str, str]]:
    """The held-out numbers that matter, greedy: before RL, after it, and those of the control."""
    held = summary["heldout"]
    mode = "swarm" if "swarm" in held["trained"] else "single"
    before, after = (
        held["cold_start"].get(mode, {}).get("greedy"),
        held["trained"].get(mode, {}).get("greedy"),
    )
    beside, whose = ("single", "single agent") if mode == "swarm" else ("control", "control")
    control = held["trained"].get(beside, {}).get("greedy", {})
    if before is None or after is None:
        return []
    return [
        {
            "label": title,
            "before": form.format(before[key]),
            "after": form.format(after[key]),
            "note": f"{whose} {form.format(control[key])}" if key in control else "",
        }
        for key, title, form in EVAL_COLUMNS[:4]
        if key in before and key in after
    ]


def latest(row: Mapping[str, float]) -> list[dict[str, str]]:
    """The same place while there is no summary yet: the newest step."""
    shown = (
        ("outcome/score", "outcome", "{:.3f}"),
        ("swarm/critical_steps", "critical steps", "{:.1f}"),
        ("swarm/spawn_rate", "spawn rate", "{:.2f}"),
        ("swarm/tokens_per_episode", "tokens", "{:.0f}"),
    )
    note = f"training, step {row['step']}" if row else ""
    return [
        {"label": title, "before": "", "after": form.format(row[key]), "note": note}
        for key, title, form in shown
        if key in row
    ]


def setup(config: Node, tasks: Node) -> list[tuple[str, str]]:
    """The run's config in a few lines."""
    train, swarm, parts = (
        config["train"],
        config["swarm"],
        config["env"].get("mix", [config["env"]]),
    )
    splits = ", ".join(f"{split['num']} {name}" for name, split in tasks.items())
    loss = config["loss"]
    knobs = ("alpha", "beta", "tau") if loss["type"] == "kimi_k2_5" else ("clip_low", "clip_high")
    batch = f"{train['tasks_per_step']} tasks × {train['group_size']} attempts"
    limits = [f"at most {swarm['max_subagents']} subagents"]
    if swarm["critical_step_budget"]:
        limits.append(f"{swarm['critical_step_budget']} critical steps in training")
    found = [
        *(
            (f"Environment{_of(part)}", f"{part['id']} {_knobs(part.get('kwargs', {}))}".strip())
            for part in parts
        ),
        ("Tasks", splits),
        (
            "Mode",
            f"{swarm['mode']} ({', '.join(limits)})"
            if swarm["mode"] == "swarm"
            else "single agent",
        ),
        ("Training", f"{train['num_steps']} steps of {batch}, {train['mode']}"),
        ("Loss", f"{loss['type']} {_knobs({k: loss[k] for k in knobs})}"),
        ("Seed", str(config["seed"])),
    ]
    return [(label, value) for label, value in found if value]


def _of(part: Node) -> str:
    """Which part of a mix an environment is, and its weight."""
    return f", {part['ability']} ({part['weight']:g})" if "ability" in part else ""


def roles(config: Node) -> list[dict[str, str]]:
    """Who is played by which policy, and whether it learns."""
    names = (
        ("orchestrator", "subagent") if config["swarm"]["mode"] == "swarm" else ("orchestrator",)
    )
    found = []
    for name in names:
        role = config["roles"][name]
        policy = config["policies"][role["policy"]]
        limits = f"{role['limits']['turns']} turns, window {role['limits']['context_tokens']}"
        found.append(
            {
                "role": name,
                "policy": role["policy"],
                "model": f"adapter on {policy['adapter']['base']}"
                if policy.get("adapter")
                else str(policy["model"]),
                "trainable": _trainable(role["trainable"]),
                "limits": limits,
            }
        )
    return found


def terms(config: Node) -> list[dict[str, str]]:
    """The reward terms: weight or schedule, and knobs."""
    return [
        {
            "name": name,
            "weight": _weight(term.get("weight", 1.0)),
            "knobs": _knobs({k: v for k, v in term.items() if k != "weight"}),
        }
        for name, term in config["reward"]["terms"].items()
    ]


def evaluations(found: Node) -> dict[str, Any]:
    """A table of all evaluations in eval/*.json, whatever their nesting: titles, and rows of texts."""
    leaves = [
        (name, result) for file, value in found.items() for name, result in _leaves(file, value)
    ]
    shown = [c for c in EVAL_COLUMNS if any(c[0] in result for _, result in leaves)]
    rows = [
        [name, *(form.format(result[key]) if key in result else "" for key, _, form in shown)]
        for name, result in leaves
    ]
    return {"titles": [title for _, title, _ in shown], "rows": rows}


def _leaves(name: str, value: Node) -> Iterator[tuple[str, Node]]:
    if "num_tasks" in value:
        yield name, value
        return
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(f"{name}, {key}", inner)


def _trainable(value: Any) -> str:
    if isinstance(value, bool):
        return "learns" if value else "frozen"
    phases, start = [], "from step 0"
    for i, phase in enumerate(value):
        until, learns = phase.get("until"), phase["value"]
        if isinstance(learns, Mapping):
            first = "learns" if learns["first"] else "frozen"
            what = f"by turns of {learns['steps']} ({first} first)"
        else:
            what = "learns" if learns else "frozen"
        last = until is None or i + 1 == len(value)
        if not last and isinstance(until, Mapping):
            skill = f"{until['metric']} reaches {until['value']:g}"
            phases.append(f"{what} {start} until {skill}, at most {until['max_steps']} steps")
            start = "from then on"
        else:
            phases.append(
                f"{what} {start}"
                if last
                else f"{what} {start} to {until - 1}".replace("from step", "steps")
            )
            start = start if last else f"from step {until}"
    return ", ".join(phases)


def _weight(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['start']:g} → {value['end']:g} over steps {value.get('from_step', 0)} to {value['to_step']}"
    return f"{value:g}"


def _knobs(values: Node) -> str:
    """Example: (n: [4, 12], two_hop: 0.25)."""
    text = ", ".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in values.items())
    return f"({text})" if text else ""
