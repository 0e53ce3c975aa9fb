"""A frozen policy behind an endpoint: its turns, what it may do wrong, and what a config may ask of it."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from parl.config import parse
from parl.config.endpoint import RemoteConfig
from parl.config.roles import Limits, Roles
from parl.config.rollout import Rollout
from parl.core.errors import ConfigError, EndpointFailure
from parl.core.messages import Message
from parl.core.types import (
    UNKNOWN_TOKEN,
    AgentTrace,
    Episode,
    ToolCall,
)
from parl.env.base import ANSWER_NOW
from parl.policy.base import PolicyHandle, Request, WindowFull
from parl.policy.engines.openai import EndpointEngine, NullRenderer, chat_messages
from parl.report.episode import decoder
from parl.rewards.credit import LossWeighting, build_samples
from parl.rollout.pool.local import LocalPool
from parl.rollout.swarm import SwarmRunner
from parl.runs.records import episode_of, episode_record
from tests.support.factories import make_config, with_rewards
from tests.support.helpers import TASK, WordsEnv, assign, create, jobs, roles, runner, script, turns
from tests.support.servers import serving

PROMPT, SAID = 100, 7
"""Tokens that the endpoint counts in a first prompt (each further message: 10), and in each turn."""


class Fake:
    """An endpoint whose model's name says how it answers; `good` peeks twice, then says its prompt in capitals."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.left = {"flaky": 1, "stutters": 1, "busy": 1}
        self.running = self.most = 0

    async def chat(self, request: HttpRequest) -> Response:
        body = json.loads(await request.body())
        self.asked.append({**body, "key": request.headers["authorization"]})
        if body["model"] == "slow":
            await asyncio.sleep(30)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        return self.answer(body["model"], body["messages"])

    def answer(self, model: str, messages: list[dict[str, Any]]) -> Response:
        first = self.left.get(model, 0) > 0
        if first:
            self.left[model] -= 1
        if model == "down" or (model == "flaky" and first):
            return PlainTextResponse("out of memory", 500)
        if model == "busy" and first:
            return JSONResponse({"error": {"message": "too fast"}}, 429, {"retry-after": "0.8"})
        if model == "closed":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        if model == "full" and len(messages) > 2:
            error = {"message": "too long", "code": "context_length_exceeded"}
            return JSONResponse({"error": error}, 400)
        prompt = next(m["content"] for m in messages if m["role"] == "user")
        peeks = sum(m["role"] == "assistant" for m in messages)
        message: dict[str, Any] = {"role": "assistant", "content": prompt.upper()}
        if peeks < 2 and model != "stutters":
            arguments = {"badly": "{nonsense", "listing": "[1]"}.get(
                model if not peeks else "", '{"at": "x"}'
            )
            function = {"name": "" if model == "nameless" else "peek", "arguments": arguments}
            calls = [{"id": "a", "type": "function", "function": function}]
            message = {"role": "assistant", "content": "" if peeks else None, "tool_calls": calls}
        finish = {"wordy": "length", "censored": "content_filter"}.get(model, "stop")
        num = PROMPT + 10 * (len(messages) - 2)
        body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": num, "completion_tokens": SAID, "total_tokens": num + SAID},
        }
        if model == "uncounted" or (model == "stutters" and first):
            del body["usage"]
        return JSONResponse(body)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[Fake, str]]:
    fake = Fake()
    with serving(
        Starlette(routes=[Route("/v1/chat/completions", fake.chat, methods=["POST"])])
    ) as address:
        yield fake, f"{address}/v1"


def config(base: str, model: str, **more: Any) -> RemoteConfig:
    return RemoteConfig(type="openai", base_url=base, model=model, **more)


def swarm(remote: RemoteConfig, who: Roles | None = None, num: int = 1) -> SwarmRunner:
    """A scripted orchestrator that assigns `num` tasks to subagents behind the endpoint."""
    calls = [assign("w", f"task {i}") for i in range(num)]
    made = runner(script([turns(create("w"), *calls), "blue"]), who=who)
    subagent = PolicyHandle("far", NullRenderer(), EndpointEngine(remote), False)
    return made.with_policies({**made.policies, "subagent": subagent})


