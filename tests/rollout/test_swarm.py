"""The swarm runtime, played by scripts: who is answered what, what counts, and how an episode ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parl.config.credit import Credit
from parl.config.roles import Limits, Swarm
from parl.config.rollout import Rollout
from parl.core.messages import Message
from parl.core.types import Episode
from parl.env.base import AgentEnv
from parl.env.demonstrations import Segment
from parl.policy.base import Generation, Request
from parl.policy.engines.scripted import ScriptedEngine
from parl.rollout.pool.local import LocalPool
from tests.support.helpers import (
    TASK,
    Characters,
    WordsEnv,
    answers,
    assign,
    call,
    create,
    jobs,
    roles,
    run,
    runner,
    script,
    turns,
)

PEEK = call("peek", at="x")


# --- delegation ------------------------------------------------------------------------------------------------------


def test_create_and_assign_share_a_turn_in_order() -> None:
    early = turns(assign("a", "red"), create("a", "painter"), assign("a", "red"))
    episode = run(script([early, "blue"], red=["RED"]))
    assert answers(episode.orchestrator) == ("error: no subagent 'a'; create it first", "ok", "RED")
    assert (episode.num_assigned, episode.num_refused) == (1, 1)
    (child,) = episode.subagents
    assert (child.id, child.role, child.parent, child.spawned_at, child.name) == (
        "1",
        "subagent",
        "0",
        0,
        "a",
    )
    assert "".join(map(chr, child.token_ids)).startswith("<peek>[painter|red]RED")
    assert (episode.status, episode.answer, episode.outcome) == (
        "completed",
        "blue",
        {"score": 1.0},
    )


def test_a_created_agent_stays_and_every_assignment_is_a_new_context() -> None:
    play = script(
        [turns(create("a"), assign("a", "red")), assign("a", "green"), "blue"],
        red=["1"],
        green=["2"],
    )
    episode = run(play)
    assert [t.spawned_at for t in episode.subagents] == [0, 1]
    assert "red" not in "".join(map(chr, episode.subagents[1].token_ids))


def test_a_subagent_has_the_environments_tools_and_not_the_swarms() -> None:
    play = script(
        [turns(create("a"), assign("a", "red")), "blue"], red=[turns(PEEK, create("b")), "RED"]
    )
    (child,) = run(play).subagents
    assert answers(child) == ("x", "error: no tool 'create_subagent'. Allowed: peek.")


class Together(ScriptedEngine):
    """Answers a subagent only when `num` of them wait."""

    def __init__(self, play: Callable[..., Sequence[Segment]], num: int) -> None:
        super().__init__(play, Characters())
        self._barrier = asyncio.Barrier(num)

    async def generate(self, request: Request) -> Generation:
        if not request.session.endswith("/0"):
            await self._barrier.wait()
        return await super().generate(request)


def test_assignments_of_one_turn_run_at_once() -> None:
    play = script(
        [turns(create("a"), assign("a", "red"), assign("a", "green"), assign("a", "grey")), "x"],
        other=["1"],
    )
    made = runner(play)

    async def episode() -> Episode:
        engine = Together(play, 3)
        handles = {r: type(h)(h.name, h.renderer, engine) for r, h in made.policies.items()}
        waits = type(made)(handles, made.roles, made.swarm, made.clock)
        done = waits.run(WordsEnv(), TASK, episode_id="e", group="g", step=0, seed="s")
        return await asyncio.wait_for(done, 5)

    assert [t.prompt for t in asyncio.run(episode()).subagents] == ["red", "green", "grey"]


@pytest.mark.parametrize(
    "bad, error",
    [
        (assign("b", "red"), "error: no subagent 'b'; create it first"),
        (call("assign_task", agent="a"), "error: assign_task needs agent and prompt, both texts"),
        (
            call("assign_task", prompt="red"),
            "error: assign_task needs agent and prompt, both texts",
        ),
        (
            call("assign_task", agent="a", prompt=""),
            "error: assign_task needs agent and prompt, both texts",
        ),
        (
            call("assign_task", agent=["a"], prompt={"x": 1}),
            "error: assign_task needs agent and prompt, both texts",
        ),
        ('@{"name": "assign_task", "arguments": "a"}', "error: arguments must be an object"),
    ],
)
def test_a_bad_assignment_is_refused_in_words(bad: str, error: str) -> None:
    episode = run(script([turns(create("a"), bad), "blue"]))
    assert answers(episode.orchestrator) == ("ok", error)
    assert (episode.status, episode.num_assigned, episode.num_refused) == ("completed", 0, 1)


@pytest.mark.parametrize(
    "bad, error",
    [
        ("@{not json", "error: not JSON"),
        (call("fly"), "error: no tool 'fly'. Allowed: peek"),
        (call("peek"), "error: peek: at: Field required"),
        (
            call("create_subagent", name="a"),
            "error: create_subagent needs name and system_prompt, both texts",
        ),
        (
            call("create_subagent", name="", system_prompt=""),
            "error: create_subagent needs name and system_prompt",
        ),
    ],
)
def test_any_other_bad_call_is_answered_and_is_no_refused_assignment(bad: str, error: str) -> None:
    episode = run(script([bad, "blue"]))
    assert answers(episode.orchestrator)[0].startswith(error)
    assert (episode.status, episode.num_refused) == ("completed", 0)


@pytest.mark.parametrize("refuse, launched", [(True, 1), (False, 3)])
def test_duplicates(refuse: bool, launched: int) -> None:
    again = turns(create("a"), assign("a", "red"), assign("a", "Red "))
    episode = run(
        script([again, assign("a", "red"), "blue"], other=["RED"]), Swarm(refuse_duplicates=refuse)
    )
    assert (episode.num_assigned, episode.num_refused) == (launched, 3 - launched)
    assert (answers(episode.orchestrator)[2] == "error: duplicate task") is refuse


def test_max_subagents_counts_over_the_whole_episode() -> None:
    first = turns(create("a"), assign("a", "1"), assign("a", "2"), assign("a", "3"))
    episode = run(script([first, assign("a", "4"), "blue"], other=["ok"]), Swarm(max_subagents=2))
    full = "error: at most 2 subagents per episode"
    assert answers(episode.orchestrator) == ("ok", "ok", "ok", full)
    assert answers(episode.orchestrator, 1) == (full,)
    assert (episode.num_assigned, episode.num_refused) == (2, 2)


def test_env_calls_per_turn_of_both_roles() -> None:
    limits = Limits(turns=5, context_tokens=10_000, env_calls_per_turn=1)
    two = turns(call("peek", at="p"), "@{", call("peek", at="q"))
    play = script([turns(create("a"), two, assign("a", "red")), "blue"], red=[two, "RED"])
    episode = run(play, who=roles(limits, limits))
    error = "error: at most 1 environment call(s) per turn"
    assert answers(episode.orchestrator) == ("ok", "p", "error: not JSON", error, "RED")
    assert answers(episode.subagents[0]) == ("p", "error: not JSON", error)
    assert [t.turns[0].env_calls for t in episode.traces] == [1, 1]
    assert episode.facts["seen"] == ["p"]


def test_single_mode_has_no_swarm_tools() -> None:
    episode = run(
        script([turns(create("a"), assign("a", "red"), PEEK), "blue"]), Swarm(mode="single")
    )
    assert [a.split(".")[0] for a in answers(episode.orchestrator)] == [
        "error: no tool 'create_subagent'",
        "error: no tool 'assign_task'",
        "x",
    ]
    assert (len(episode.traces), episode.num_assigned, episode.num_refused) == (1, 0, 0)
    assert "assign_task" not in "".join(
        map(chr, episode.orchestrator.token_ids[: episode.orchestrator.turns[0].start])
    )


def test_a_fork_is_a_world_of_its_own() -> None:
    play = script(
        [
            turns(call("peek", at="top"), create("a"), assign("a", "red"), assign("a", "green")),
            PEEK,
            "blue",
        ],
        red=[call("peek", at="r"), "RED"],
        green=[call("peek", at="g"), "GREEN"],
    )
    episode = run(play)
    assert [answers(t)[0] for t in episode.subagents] == ["r", "g"]
    assert answers(episode.orchestrator, 1) == ("top,x",)


def test_finished_needs_an_answer_that_the_environment_accepts() -> None:
    four = turns(create("a"), *(assign("a", p) for p in ("red", "green", "grey", "pink")))
    play = script([four, "blue"], red=["RED"], green=["junk"], grey=["  "], pink=[PEEK, PEEK])
    episode = run(play, who=roles(subagent=Limits(turns=2, context_tokens=10_000)))
    assert [t.status for t in episode.subagents] == [
        "completed",
        "completed",
        "completed",
        "truncated",
    ]
    assert [t.accepted for t in episode.subagents] == [True, False, True, True]
    assert [t.score for t in episode.subagents] == [1.0, 0.0, 0.0, 0.0]
    assert answers(episode.orchestrator)[1:] == ("RED", "junk", "  ", "error: stopped (turns)")
    assert (episode.num_assigned, episode.num_finished) == (4, 1)


class Worth(WordsEnv):
    """A message is worth its length over 10; `given` is what the runtime passed."""

    def contributions(self, answer: str, messages: Sequence[str]) -> Sequence[float]:
        self.given = (answer, *messages)
        return [len(m) / 10 for m in messages][: None if answer == "blue" else 1]


def test_what_subagents_contributed_is_asked_only_if_it_is_needed() -> None:
    three = turns(create("a"), *(assign("a", p) for p in ("red", "green", "pink")))
    kids = {"red": ["RED"], "green": ["no"], "pink": [PEEK, PEEK]}
    who = roles(subagent=Limits(turns=2, context_tokens=10_000))

    def played(env: AgentEnv, answer: str = "blue", contributions: bool = True) -> Episode:
        credit = Credit(type="leave_one_out" if contributions else "group_mean")
        asks = replace(runner(script([three, answer], **kids), None, who), credit=credit)
        return asyncio.run(asks.run(env, TASK, episode_id="e", group="g", step=0, seed="s"))

    env = Worth()
    assert [t.contribution for t in played(env).subagents] == [0.3, 0.2, 0.0]
    assert env.given == ("blue", "RED", "no", "")  # the stopped one's words were not read
    assert [t.contribution for t in played(Worth(), contributions=False).subagents] == [None] * 3
    assert [t.contribution for t in played(WordsEnv()).subagents] == [None] * 3  # cannot tell
    lost = played(Worth(), "wrong")  # one number for three subagents
    assert (lost.status, lost.failure) == ("failed", "environment")
    assert "contributions" in lost.orchestrator.stop_reason


class Claims(WordsEnv):
    """Each word `key=value` of a message is a claim; `!` fails."""

    def claims(self, message: str) -> Mapping[str, str]:
        if message == "!":
            raise RuntimeError("cannot read it")
        return dict(part.split("=") for part in message.split(";") if "=" in part)


@pytest.mark.parametrize(
    "messages, keys",
    [
        (["a=1;b=2", "A = 1 ;b=3", "c=1"], ["b"]),  # case and blanks aside
        (["a=1", "a=2", "a=3;b=1"], ["a"]),  # a key counts once
        (["a=1;b=1", "b=2;a=2", "x"], ["a", "b"]),
        (["a=1", "b=1", "nothing"], []),
    ],
)
def test_subagents_that_contradict_each_other(messages: Sequence[str], keys: Sequence[str]) -> None:
    three = turns(create("a"), *(assign("a", p) for p in ("red", "green", "pink")))
    kids = dict(zip(("red", "green", "pink"), ([m] for m in messages), strict=True))
    play = script([three, "blue"], **kids)
    assert run(play, env=Claims()).facts["contradictions"] == keys
    assert "contradictions" not in run(play).facts  # an environment that does not say


def test_only_messages_that_were_read_can_contradict() -> None:
    two = turns(create("a"), assign("a", "red"), assign("a", "pink"))
    who = roles(subagent=Limits(turns=1, context_tokens=10_000))
    stopped = turns("a=2", call("peek", at="x"))
    assert (
        run(script([two, "blue"], red=["a=1"], pink=[stopped]), None, who, Claims()).facts[
            "contradictions"
        ]
        == []
    )
    assert run(script(["blue"]), env=Claims()).facts["contradictions"] == []
    lost = run(script([two, "blue"], red=["!"], pink=["a=1"]), env=Claims())
    assert (lost.status, lost.failure) == ("failed", "environment")
    assert "claims" in lost.orchestrator.stop_reason


def test_siblings_are_sampled_and_not_read() -> None:
    """Each attempt says the number of its draw, so attempts differ; what is read is the first one's."""

    def play(messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        if messages[-1]["role"] == "tool":
            return [Segment("blue")]
        three = turns(create("a"), *(assign("a", p) for p in ("red", "green", "pink")))
        return [
            Segment(three if messages[-1]["content"] == TASK.prompt else str(rng.integers(10**9)))
        ]

    def played(**knobs: Any) -> Episode:
        asks = replace(runner(play), credit=Credit(type="resample", **knobs))
        return asyncio.run(asks.run(WordsEnv(), TASK, episode_id="e", group="g", step=0, seed="s"))

    plain, episode = run(play), played(siblings=2, sibling_share=1.0)
    assert [t.id for t in episode.siblings] == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    assert len({t.result for t in (*episode.subagents, *episode.siblings)}) == 9
    assert [t.prompt for t in episode.siblings] == ["red", "red", "green", "green", "pink", "pink"]
    assert (
        replace(episode, siblings=()) == plain
    )  # observations, steps, clock, tokens: nothing else has changed
    assert episode.num_sibling_tokens == sum(len(t.result) + 1 for t in episode.siblings)
    assert played(siblings=2, sibling_share=0.0) == plain
    some = {t.id for n in range(8) for t in played(siblings=1, sibling_share=n / 7).siblings}
    assert some == {"1.1", "2.1", "3.1"}
    half = [len(played(siblings=1, sibling_share=n / 7).siblings) for n in range(8)]
    assert half == sorted(half)


# --- steps and budgets -----------------------------------------------------------------------------------------------


def test_steps_by_hand() -> None:
    """Turn 0 launches children of 1 and 3 turns, turn 1 looks, turn 2 launches one of 2: (1+3) + 1 + (1+2) + 1."""
    play = script(
        [
            turns(create("a"), assign("a", "red"), assign("a", "green")),
            PEEK,
            assign("a", "grey"),
            "blue",
        ],
        red=["RED"],
        green=[PEEK, PEEK, "GREEN"],
        grey=[PEEK, "GREY"],
    )
    episode = run(play)
    assert (episode.critical_steps, episode.total_steps) == (9, 10)


def test_the_step_budget_ends_the_episode_as_truncated() -> None:
    episode = run(script([PEEK] * 9), Swarm(critical_step_budget=3))
    assert (episode.status, episode.orchestrator.stop_reason) == (
        "truncated",
        "critical_step_budget",
    )
    assert (episode.critical_steps, episode.answer, episode.outcome) == (3, "", {"score": 0.0})


def test_an_answer_within_the_step_budget_is_complete() -> None:
    episode = run(script([PEEK, PEEK, "blue"]), Swarm(critical_step_budget=3))
    assert (episode.status, episode.critical_steps, episode.outcome["score"]) == (
        "completed",
        3,
        1.0,
    )


def test_children_use_what_is_left_and_the_orchestrator_has_one_last_turn() -> None:
    """Budget 6: turns 0 and 1 leave 4, of which one is the orchestrator's last: a child may use 3."""
    play = script(
        [turns(create("a"), PEEK), turns(assign("a", "red"), assign("a", "green")), "blue"],
        red=[PEEK] * 9,
        green=[PEEK, PEEK, "GREEN"],
    )
    episode = run(play, Swarm(critical_step_budget=6))
    red, green = episode.subagents
    assert (len(red.turns), red.status, red.stop_reason) == (3, "truncated", "critical_step_budget")
    assert green.status == "completed"
    assert answers(episode.orchestrator, 1) == ("budget exhausted", "GREEN")
    assert (episode.status, episode.answer, episode.critical_steps) == ("completed", "blue", 6)


def test_the_last_turn_is_the_last() -> None:
    play = script([turns(create("a"), assign("a", "red")), PEEK, "blue"], red=[PEEK] * 9)
    episode = run(play, Swarm(critical_step_budget=5))
    assert (episode.status, episode.orchestrator.stop_reason) == (
        "truncated",
        "critical_step_budget",
    )
    assert (len(episode.orchestrator.turns), episode.critical_steps) == (2, 5)


def test_no_assignment_when_nothing_is_left_for_it() -> None:
    episode = run(script([create("a"), assign("a", "red"), "blue"]), Swarm(critical_step_budget=3))
    assert answers(episode.orchestrator, 1) == ("budget exhausted",)
    assert (episode.status, episode.num_assigned, episode.num_refused) == ("completed", 0, 1)


def test_a_childs_own_limit_is_not_the_budget() -> None:
    play = script([turns(create("a"), assign("a", "red")), "blue"], red=[PEEK] * 9)
    limit = Limits(turns=2, context_tokens=10_000)
    episode = run(play, Swarm(critical_step_budget=20), roles(subagent=limit))
    assert (episode.subagents[0].stop_reason, len(episode.subagents[0].turns)) == ("turns", 2)
    assert answers(episode.orchestrator)[1] == "error: stopped (turns)"


def test_the_token_budget_counts_the_whole_tree() -> None:
    alone = run(script([PEEK] * 9), Swarm(token_budget=3 * (len(PEEK) + 1)))
    assert (alone.status, alone.orchestrator.stop_reason) == ("truncated", "token_budget")
    assert len(alone.orchestrator.turns) == 3
    first = turns(create("a"), assign("a", "red"))
    shared = run(script([first, "blue"], red=["x" * 99]), Swarm(token_budget=len(first) + 1 + 100))
    assert (shared.status, len(shared.orchestrator.turns)) == ("truncated", 1)
    enough = run(script([first, "blue"], red=["x" * 99]), Swarm(token_budget=len(first) + 1 + 101))
    assert enough.status == "completed"


def test_the_same_seed_gives_the_same_episode() -> None:
    def play(messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        if messages[-1]["role"] == "user":
            return [Segment(call("peek", at=str(rng.integers(10**9))))]
        return [Segment(str(rng.integers(10**9)))]

    pool = LocalPool(WordsEnv, Rollout())
    first, second = (pool.run(runner(play), jobs(2)) for _ in range(2))
    assert first == second
    assert first[0].orchestrator.token_ids != first[1].orchestrator.token_ids
