"""The critical path by hand, and the positions that the timeline draws."""

from __future__ import annotations

from typing import Any

import pytest

from parl.report.timeline import (
    critical_path,
    longest_launched,
    queued_s,
    stretches,
    timeline,
    turn_label,
)


def turn(start: float, end: float, *calls: str) -> dict[str, Any]:
    return {
        "t_start": start,
        "t_end": end,
        "tool_calls": [{"name": c, "arguments": {}, "error": None} for c in calls],
    }


def trace(
    agent: str, at: int | None, *turns: dict[str, Any], status: str = "completed"
) -> dict[str, Any]:
    return {
        "id": agent,
        "role": "orchestrator" if at is None else "subagent",
        "name": f"name {agent}",
        "prompt": "",
        "parent": None if at is None else "0",
        "spawned_at": at,
        "status": status,
        "stop_reason": "",
        "turns": list(turns),
    }


def record(*traces: dict[str, Any], latency: float) -> dict[str, Any]:
    return {"traces": list(traces), "clock": {"critical_path_s": latency, "serial_s": 0.0}}


# 0: |--turn 0--|        |-turn 1-|   |-turn 2-|     turn 0 launches 1 (2 turns, ends at 5) and 2 (1 turn, ends at 6);
#               1: 2-3 4-5        |                  turn 1 launches 3 and 4, which end together at 9
#               2: 2------6       3: 8-9, 4: 8-9
TWO_STAGES = record(
    trace(
        "0",
        None,
        turn(0, 2, "assign_task", "assign_task"),
        turn(6, 8, "assign_task", "assign_task"),
        turn(9, 10),
    ),
    trace("1", 0, turn(2, 3, "search"), turn(4, 5)),
    trace("2", 0, turn(2, 6)),
    trace("3", 1, turn(8, 9)),
    trace("4", 1, turn(8, 9)),
    latency=10,
)


def test_the_path_takes_who_ended_last_and_of_several_the_first() -> None:
    assert critical_path(TWO_STAGES) == [("0", 0), ("2", 0), ("0", 1), ("3", 0), ("0", 2)]


def test_critical_steps_take_the_most_turns_instead() -> None:
    assert longest_launched(TWO_STAGES) == [(0, "1", 2), (1, "3", 1)]


def test_an_agent_alone_is_its_own_path() -> None:
    alone = record(trace("0", None, turn(0, 1, "search"), turn(1, 2)), latency=2)
    assert critical_path(alone) == [("0", 0), ("0", 1)]
    [whole] = stretches(alone)
    assert (whole.agent, whole.first, whole.last, whole.start_s, whole.end_s) == ("0", 0, 1, 0, 2)


def test_a_subagent_without_a_turn_is_never_on_the_path() -> None:
    assert critical_path(record(trace("0", None, turn(0, 1)), trace("1", 0), latency=1)) == [
        ("0", 0)
    ]


def test_a_failed_episode_has_no_path_and_no_length() -> None:
    nothing = record(trace("0", None, status="failed"), latency=0)
    assert critical_path(nothing) == []
    assert timeline(nothing).total_s == 0


def test_waiting_for_a_slot_is_told() -> None:
    late = record(
        trace("0", None, turn(0, 2, "assign_task"), turn(5, 6)),
        trace("1", 0, turn(3, 5)),
        latency=6,
    )
    assert queued_s(late) == pytest.approx(1)
    assert queued_s(TWO_STAGES) == pytest.approx(0)


def test_positions_are_percentages_of_the_whole() -> None:
    drawn = timeline(TWO_STAGES)
    bars = {(lane.agent, bar.turn): bar for lane in drawn.lanes for bar in lane.bars}
    assert (bars["2", 0].x, bars["2", 0].width) == (20, 40)
    assert {key for key, bar in bars.items() if bar.critical} == set(critical_path(TWO_STAGES))
    assert [lane.launch for lane in drawn.lanes] == [None, (20, 0), (20, 0), (80, 0), (80, 0)]
    assert [lane.returns for lane in drawn.lanes] == [None, None, 60, 90, None]
    assert drawn.waits == ((20, 60), (80, 90))
    assert drawn.ticks[0] == (0, "0")
    assert drawn.ticks[-1] == (100, "10")


def test_a_turn_is_named_by_what_it_did() -> None:
    assert turn_label(TWO_STAGES["traces"][0]["turns"][0]) == "assign ×2"
    assert turn_label(turn(0, 1)) == "answer"
    broken = {"tool_calls": [{"name": "", "arguments": {}, "error": "error: not JSON"}]}
    assert turn_label(broken) == "malformed call"