def play(remote: RemoteConfig, limits: Limits | None = None, num: int = 1) -> Episode:
    made = swarm(remote, roles(subagent=limits), num)
    (episode,) = LocalPool(WordsEnv, Rollout(max_retries=0)).run(made, jobs(1))
    return episode


def the_child(episode: Episode) -> AgentTrace:
    (child,) = episode.subagents
    return child


def test_a_subagent_behind_an_endpoint(endpoint: tuple[Fake, str]) -> None:
    fake, base = endpoint
    episode = play(config(base, "good"))
    child = the_child(episode)
    assert (episode.status, child.status, child.result, child.score) == (
        "completed",
        "completed",
        "TASK 0",
        1.0,
    )
    assert [t.observations for t in child.turns] == [("x",), ("x,x",), ()]
    assert child.turns[0].tool_calls == (ToolCall("peek", {"at": "x"}),)
    assert episode.orchestrator.turns[0].observations == ("ok", "TASK 0")
    assert (episode.critical_steps, episode.total_steps) == (2 + 3, 5)
    last = fake.asked[-1]
    assert [m["role"] for m in last["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]
    assert last["messages"][2]["tool_calls"][0]["id"] == last["messages"][3]["tool_call_id"]
    assert [t["function"]["name"] for t in last["tools"]] == ["peek"]
    assert last["temperature"] == 1.0


def test_its_tokens_are_counted_and_unknown(endpoint: tuple[Fake, str]) -> None:
    child = the_child(play(config(endpoint[1], "good")))
    assert [(t.start, t.end) for t in child.turns] == [(100, 107), (120, 127), (140, 147)]
    assert (len(child.token_ids), set(child.token_ids)) == (147, {UNKNOWN_TOKEN})
    assert (child.num_generated, sum(child.mask), set(child.logprobs)) == (3 * SAID, 0, {0.0})


def test_the_pages_show_a_counted_token_as_unknown() -> None:
    assert decoder(lambda policy: None)("far", [UNKNOWN_TOKEN, 7]) == ["?", "7"]


def test_it_takes_its_time_on_the_virtual_clock(endpoint: tuple[Fake, str]) -> None:
    episode = play(config(endpoint[1], "good"))
    spans = {s.turn: s for s in episode.clock.spans if s.agent == "1"}
    # 100 new tokens to read (5000/s), 7 to write (50/s), a call of half a second; then 13 to read after 107
    assert spans[0].end_s - spans[0].start_s == pytest.approx(0.02 + 0.14 + 0.5)
    assert spans[1].end_s - spans[1].start_s == pytest.approx(13 / 5000 + 0.14 + 0.5)


def test_it_is_stored_and_never_trained_on(endpoint: tuple[Fake, str]) -> None:
    episode = play(config(endpoint[1], "good"))
    group = [with_rewards(episode, 0.0), with_rewards(episode, 1.0)]
    assert episode_of(json.loads(json.dumps(episode_record(group[0], {})))) == episode
    made = make_config()
    samples, mass = build_samples(
        [group], made.credit, LossWeighting(), made.roles, 0
    )  # even if somebody says it is trainable
    assert ([s.role for s in samples], list(mass)) == (["orchestrator"] * 2, ["main"])


@pytest.mark.parametrize("model", ["flaky", "busy", "stutters"])
def test_a_turn_is_asked_for_again(endpoint: tuple[Fake, str], model: str) -> None:
    began = time.monotonic()
    child = the_child(play(config(endpoint[1], model)))
    assert (child.status, child.result) == ("completed", "TASK 0")
    assert time.monotonic() - began > (
        0.8 if model == "busy" else 0.5
    )  # a 429 says how long to wait


@pytest.mark.parametrize(
    "model, kind, reason, requests",
    [
        ("down", "endpoint_unavailable", "500", 2),
        ("closed", "endpoint_unavailable", "401: .*wrong key", 1),
        ("uncounted", "endpoint_malformed", "usage", 2),
        ("nameless", "endpoint_malformed", "name", 2),
        ("censored", "endpoint_malformed", "filter", 2),
        ("slow", "endpoint_timeout", "no turn within 0.3 s", 1),
    ],
)
def test_what_goes_wrong_is_a_failure_and_no_score(
    endpoint: tuple[Fake, str], model: str, kind: str, reason: str, requests: int
) -> None:
    fake, base = endpoint
    before = len(fake.asked)
    more = {"deadline_s": 0.3} if model == "slow" else {}
    episode = play(config(base, model, max_retries=1, **more))
    assert (episode.status, episode.failure, episode.outcome) == ("failed", kind, {})
    assert len(fake.asked) - before == requests
    assert re.search(reason, episode.orchestrator.stop_reason)


def test_nobody_there() -> None:
    episode = play(config("http://127.0.0.1:9/v1", "good", max_retries=0))
    assert (episode.failure, episode.status) == ("endpoint_unavailable", "failed")


def test_an_episode_that_fails_is_tried_again(endpoint: tuple[Fake, str]) -> None:
    fake, base = endpoint
    fake.left["flaky"] = 1
    made = swarm(config(base, "flaky", max_retries=0))
    (episode,) = LocalPool(WordsEnv, Rollout(max_retries=1)).run(made, jobs(1))
    assert (episode.status, episode.id) == ("completed", "e0.1")


@pytest.mark.parametrize(
    "model, limits, reason, num_turns",
    [
        ("wordy", None, "max_tokens", 1),
        ("full", None, "context_tokens", 1),
        ("good", Limits(turns=2, context_tokens=9999), "turns", 2),
        ("good", Limits(tokens=14, context_tokens=9999), "tokens", 2),
        ("good", Limits(context_tokens=120), "context_tokens", 2),
    ],
)
def test_limits_end_it_as_truncated(
    endpoint: tuple[Fake, str], model: str, limits: Limits | None, reason: str, num_turns: int
) -> None:
    episode = play(config(endpoint[1], model), limits)
    child = the_child(episode)
    assert (child.status, child.stop_reason, len(child.turns)) == ("truncated", reason, num_turns)
    assert episode.status == "completed"
    assert episode.orchestrator.turns[0].observations[-1] == f"error: stopped ({reason})"


@pytest.mark.parametrize(
    "model, error", [("badly", "not JSON"), ("listing", "must be a JSON object")]
)
def test_arguments_that_are_none_are_the_models_own_error(
    endpoint: tuple[Fake, str], model: str, error: str
) -> None:
    child = the_child(play(config(endpoint[1], model)))
    assert (child.status, child.result) == ("completed", "TASK 0")
    assert error in child.turns[0].observations[0]
    assert child.turns[0].env_calls == 0


def test_requests_at_once_are_limited_and_the_client_does_not_outlive_its_loop(
    endpoint: tuple[Fake, str],
) -> None:
    fake, base = endpoint
    fake.most = 0
    made = swarm(config(base, "good", max_concurrent=3), num=8)
    pool = LocalPool(WordsEnv, Rollout())
    for _ in range(2):  # each in an event loop of its own
        assert [len(e.subagents) for e in pool.run(made, jobs(2))] == [8, 8]
    assert fake.most == 3
    engine: Any = made.policies["subagent"].engine
    assert (engine._client, engine._users) == (None, 0)


def test_a_deadline_of_the_episode_ends_the_request(endpoint: tuple[Fake, str]) -> None:
    made = swarm(config(endpoint[1], "slow"))
    (late,) = LocalPool(WordsEnv, Rollout(episode_deadline_s=0.5, max_retries=0)).run(made, jobs(1))
    assert late.failure == "timeout"
    assert made.policies["subagent"].engine._users == 0  # type: ignore[attr-defined]


def test_the_key_comes_from_the_environment(
    endpoint: tuple[Fake, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, base = endpoint
    far = config(base, "good", api_key_env="FAR_KEY")
    monkeypatch.delenv("FAR_KEY", raising=False)
    message: Message = {"role": "user", "content": "hello", "tool_calls": []}
    request = Request("s", (), (message,), 5, 1.0, 0)
    with pytest.raises(ConfigError, match="export FAR_KEY=KEY"):
        asyncio.run(EndpointEngine(far).generate(request))
    monkeypatch.setenv("FAR_KEY", "secret")
    engine = EndpointEngine(far)
    asyncio.run(engine.generate(request))
    assert b"secret" not in pickle.dumps(engine)
    asyncio.run(pickle.loads(pickle.dumps(engine)).generate(request))
    assert fake.asked[-1]["key"] == "Bearer secret"
    assert "tools" not in fake.asked[-1]


def test_failures_say_what_they_are(endpoint: tuple[Fake, str]) -> None:
    message: Message = {"role": "user", "content": "hello", "tool_calls": []}
    for model, error in (("down", EndpointFailure), ("full", WindowFull)):
        engine = EndpointEngine(config(endpoint[1], model, max_retries=0))
        with pytest.raises(error):
            asyncio.run(engine.generate(Request("s", (), (message,) * 3, 5, 1.0, 0)))


def test_one_answer_for_several_calls() -> None:
    """`on_overflow: answer` replaces all observations of a turn by one."""
    calls = [{"name": "peek", "arguments": {}}] * 2
    messages: list[Message] = [
        {"role": "user", "content": TASK.prompt, "tool_calls": []},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": ANSWER_NOW, "tool_calls": []},
    ]
    answers = chat_messages(messages)[2:]
    assert [(m["tool_call_id"], m["content"]) for m in answers] == [
        ("call_1_0", ANSWER_NOW),
        ("call_1_1", ANSWER_NOW),
    ]


FAR = {"engine": {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"}}
FROZEN = {"subagent": {"policy": "far", "trainable": False}}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"roles": {"subagent": {"policy": "far"}}}, "set roles.subagent.trainable: false"),
        (
            {
                "roles": {
                    "subagent": {
                        "policy": "far",
                        "trainable": [{"until": 3, "value": False}, {"value": True}],
                    }
                }
            },
            "false",
        ),
        (
            {"policies": {"main": {}, "far": {**FAR, "dtype": "bfloat16"}}},
            "remove policies.far.dtype",
        ),
        ({"policies": {"main": {}, "far": {"engine": {"type": "openai"}}}}, "base_url: missing"),
        (
            {"policies": {"main": {}, "far": {"engine": {"type": "open"}}}},
            "'torch', 'vllm', 'openai'",
        ),
        (
            {"policies": {"main": {}, "far": {"engine": {**FAR["engine"], "decode_rows": 1}}}},
            "Allowed: api_key_env",
        ),
        (
            {"policies": {"main": {}, "far": FAR, "a": {"adapter": {"base": "far"}}}},
            "policies.a.adapter.base",
        ),
        ({"rollout": {"backend": "ray", "inference": {"far": {}}}}, "rollout.inference.far"),
        (
            {"roles": {"subagent": {**FROZEN["subagent"], "external_agent": "a:b"}}},
            "remove roles.subagent.external_agent",
        ),
    ],
)
def test_configs_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**{"policies": {"main": {}, "far": FAR}, "roles": FROZEN, **change})


def test_a_config_that_fits() -> None:
    made = make_config(policies={"main": {}, "far": FAR}, roles=FROZEN)
    remote = made.policies["far"].remote
    assert remote is not None
    assert (remote.model, made.policies["main"].remote) == ("m", None)
    assert parse(made.model_dump(mode="json")) == made
