"""Somebody else's agent as the orchestrator: the same traces as our own loop makes, and what it may do wrong."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from parl.config.credit import Credit
from parl.config.roles import Limits, Roles, Swarm
from parl.config.rollout import Rollout
from parl.core.errors import ConfigError
from parl.core.types import Episode, ToolCall
from parl.env.base import AgentEnv
from parl.policy.base import Generation, Request
from parl.policy.engines.scripted import call_text
from parl.policy.renderers.chatml import parse_calls
from parl.rollout.env_calls import EpisodeFailure
from parl.rollout.external_agent import load_external_agent
from parl.rollout.pool.local import LocalPool
from parl.rollout.swarm import SwarmRunner
from tests.support.factories import make_config
from tests.support.helpers import TASK, Characters, WordsEnv, jobs, roles, runner, script

PEEK = '<tool_call>{"name": "peek", "arguments": {"at": "x"}}</tool_call>'
BAD = "<tool_call>{nonsense}</tool_call>"
SINGLE = Swarm(mode="single")


class Tagged(Characters):
    """Characters, with the calls written as models write them."""

    def parse(self, token_ids: Sequence[int]) -> Any:
        text = "".join(map(chr, token_ids)).rstrip("\0")
        return text, parse_calls(text)

    def reply(self, text: str) -> list[int]:
        return self.encode(f"({text})")


def played(
    said: Sequence[str], external_agent: str | None = "calls_tools", limits: Limits | None = None
) -> SwarmRunner:
    """A runner of scripted turns, run by an external agent (None: by our own loop)."""
    who: Roles = roles(limits)
    name = None if external_agent is None else f"tests.support.external_agents:{external_agent}"
    system = "solve" if external_agent is None else ""
    update = {"external_agent": name, "system_prompt": system}
    made = runner(
        script(said),
        SINGLE,
        who.model_copy(update={"orchestrator": who.orchestrator.model_copy(update=update)}),
    )
    return tagged(made)


def tagged(made: SwarmRunner) -> SwarmRunner:
    for handle in made.policies.values():
        object.__setattr__(handle, "renderer", Tagged())
        handle.engine._renderer = Tagged()  # type: ignore[attr-defined]
    return made


def run(
    said: Sequence[str],
    external_agent: str | None = "calls_tools",
    limits: Limits | None = None,
    **more: Any,
) -> Episode:
    env = more.pop("env", None) or WordsEnv()
    made = played(said, external_agent, limits)
    return asyncio.run(made.run(env, TASK, episode_id="e/1", group="g", step=0, seed="s"))


@pytest.mark.parametrize(
    "said", [["blue"], [f"first {PEEK}", PEEK + PEEK, "blue"], [PEEK + BAD, "red"]]
)
def test_the_episode_is_that_of_our_own_loop(said: Sequence[str]) -> None:
    """Tokens, masks, log-probs, turns with their observations and calls, outcome, facts, clock: all of it."""
    theirs, ours = run(said), run(said, None)
    assert theirs.orchestrator == ours.orchestrator
    assert theirs == ours


def test_a_turn_of_malformed_calls_alone_is_a_text_to_the_client() -> None:
    episode = run([BAD])
    assert (episode.answer, episode.status, episode.outcome["score"]) == (BAD, "completed", 0.0)


def test_limits_end_an_external_agent_as_truncated() -> None:
    wide = {"context_tokens": 10_000}
    for limits, reason in (
        (Limits(turns=2, **wide), "turns"),
        (Limits(tokens=150, **wide), "tokens"),
        (Limits(context_tokens=400), "context_tokens"),
    ):
        theirs, ours = run([PEEK] * 9, limits=limits), run([PEEK] * 9, None, limits)
        assert (theirs.status, theirs.orchestrator.stop_reason) == ("truncated", reason)
        assert theirs == ours


def test_an_external_agent_may_answer_when_a_limit_ends_it() -> None:
    episode = run([PEEK] * 9, "answers_at_limits", Limits(turns=1, context_tokens=10_000))
    assert (episode.status, episode.answer, len(episode.orchestrator.turns)) == (
        "truncated",
        "limit_reached",
        1,
    )


def test_calls_per_turn_are_limited() -> None:
    episode = run([PEEK * 3, "blue"], limits=Limits(env_calls_per_turn=1, context_tokens=10_000))
    turn = episode.orchestrator.turns[0]
    assert turn.env_calls == 1
    assert turn.observations[1:] == ("error: at most 1 environment call(s) per turn",) * 2


class Raising(WordsEnv):
    def call(self, name: str, arguments: object) -> str:
        raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "external_agent, kind, reason, env",
    [
        ("raises", "external_agent", "a bug of its own", None),
        ("silent", "external_agent", "never asked", None),
        ("rewrites", "external_agent", "another history", None),
        ("knocks_next_door", "external_agent", "key is not its own", None),
        ("swallows", "environment", "the disk is gone", Raising()),
    ],
)
def test_what_goes_wrong_is_a_failure_and_no_score(
    external_agent: str, kind: str, reason: str, env: AgentEnv | None
) -> None:
    episode = run(["green", "blue"], external_agent, env=env)
    assert (episode.status, episode.failure, episode.outcome) == ("failed", kind, {})
    assert reason in episode.orchestrator.stop_reason


def test_many_at_once_share_a_server_and_a_deadline_ends_one() -> None:
    made = played([PEEK, "blue"])
    episodes = LocalPool(WordsEnv, Rollout()).run(made, jobs(20))
    assert [e.answer for e in episodes] == ["blue"] * 20
    assert all(e.facts["seen"] == ["x"] for e in episodes)
    late = LocalPool(WordsEnv, Rollout(episode_deadline_s=0.5, max_retries=0)).run(
        played(["red"], "never_ends"), jobs(2)
    )
    assert [e.failure for e in late] == ["timeout"] * 2
    assert made.gateway._speakers == {}
    assert made.gateway._server is None
    assert pickle.loads(pickle.dumps(made.with_policies({}))).gateway._speakers == {}


def test_an_engine_that_fails_is_asked_once() -> None:
    made = played(["never said"])
    asked = []

    async def fails(request: Request) -> Generation:
        asked.append(request)
        raise EpisodeFailure("worker_lost", "its actor is gone")

    made.policies["orchestrator"].engine.generate = fails  # type: ignore[method-assign]
    (lost,) = LocalPool(WordsEnv, Rollout(max_retries=0)).run(made, jobs(1))
    assert (lost.failure, len(asked)) == ("worker_lost", 1)


def test_a_deadline_in_the_middle_of_a_turn_frees_the_engine() -> None:
    made = played(["never said"])
    engine = made.policies["orchestrator"].engine
    ended: list[str] = []
    released: list[str] = []

    async def hangs(request: Request) -> Generation:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(request.session)
        raise AssertionError

    engine.generate = hangs  # type: ignore[method-assign]
    engine.release = released.append  # type: ignore[method-assign,assignment]
    (late,) = LocalPool(WordsEnv, Rollout(episode_deadline_s=0.5, max_retries=0)).run(made, jobs(1))
    assert late.failure == "timeout"
    assert ended == released == ["e0/0"]


# --- subagents -------------------------------------------------------------------------------------------------------


def delegates(*prompts: str) -> list[str]:
    """An orchestrator that assigns each prompt to a subagent of its own, all in its first turn, and then answers."""
    create = ToolCall("create_subagent", {"name": "w", "system_prompt": "solve"})
    calls = [create, *(ToolCall("assign_task", {"agent": "w", "prompt": p}) for p in prompts)]
    return ["".join(map(call_text, calls)), "blue"]


def swarm_of(
    orchestrator: Sequence[str],
    external_agent: str | None = "calls_tools",
    limits: Limits | None = None,
    swarm: Swarm | None = None,
    credit: Credit | None = None,
    **subagents: Sequence[str],
) -> SwarmRunner:
    """Our orchestrator; subagents run by an external agent (None: by our own loop)."""
    who: Roles = roles(subagent=limits)
    name = None if external_agent is None else f"tests.support.external_agents:{external_agent}"
    who = who.model_copy(
        update={"subagent": who.subagent.model_copy(update={"external_agent": name})}
    )
    made = tagged(runner(script(orchestrator, **subagents), swarm, who))
    return replace(made, credit=credit or Credit())


def run_swarm(made: SwarmRunner, env: AgentEnv | None = None) -> Episode:
    return asyncio.run(
        made.run(env or WordsEnv(), TASK, episode_id="e/1", group="g", step=0, seed="s")
    )


THREE = {
    "red": [f"first {PEEK}", PEEK + PEEK, "RED"],
    "green": ["GREEN"],
    "other": [PEEK + BAD, PEEK, PEEK, "junk"],
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"limits": Limits(turns=2, context_tokens=10_000)},
        {"limits": Limits(tokens=150, context_tokens=10_000)},
        {"limits": Limits(context_tokens=300)},
        {"limits": Limits(env_calls_per_turn=1, context_tokens=10_000)},
        {"swarm": Swarm(critical_step_budget=4)},
        {"swarm": Swarm(token_budget=700)},
        {"swarm": Swarm(max_subagents=2)},
        {"credit": Credit(type="resample", siblings=2)},
    ],
)
def test_a_swarm_of_them_is_that_of_our_own_loop(more: dict[str, Any]) -> None:
    """All of it: their traces, statuses, scores, forks; the orchestrator's observations, critical steps, the clock."""
    said = delegates("red", "green", "yellow")
    theirs, ours = (
        run_swarm(swarm_of(said, external_agent, **{**more, **THREE}))
        for external_agent in ("calls_tools", None)
    )
    assert len(ours.subagents) == min(3, more.get("swarm", Swarm()).max_subagents)
    assert theirs.subagents == ours.subagents
    assert theirs == ours


