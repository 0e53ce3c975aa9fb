"""An episode on the virtual clock: who worked when, and the chain of turns that decided how long it took.

In: an episode as it stands on disk. Out: `critical_path`, and a `Timeline` whose positions are percentages of the
episode's duration, ready to be drawn. Pure functions of the stored traces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Record = Mapping[str, Any]
Trace = Mapping[str, Any]

SWARM_CALLS = {"create_subagent": "create", "assign_task": "assign"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One turn: from the start of its generation to the end of its tool calls. `x` and `width` in percent."""

    turn: int
    x: float
    width: float
    label: str
    start_s: float
    end_s: float
    critical: bool
    malformed: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """One agent. `launch` is the point of its parent's lane from which it was launched: (x in percent, lane)."""

    agent: str
    name: str
    prompt: str
    role: str
    status: str
    stop_reason: str
    bars: tuple[Bar, ...]
    critical: bool
    launch: tuple[float, int] | None
    returns: float | None
    """Where its message reaches a waiting parent, if the parent waited for nothing longer (percent)."""


@dataclass(frozen=True, slots=True)
class Timeline:
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    """(percent, virtual seconds)."""
    waits: tuple[tuple[float, float], ...]
    """The orchestrator's gaps between turns, while its subagents work: (from, to) in percent."""
    total_s: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the critical path in one agent: turns `first` to `last` (0-based)."""

    agent: str
    name: str
    role: str
    first: int
    last: int
    start_s: float
    end_s: float


def critical_path(record: Record) -> list[tuple[str, int]]:
    """The turns that decided the episode's latency, as (agent id, turn index), in order.

    Each orchestrator turn; and after one that launched subagents, all turns of the one that ended last on the virtual
    clock (of several, the first in `traces`). Critical *steps* take the subagent with the most turns instead.
    """
    root, *children = record["traces"]
    path: list[tuple[str, int]] = []
    for turn in range(len(root["turns"])):
        path.append((root["id"], turn))
        last = _last_to_end(children, turn)
        if last is not None:
            path += [(last["id"], k) for k in range(len(last["turns"]))]
    return path


def stretches(record: Record) -> list[Stretch]:
    """The critical path in words: one entry for each change of agent."""
    traces = {t["id"]: t for t in record["traces"]}
    found: list[Stretch] = []
    for agent, turn in critical_path(record):
        trace = traces[agent]
        first = turn
        if found and found[-1].agent == agent:
            first = found.pop().first
        start, end = trace["turns"][first]["t_start"], trace["turns"][turn]["t_end"]
        found.append(Stretch(agent, trace["name"], trace["role"], first, turn, start, end))
    return found


def queued_s(record: Record) -> float:
    """Seconds of the latency in which no turn of the critical path ran: it waited for a free slot of the clock."""
    traces = {t["id"]: t for t in record["traces"]}
    turns = [traces[agent]["turns"][turn] for agent, turn in critical_path(record)]
    worked: float = sum(t["t_end"] - t["t_start"] for t in turns)
    return max(0.0, float(record["clock"]["critical_path_s"]) - worked)


def longest_launched(record: Record) -> list[tuple[int, str, int]]:
    """What critical steps count: (orchestrator turn, id of its longest subagent by turns, its number of turns)."""
    root, *children = record["traces"]
    found = []
    for turn in range(len(root["turns"])):
        launched = [t for t in children if t["spawned_at"] == turn]
        if launched:
            longest = max(launched, key=lambda t: len(t["turns"]))
            found.append((turn, longest["id"], len(longest["turns"])))
    return found


def timeline(record: Record) -> Timeline:
    """Lanes in order of `traces`: the orchestrator first, then its subagents in order of assignment."""
    traces = record["traces"]
    ends = [turn["t_end"] for t in traces for turn in t["turns"]]
    total = max([record["clock"]["critical_path_s"], *ends])
    scale = 100 / total if total else 0.0
    critical = set(critical_path(record))
    root = traces[0]
    lanes = []
    for trace in traces:
        bars = tuple(
            _bar(trace, k, scale, (trace["id"], k) in critical) for k in range(len(trace["turns"]))
        )
        lanes.append(_lane(trace, bars, root, scale))
    turns = root["turns"]
    gaps = [(a["t_end"] * scale, b["t_start"] * scale) for a, b in pairwise(turns)]
    ticks = tuple((s * scale, f"{s:g}") for s in _ticks(total))
    return Timeline(tuple(lanes), ticks, tuple(g for g in gaps if g[1] - g[0] > 0.01), total)


def turn_label(turn: Mapping[str, Any]) -> str:
    """What a turn did, in a few words. Example: `create, assign x8`, `search`, `answer`."""
    counts: dict[str, int] = {}
    for call in turn["tool_calls"]:
        name = "malformed call" if call["error"] else SWARM_CALLS.get(call["name"], call["name"])
        counts[name] = counts.get(name, 0) + 1
    return (
        ", ".join(f"{name} ×{num}" if num > 1 else name for name, num in counts.items()) or "answer"
    )


def _lane(trace: Trace, bars: tuple[Bar, ...], root: Trace, scale: float) -> Lane:
    launch = returns = None
    at = trace["spawned_at"]
    on_path = any(bar.critical for bar in bars)
    if at is not None and at < len(root["turns"]):
        launch = (root["turns"][at]["t_end"] * scale, 0)
        if on_path and at + 1 < len(root["turns"]):
            returns = root["turns"][at + 1]["t_start"] * scale
    return Lane(
        trace["id"],
        trace["name"],
        trace["prompt"],
        trace["role"],
        trace["status"],
        trace["stop_reason"],
        bars,
        on_path,
        launch,
        returns,
    )


def _bar(trace: Trace, k: int, scale: float, critical: bool) -> Bar:
    turn = trace["turns"][k]
    start, end = turn["t_start"], turn["t_end"]
    malformed = any(call["error"] for call in turn["tool_calls"])
    label = turn_label(turn)
    cut = k + 1 == len(trace["turns"]) and trace["status"] == "truncated" and label == "answer"
    return Bar(
        k,
        start * scale,
        (end - start) * scale,
        "cut off" if cut else label,
        start,
        end,
        critical,
        malformed,
    )


def _last_to_end(children: Sequence[Trace], turn: int) -> Trace | None:
    launched = [t for t in children if t["spawned_at"] == turn and t["turns"]]
    return max(launched, key=lambda t: t["turns"][-1]["t_end"], default=None)


def _ticks(total: float) -> list[float]:
    """At most eight round numbers from 0 to the total."""
    if total <= 0:
        return [0.0]
    raw = total / 6
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    return [round(k * step, 9) for k in range(int(total / step) + 1)]
