"""Schedules computed by hand. Rates: 10 tokens/s prefill, 1 token/s decode, so seconds can be read off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from parl.config.roles import ClockConfig
from parl.core.types import AgentTrace, Clock, Role, ToolCall, Turn
from parl.rollout.clock import schedule

SEARCH = ToolCall("search", {"query": "x"})
ASSIGN = ToolCall("assign_task", {"agent": "a", "prompt": "p"})


def clock_config(**kwargs: Any) -> ClockConfig:
    return ClockConfig(
        **{
            "prefill_tokens_per_s": 10,
            "decode_tokens_per_s": 1,
            "decode_slots": None,
            "tool_latency_s": {"search": 4},
            **kwargs,
        }
    )


def agent(
    agent_id: str,
    turns: Sequence[tuple[int, int, tuple[ToolCall, ...]]],
    parent: str | None = None,
    spawned_at: int | None = None,
) -> AgentTrace:
    """A trace from (tokens read, tokens written, calls) of each turn; every environment call ran."""
    done: list[Turn] = []
    end = 0
    for read, written, calls in turns:
        start = end + read
        end = start + written
        num = sum(c.name == "search" and c.error is None for c in calls)
        done.append(Turn("", calls, (), start, end, (0,), env_calls=num))
    role: Role = "orchestrator" if parent is None else "subagent"
    ids = (0,) * end
    return AgentTrace(
        agent_id,
        role,
        parent,
        spawned_at,
        "n",
        "p",
        "main",
        tuple(done),
        "completed",
        "answer",
        "r",
        ids,
        ids,
        (),
    )


def spans(clock: Clock) -> dict[tuple[str, int], tuple[float, float]]:
    return {(s.agent, s.turn): (s.start_s, s.end_s) for s in clock.spans}


def swarm(*children: int, launch: int = 2) -> list[AgentTrace]:
    """Launches with 2 tokens, answers with 3; children of one turn each. Nobody reads anything."""
    boss = agent("0", [(0, launch, (ASSIGN,) * len(children)), (0, 3, ())])
    return [boss, *(agent(str(i), [(0, n, ())], "0", 0) for i, n in enumerate(children, start=1))]


def test_one_agent_pays_prefill_decode_and_tools_in_turn() -> None:
    # turn 0: 20/10 + 5 = 7, its search until 11; turn 1 reads 10 new tokens: 11 + 1 + 3 = 15
    clock = schedule([agent("0", [(20, 5, (SEARCH,)), (10, 3, ())])], clock_config())
    assert spans(clock) == {("0", 0): (0, 11), ("0", 1): (11, 15)}
    assert clock.critical_path_s == clock.serial_s == 15


def test_calls_of_one_turn_run_at_the_same_time() -> None:
    clock = schedule([agent("0", [(0, 1, (SEARCH, SEARCH, SEARCH)), (0, 1, ())])], clock_config())
    assert clock.critical_path_s == 1 + 4 + 1
    assert clock.serial_s == 1 + 12 + 1


def test_tool_slots_make_calls_wait() -> None:
    # 3 calls on 2 slots: 1..5, 1..5, 5..9
    clock = schedule(
        [agent("0", [(0, 1, (SEARCH, SEARCH, SEARCH)), (0, 1, ())])], clock_config(tool_slots=2)
    )
    assert spans(clock) == {("0", 0): (0, 9), ("0", 1): (9, 10)}


def test_two_children_run_in_parallel() -> None:
    clock = schedule(swarm(7, 5), clock_config())
    assert spans(clock) == {("0", 0): (0, 2), ("0", 1): (9, 12), ("1", 0): (2, 9), ("2", 0): (2, 7)}
    assert (clock.critical_path_s, clock.serial_s) == (12, 17)


def test_spans_follow_the_order_of_the_traces() -> None:
    assert [(s.agent, s.turn) for s in schedule(swarm(7, 5), clock_config()).spans] == [
        ("0", 0),
        ("0", 1),
        ("1", 0),
        ("2", 0),
    ]


@pytest.mark.parametrize(
    "num_slots, latency", [(1, 2 + 15 + 3), (2, 2 + 10 + 3), (3, 2 + 5 + 3), (None, 10)]
)
def test_more_children_than_decode_slots_queue(num_slots: int | None, latency: float) -> None:
    assert schedule(swarm(5, 5, 5), clock_config(decode_slots=num_slots)).critical_path_s == latency


def test_decode_slots_go_to_the_earliest_ready_then_by_agent_order() -> None:
    # One slot. All children are ready at 2; 1 decodes 2..4, searches 4..8; 2 decodes 4..8, then 3 8..11.
    # 1's second turn is ready at 8 as well, later than 3 (ready at 2): 11..12.
    boss, _, second, third = swarm(0, 4, 3)
    first = agent("1", [(0, 2, (SEARCH,)), (0, 1, ())], "0", 0)
    clock = schedule([boss, first, second, third], clock_config(decode_slots=1))
    found = spans(clock)
    assert [found[k] for k in [("1", 0), ("2", 0), ("3", 0), ("1", 1)]] == [
        (2, 8),
        (4, 8),
        (8, 11),
        (11, 12),
    ]
    assert clock.critical_path_s == 15


def test_a_slot_freed_at_an_instant_serves_who_becomes_ready_at_it() -> None:
    # Two slots. 1 and 2 decode 2..4, then search until 8, while 3 and 4 decode 4..8. At 8 the second turns of
    # 1 and 2 become ready at the very instant at which both slots become free.
    boss = agent("0", [(0, 2, (ASSIGN,) * 4), (0, 1, ())])
    pair = [agent(i, [(0, 2, (SEARCH,)), (0, 1, ())], "0", 0) for i in "12"]
    rest = [agent(i, [(0, 4, ())], "0", 0) for i in "34"]
    found = spans(schedule([boss, *pair, *rest], clock_config(decode_slots=2)))
    assert found["1", 1] == found["2", 1] == (8, 9)
    assert found["3", 0] == found["4", 0] == (4, 8)


def test_max_concurrency_admits_children_in_order_of_assignment() -> None:
    # Two at a time: 1 runs 2..8, 2 runs 2..4, then 3 runs 4..9.
    clock = schedule(swarm(6, 2, 5), clock_config(), max_concurrency=2)
    found = spans(clock)
    assert [found[i, 0] for i in "123"] == [(2, 8), (2, 4), (4, 9)]
    assert clock.critical_path_s == 12


def test_one_child_at_a_time_is_serial() -> None:
    clock = schedule(swarm(6, 2, 5), clock_config(), max_concurrency=1)
    assert clock.critical_path_s == clock.serial_s == 18


def test_a_parent_waits_for_its_own_tools_and_for_its_children() -> None:
    boss = agent("0", [(0, 1, (SEARCH, ASSIGN)), (0, 1, ())])
    fast = agent("1", [(0, 2, ())], "0", 0)
    slow = agent("1", [(0, 9, ())], "0", 0)
    assert schedule([boss, fast], clock_config()).critical_path_s == 1 + 4 + 1
    assert schedule([boss, slow], clock_config()).critical_path_s == 1 + 9 + 1


def test_children_of_a_later_turn_start_after_it() -> None:
    boss = agent("0", [(0, 1, (ASSIGN,)), (0, 1, (ASSIGN,)), (0, 1, ())])
    children = [agent("1", [(0, 5, ())], "0", 0), agent("2", [(0, 7, ())], "0", 1)]
    found = spans(schedule([boss, *children], clock_config()))
    assert (found["1", 0], found["0", 1], found["2", 0], found["0", 2]) == (
        (1, 6),
        (6, 7),
        (7, 14),
        (14, 15),
    )


def test_swarm_tools_and_malformed_calls_cost_nothing() -> None:
    calls = (ASSIGN, ToolCall("create_subagent", {}), ToolCall("search", {}, error="not JSON"))
    clock = schedule([agent("0", [(0, 1, calls), (0, 1, ())])], clock_config())
    assert clock.critical_path_s == clock.serial_s == 2


def test_only_the_calls_that_ran_take_time() -> None:
    boss = agent("0", [(0, 1, (SEARCH, ToolCall("open", {}))), (0, 1, ())])
    turn = boss.turns[0]
    one = Turn(turn.text, turn.tool_calls, (), turn.start, turn.end, (0,), env_calls=1)
    fields = {name: getattr(boss, name) for name in AgentTrace.__slots__}
    capped = AgentTrace(**{**fields, "turns": (one, boss.turns[1])})
    assert schedule([capped], clock_config(default_tool_latency_s=50)).serial_s == 1 + 4 + 1


def test_a_tool_without_a_latency_of_its_own_takes_the_default() -> None:
    clock = schedule(
        [agent("0", [(0, 1, (SEARCH,))])], clock_config(tool_latency_s={}, default_tool_latency_s=2)
    )
    assert clock.critical_path_s == 3


def test_a_child_stopped_before_its_first_turn_takes_no_time() -> None:
    boss, child = swarm(5)
    clock = schedule([boss, child, agent("2", [], "0", 0)], clock_config(), max_concurrency=1)
    assert clock.critical_path_s == 10


def test_a_child_that_outlives_the_last_turn_counts() -> None:
    boss = agent("0", [(0, 1, (ASSIGN,))])
    assert schedule([boss, agent("1", [(0, 9, ())], "0", 0)], clock_config()).critical_path_s == 10


def test_an_episode_without_turns_takes_no_time() -> None:
    assert schedule([agent("0", [])], clock_config()) == Clock(0.0, 0.0, ())