def test_what_a_subagent_gets_is_its_assignment_alone() -> None:
    episode = run_swarm(swarm_of(delegates("red"), "tells_what_it_got", red=["thinking"]))
    (child,) = episode.subagents
    assert child.result == "t/1 red {'name': 'w', 'system_prompt': 'solve'}"
    assert "blue" not in child.result  # the gold answer
    assert episode.orchestrator.turns[0].observations == ("ok", child.result)


def test_a_subagent_that_a_limit_ends_gives_nothing_back() -> None:
    limits = Limits(turns=1, context_tokens=10_000)
    episode = run_swarm(swarm_of(delegates("red"), "answers_at_limits", limits, red=[PEEK] * 2))
    (child,) = episode.subagents
    assert (child.status, child.stop_reason, child.result, child.accepted) == (
        "truncated",
        "turns",
        "",
        True,
    )
    assert episode.orchestrator.turns[0].observations[-1] == "error: stopped (turns)"
    assert (episode.status, episode.num_finished) == ("completed", 0)


@pytest.mark.parametrize(
    "external_agent, kind, reason, env",
    [
        ("raises", "external_agent", "a bug of its own", None),
        ("silent", "external_agent", "never asked", None),
        ("rewrites", "external_agent", "another history", None),
        ("swallows", "environment", "the disk is gone", Raising()),
    ],
)
def test_what_goes_wrong_in_a_subagent_is_a_failure(
    external_agent: str, kind: str, reason: str, env: AgentEnv | None
) -> None:
    made = swarm_of(delegates("red", "green"), external_agent, red=["x", "y"], green=["x", "y"])
    episode = run_swarm(made, env)
    assert (episode.status, episode.failure, episode.outcome) == ("failed", kind, {})
    assert reason in episode.orchestrator.stop_reason
    assert (made.gateway._speakers, made.gateway._server) == ({}, None)


def test_a_deadline_ends_all_subagents_of_an_episode() -> None:
    made = swarm_of(delegates("red", "green"), "never_ends", red=["x"], green=["x"])
    (late,) = LocalPool(WordsEnv, Rollout(episode_deadline_s=0.5, max_retries=0)).run(made, jobs(1))
    assert late.failure == "timeout"
    assert (made.gateway._speakers, made.gateway._server) == ({}, None)


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere:run", "cannot be imported"),
        ("tests.support.external_agents:x", "cannot be imported"),
        ("tests.support.external_agents:no_coroutine", "async def"),
    ],
)
def test_an_external_agent_that_is_none(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_external_agent("subagent", name)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"roles": {"subagent": {"external_agent": "a:b", "limits": {"on_overflow": "answer"}}}},
            "roles.subagent.system_prompt",
        ),
        (
            {"roles": {"orchestrator": {"external_agent": "a:b"}}, "swarm": {"mode": "swarm"}},
            "mode: single",
        ),
        (
            {"roles": {"orchestrator": {"external_agent": "a:b", "system_prompt": "x"}}},
            "system_prompt",
        ),
    ],
)
def test_configs_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**{"swarm": {"mode": "single"}, **change})
