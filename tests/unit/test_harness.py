"""Somebody else's agent as the orchestrator: the same traces as our own loop makes, and what it may do wrong."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from parl.config import parse
from parl.config.rollout import Rollout
from parl.config.schema import Limits, Roles, Swarm
from parl.env import AgentEnv
from parl.errors import ConfigError
from parl.policy.base import Generation, Request
from parl.policy.chatml import parse_calls
from parl.rollout.harness import load_harness
from parl.rollout.pool import LocalPool
from parl.rollout.swarm import SwarmRunner
from parl.rollout.world import EpisodeFailure
from parl.types import Episode
from tests.helpers import TASK, Characters, WordsEnv, jobs, roles, runner, script

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


def played(said: Sequence[str], harness: str | None = "calls_tools", limits: Limits | None = None) -> SwarmRunner:
    """A runner of scripted turns, in the hands of a harness (None: of our own loop)."""
    who: Roles = roles(limits)
    name = None if harness is None else f"tests.harnesses:{harness}"
    system = "solve" if harness is None else ""
    update = {"harness": name, "system_prompt": system}
    made = runner(
        script(said), SINGLE, who.model_copy(update={"orchestrator": who.orchestrator.model_copy(update=update)})
    )
    for handle in made.policies.values():
        object.__setattr__(handle, "renderer", Tagged())
        handle.engine._renderer = Tagged()
    return made


def run(said: Sequence[str], harness: str | None = "calls_tools", limits: Limits | None = None, **more: Any) -> Episode:
    env = more.pop("env", None) or WordsEnv()
    made = played(said, harness, limits)
    return asyncio.run(made.run(env, TASK, episode_id="e/1", group="g", step=0, seed="s"))


@pytest.mark.parametrize("said", [["blue"], [f"first {PEEK}", PEEK + PEEK, "blue"], [PEEK + BAD, "red"]])
def test_the_episode_is_that_of_our_own_loop(said: Sequence[str]) -> None:
    """Tokens, masks, log-probs, turns with their observations and calls, outcome, facts, clock: all of it."""
    theirs, ours = run(said), run(said, None)
    assert theirs.orchestrator == ours.orchestrator
    assert theirs == ours


def test_a_turn_of_malformed_calls_alone_is_a_text_to_the_client() -> None:
    episode = run([BAD])
    assert (episode.answer, episode.status, episode.outcome["score"]) == (BAD, "completed", 0.0)


def test_limits_end_a_harness_as_truncated() -> None:
    wide = {"context_tokens": 10_000}
    for limits, reason in (
        (Limits(turns=2, **wide), "turns"),
        (Limits(tokens=150, **wide), "tokens"),
        (Limits(context_tokens=400), "context_tokens"),
    ):
        theirs, ours = run([PEEK] * 9, limits=limits), run([PEEK] * 9, None, limits)
        assert (theirs.status, theirs.orchestrator.stop_reason) == ("truncated", reason)
        assert theirs == ours


def test_a_harness_may_answer_when_a_limit_ends_it() -> None:
    episode = run([PEEK] * 9, "answers_at_limits", Limits(turns=1, context_tokens=10_000))
    assert (episode.status, episode.answer, len(episode.orchestrator.turns)) == ("truncated", "limit_reached", 1)


def test_calls_per_turn_are_limited() -> None:
    episode = run([PEEK * 3, "blue"], limits=Limits(env_calls_per_turn=1, context_tokens=10_000))
    turn = episode.orchestrator.turns[0]
    assert turn.env_calls == 1
    assert turn.observations[1:] == ("error: at most 1 environment call(s) per turn",) * 2


class Raising(WordsEnv):
    def call(self, name: str, arguments: object) -> str:
        raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "harness, kind, reason, env",
    [
        ("raises", "harness", "a bug of its own", None),
        ("silent", "harness", "never asked", None),
        ("rewrites", "harness", "another history", None),
        ("knocks_next_door", "harness", "key is not its own", None),
        ("swallows", "environment", "the disk is gone", Raising()),
    ],
)
def test_what_goes_wrong_is_a_failure_and_no_score(harness: str, kind: str, reason: str, env: AgentEnv | None) -> None:
    episode = run(["green", "blue"], harness, env=env)
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
    ended, released = [], []

    async def hangs(request: Request) -> Generation:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(request.session)
        raise AssertionError

    engine.generate, engine.release = hangs, released.append  # type: ignore[method-assign]
    (late,) = LocalPool(WordsEnv, Rollout(episode_deadline_s=0.5, max_retries=0)).run(made, jobs(1))
    assert late.failure == "timeout"
    assert ended == released == ["e0/0"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere:run", "cannot be imported"),
        ("tests.harnesses:x", "cannot be imported"),
        ("tests.harnesses:no_coroutine", "async def"),
    ],
)
def test_a_harness_that_is_none(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_harness(name)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"roles": {"subagent": {"harness": "a:b"}}}, "only the orchestrator"),
        ({"roles": {"orchestrator": {"harness": "a:b"}}, "swarm": {"mode": "swarm"}}, "mode: single"),
        ({"roles": {"orchestrator": {"harness": "a:b", "system_prompt": "x"}}}, "system_prompt"),
    ],
)
def test_configs_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({"name": "n", "env": {"id": "x"}, "swarm": {"mode": "single"}, **change})
