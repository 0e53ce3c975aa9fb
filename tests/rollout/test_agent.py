"""One agent, played by a script: its limits, and what its trace records."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from parl.config.roles import Limits
from parl.core.types import AgentTrace
from parl.env.base import ANSWER_NOW
from tests.support.helpers import (
    Characters,
    answers,
    assign,
    call,
    create,
    roles,
    run,
    script,
    turns,
)

PEEK = call("peek", at="x")


def stop(limits: Limits, said: Sequence[str], max_tokens: int = 10_000) -> AgentTrace:
    return run(script(said), who=roles(limits, max_tokens=max_tokens)).orchestrator


def test_turns() -> None:
    trace = stop(Limits(turns=2, context_tokens=10_000), [PEEK] * 9)
    assert (trace.status, trace.stop_reason, len(trace.turns), trace.result) == (
        "truncated",
        "turns",
        2,
        "",
    )


def test_max_tokens_cuts_a_turn_and_its_text_is_the_answer_so_far() -> None:
    trace = stop(Limits(turns=9, context_tokens=10_000), ["blue sky"], max_tokens=4)
    assert (trace.status, trace.stop_reason, trace.result, trace.num_generated) == (
        "truncated",
        "max_tokens",
        "blue",
        4,
    )


def test_a_cut_call_is_not_run() -> None:
    trace = stop(
        Limits(turns=9, context_tokens=10_000), [turns(PEEK, "and more")], max_tokens=len(PEEK) + 3
    )
    assert (trace.stop_reason, trace.result, answers(trace), trace.turns[0].env_calls) == (
        "max_tokens",
        "",
        (),
        0,
    )


def test_tokens() -> None:
    trace = stop(
        Limits(turns=9, tokens=len(PEEK) + 1 + 4, context_tokens=10_000), [PEEK, "blue sky"]
    )
    assert (trace.status, trace.stop_reason, trace.result) == ("truncated", "tokens", "blue")
    exact = stop(Limits(turns=9, tokens=len(PEEK) + 1, context_tokens=10_000), [PEEK, "blue"])
    assert (exact.stop_reason, len(exact.turns)) == ("tokens", 1)


def prompt_length(said: str) -> int:
    return stop(Limits(turns=1, context_tokens=10_000), [said]).turns[0].start


@pytest.mark.parametrize(
    "room, num_turns", [(0, 0), (3, 1), (len(PEEK) + 1 + 3, 1), (len(PEEK) + 1 + 4, 2)]
)
def test_the_context_window(room: int, num_turns: int) -> None:
    """After the first turn (PEEK and a stop token) come the observation `[x]`, 3 tokens, and the next turn."""
    start = prompt_length(PEEK)
    trace = stop(Limits(turns=9, context_tokens=start + room), [PEEK, "blue"])
    assert (trace.status, trace.stop_reason, len(trace.turns)) == (
        "truncated",
        "context_tokens",
        num_turns,
    )
    assert len(trace.token_ids) <= start + room


def test_on_overflow_answer_replaces_the_observation() -> None:
    long = call("peek", at="y" * 300)
    limits = Limits(turns=9, context_tokens=800, on_overflow="answer")
    trace = stop(limits, [PEEK, long, "blue"])
    assert [answers(trace, i) for i in range(3)] == [("x",), (ANSWER_NOW,), ()]
    read = "".join(map(chr, trace.token_ids))
    assert f"[{ANSWER_NOW}]" in read
    assert "yyyy]" not in read
    assert (trace.status, trace.result) == ("completed", "blue")


def test_on_overflow_answer_asks_once() -> None:
    limits = Limits(turns=9, context_tokens=800, on_overflow="answer")
    trace = stop(limits, [call("peek", at="y" * 300)] + [PEEK] * 5)
    assert (trace.status, trace.stop_reason, len(trace.turns)) == ("truncated", "context_tokens", 2)


def test_the_record_is_what_was_fed_and_sampled() -> None:
    play = script(
        [turns(create("a"), assign("a", "red"), "and"), turns(PEEK, PEEK), "blue"],
        red=[PEEK, "RED"],
    )
    renderer = Characters()
    for trace in run(play).traces:
        ids: list[int] = list(trace.token_ids[: trace.turns[0].start])
        mask = [0] * len(ids)
        for turn in trace.turns:
            said = [*renderer.encode(turn.text), 0]
            assert (turn.start, turn.end) == (len(ids), len(ids) + len(said))
            heard = renderer.observe(turn.observations)
            ids, mask = ids + said + heard, mask + [1] * len(said) + [0] * len(heard)
        assert (list(trace.token_ids), list(trace.mask)) == (ids, mask)
        assert len(trace.logprobs) == len(ids)
