"""An episode on the virtual clock: when each agent worked, and the turns that decided its latency.

Pure functions of stored episodes (`parl.runs.records`). Positions are percentages of the episode's
duration, so a page can be drawn at any width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Record = Mapping[str, Any]
"""An episode as it is stored."""
Trace = Mapping[str, Any]
"""One agent of a stored episode."""

SWARM_CALLS = {"create_subagent": "create", "assign_task": "assign"}
"""Short names of the swarm's own tools in labels."""
NUM_INTERVALS = 6
"""Intervals between ticks that a duration is divided into, before their length is rounded up."""
# A gap below this (in percent) could not be seen, and floats leave such gaps between turns.
SMALLEST_GAP = 0.01


@dataclass(frozen=True, slots=True)
class Bar:
    """One turn, from the start of its generation to the end of its tool calls."""

    turn: int
    x: float
    """Percent."""
    width: float
    """Percent."""
    label: str
    start_s: float
    end_s: float
    critical: bool
    """On the critical path."""
    malformed: bool
    """The turn has a call that could not be parsed."""


@dataclass(frozen=True, slots=True)
class Lane:
    """The row of one agent."""

    agent: str
    name: str
    prompt: str
    role: str
    status: str
    stop_reason: str
    bars: tuple[Bar, ...]
    critical: bool
    launch: tuple[float, int] | None
    """Where its parent launched it: (percent, index of the parent's lane)."""
    returns: float | None
    """Where its message reaches the parent that waited for it (percent). Only on the critical path:
    of the others, the parent waited for something longer."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The drawing of an episode."""

    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    """(percent, virtual seconds as text)."""
    waits: tuple[tuple[float, float], ...]
    """Gaps between the orchestrator's turns, while subagents work: (from, to) in percent."""
    total_s: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the critical path in one agent: the turns `first` to `last`, from 0."""

    agent: str
    name: str
    role: str
    first: int
    last: int
    start_s: float
    end_s: float


# --- the critical path -------------------------------------------------------------------


def critical_path(record: Record) -> list[tuple[str, int]]:
    """Return the turns that decided the episode's latency, as (agent id, turn index), in order.

    They are all turns of the orchestrator and, after a turn that launched subagents, all turns of the
    subagent that ended last on the virtual clock (of several, the first in `traces`). Critical *steps*
    (Kimi K2.5, section 3) count the subagent with the most turns instead.
    """
    orchestrator, *subagents = record["traces"]
    path: list[tuple[str, int]] = []
    for turn in range(len(orchestrator["turns"])):
        path.append((orchestrator["id"], turn))
        last = _last_to_end(subagents, turn)
        if last is not None:
            path.extend((last["id"], k) for k in range(len(last["turns"])))
    return path


def _last_to_end(subagents: Sequence[Trace], turn: int) -> Trace | None:
    """Return the subagent launched by `turn` that ended last; None where no turn of one ran."""
    launched = [trace for trace in subagents if trace["spawned_at"] == turn and trace["turns"]]
    return max(launched, key=lambda trace: trace["turns"][-1]["t_end"], default=None)


def stretches(record: Record) -> list[Stretch]:
    """Return the critical path with one entry for each change of agent."""
    traces = _by_id(record)
    result: list[Stretch] = []
    for agent, turn in critical_path(record):
        trace = traces[agent]
        first = turn
        if result and result[-1].agent == agent:
            # The same agent goes on: its entry becomes longer.
            first = result.pop().first
        result.append(
            Stretch(
                agent=agent,
                name=trace["name"],
                role=trace["role"],
                first=first,
                last=turn,
                start_s=trace["turns"][first]["t_start"],
                end_s=trace["turns"][turn]["t_end"],
            )
        )
    return result


def queued_s(record: Record) -> float:
    """Return how long the critical path waited for a free slot of the clock, in virtual seconds."""
    traces = _by_id(record)
    working_s = 0.0
    for agent, turn_index in critical_path(record):
        turn = traces[agent]["turns"][turn_index]
        working_s += turn["t_end"] - turn["t_start"]
    return max(0.0, float(record["clock"]["critical_path_s"]) - working_s)


def longest_launched(record: Record) -> list[tuple[int, str, int]]:
    """Return what critical steps count, for each turn of the orchestrator that launched subagents.

    Returns:
        (turn, id of the launched subagent with the most turns, its number of turns)
    """
    orchestrator, *subagents = record["traces"]
    result: list[tuple[int, str, int]] = []
    for turn in range(len(orchestrator["turns"])):
        launched = [trace for trace in subagents if trace["spawned_at"] == turn]
        if launched:
            longest = max(launched, key=lambda trace: len(trace["turns"]))
            result.append((turn, longest["id"], len(longest["turns"])))
    return result


def _by_id(record: Record) -> dict[str, Trace]:
    return {trace["id"]: trace for trace in record["traces"]}


# --- the drawing -------------------------------------------------------------------------


def timeline(record: Record) -> Timeline:
    """Return the drawing of an episode.

    Lanes are in the order of `traces`: the orchestrator, then its subagents in order of assignment.
    """
    traces = record["traces"]
    orchestrator = traces[0]
    total_s = _duration_s(record)
    percent_per_s = 100 / total_s if total_s else 0.0
    critical = set(critical_path(record))

    lanes: list[Lane] = []
    for trace in traces:
        bars: list[Bar] = []
        for index in range(len(trace["turns"])):
            bars.append(_bar(trace, index, percent_per_s, (trace["id"], index) in critical))
        lanes.append(_lane(trace, tuple(bars), orchestrator, percent_per_s))

    waits: list[tuple[float, float]] = []
    for turn, following in pairwise(orchestrator["turns"]):
        start = turn["t_end"] * percent_per_s
        end = following["t_start"] * percent_per_s
        if end - start > SMALLEST_GAP:
            waits.append((start, end))
    ticks = tuple((seconds * percent_per_s, f"{seconds:g}") for seconds in _ticks(total_s))
    return Timeline(tuple(lanes), ticks, tuple(waits), total_s)


def _duration_s(record: Record) -> float:
    """Return the end of the critical path or of the last turn of any agent, whichever is later."""
    duration: float = record["clock"]["critical_path_s"]
    for trace in record["traces"]:
        for turn in trace["turns"]:
            duration = max(duration, turn["t_end"])
    return duration


def turn_label(turn: Mapping[str, Any]) -> str:
    """Say in a few words what a turn did.

    Example: `create, assign ×8`, `search`, `answer`
    """
    counts: dict[str, int] = {}
    for call in turn["tool_calls"]:
        name = "malformed call" if call["error"] else SWARM_CALLS.get(call["name"], call["name"])
        counts[name] = counts.get(name, 0) + 1
    if not counts:
        return "answer"
    return ", ".join(f"{name} ×{num}" if num > 1 else name for name, num in counts.items())


def _lane(trace: Trace, bars: tuple[Bar, ...], orchestrator: Trace, percent_per_s: float) -> Lane:
    launch: tuple[float, int] | None = None
    returns: float | None = None
    is_critical = any(bar.critical for bar in bars)
    launching_turn = trace["spawned_at"]
    parent_turns = orchestrator["turns"]
    if launching_turn is not None and launching_turn < len(parent_turns):
        launch = (parent_turns[launching_turn]["t_end"] * percent_per_s, 0)
        # The parent's next turn starts when the last of its subagents has answered.
        if is_critical and launching_turn + 1 < len(parent_turns):
            returns = parent_turns[launching_turn + 1]["t_start"] * percent_per_s
    return Lane(
        agent=trace["id"],
        name=trace["name"],
        prompt=trace["prompt"],
        role=trace["role"],
        status=trace["status"],
        stop_reason=trace["stop_reason"],
        bars=bars,
        critical=is_critical,
        launch=launch,
        returns=returns,
    )


def _bar(trace: Trace, index: int, percent_per_s: float, critical: bool) -> Bar:
    turn = trace["turns"][index]
    start_s = turn["t_start"]
    end_s = turn["t_end"]
    label = turn_label(turn)
    is_last = index + 1 == len(trace["turns"])
    if is_last and trace["status"] == "truncated" and label == "answer":
        # A text without a call looks like an answer, but a limit ended it.
        label = "cut off"
    return Bar(
        turn=index,
        x=start_s * percent_per_s,
        width=(end_s - start_s) * percent_per_s,
        label=label,
        start_s=start_s,
        end_s=end_s,
        critical=critical,
        malformed=any(call["error"] for call in turn["tool_calls"]),
    )


def _ticks(total_s: float) -> list[float]:
    """Return about six round numbers from 0 to the total."""
    if total_s <= 0:
        return [0.0]
    shortest = total_s / NUM_INTERVALS
    power = 10 ** math.floor(math.log10(shortest))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= shortest)
    # 3 * 0.1 is 0.30000000000000004, which would be a long label.
    return [round(k * step, 9) for k in range(int(total_s / step) + 1)]
