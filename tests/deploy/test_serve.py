"""The endpoint with a scripted policy: OpenAI's format both ways, conversations on record, limits, errors."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from parl.core import images
from parl.core.messages import Message
from parl.core.net import own_names
from parl.deploy import serve as module
from parl.deploy.serve import ServedPolicy, Service
from parl.env.demonstrations import Segment
from parl.gateway.app import ServerLimits, make_app
from parl.policy.base import Generation, PolicyHandle, Request
from parl.policy.engines.scripted import ScriptedEngine
from tests.rollout.test_external_agent import BAD, PEEK, Tagged

USER = {"role": "user", "content": "hi"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "peek", "description": "look", "parameters": {"type": "object"}},
    }
]


class Engine(ScriptedEngine):
    """Says the next of `said`; remembers what it was asked, and refuses a session whose context does not grow."""

    def __init__(self, said: Sequence[str]) -> None:
        self.left = list(said)
        self.asked: list[Request] = []
        self.sessions: dict[str, tuple[int, ...]] = {}
        super().__init__(self._next, Tagged())

    def _next(self, messages: Sequence[Message], rng: Any) -> Sequence[Segment]:
        return [Segment(self.left.pop(0))]

    async def generate(self, request: Request) -> Generation:
        known = self.sessions.get(request.session, ())
        assert request.token_ids[: len(known)] == known
        self.asked.append(request)
        generation = await super().generate(request)
        self.sessions[request.session] = request.token_ids + generation.token_ids
        return generation

    def release(self, session: str) -> None:
        self.sessions.pop(session, None)


class Endpoint:
    """A service, its engine, and a client."""

    def __init__(
        self,
        *said: str,
        window: int = 10_000,
        limits: ServerLimits | None = None,
        renderer: Tagged | None = None,
        adapter: str = "",
    ) -> None:
        self.engine = Engine(said)
        self.record = io.StringIO()
        policy = PolicyHandle("main", renderer or Tagged(), self.engine, adapter=adapter)
        self.service = Service({"main": ServedPolicy(policy, window, 500, 1.0)}, self.record)
        app = make_app(
            lambda path, key: self.service, limits or ServerLimits(), own_names("127.0.0.1")
        )
        self.client = TestClient(app, base_url="http://127.0.0.1")

    def post(self, messages: Sequence[Any], **more: Any) -> Any:
        return self.client.post(
            "/v1/chat/completions", json={"model": "main", "messages": messages, **more}
        )

    def say(self, messages: list[Any], **more: Any) -> Any:
        """Ask, and put the assistant's message at the end of `messages`."""
        done = self.post(messages, **more)
        assert done.status_code == 200, done.text
        messages.append(done.json()["choices"][0]["message"])
        return done.json()["choices"][0]

    def text(self) -> str:
        """What the engine was last fed, as text."""
        return "".join(map(chr, self.engine.asked[-1].token_ids))


def error(done: Any) -> tuple[int, str, str | None]:
    told = done.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return done.status_code, told["code"], told["param"]


def answer(call: Any, text: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": call["id"], "content": text}


def test_a_conversation_grows_and_is_never_rendered_again() -> None:
    here = Endpoint(f"I look {PEEK}{PEEK}", "blue", "fine")
    messages: list[Any] = [{"role": "developer", "content": "be good"}, USER]
    choice = here.say(messages, tools=TOOLS)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look"
    first, second = choice["message"]["tool_calls"]
    assert first["id"] != second["id"]
    assert first["function"] == {"name": "peek", "arguments": '{"at": "x"}'}
    del messages[-1]["content"]  # as a client may: no text beside calls
    messages[-1]["content"] = [{"type": "text", "text": "I look"}]
    first["function"]["arguments"] = '{ "at":"x" }'  # written anew by the client
    messages += [answer(second, "two"), answer(first, "one")]
    assert here.say(messages, tools=TOOLS)["finish_reason"] == "stop"
    assert here.text() == f"<peek>[be good|hi]I look {PEEK}{PEEK}\0[one][two]"
    messages.append({"role": "user", "content": "thanks"})
    here.say(messages, tools=TOOLS)
    assert here.text().endswith("[one][two]blue\0(thanks)")
    assert {r.session for r in here.engine.asked} == {"serve/0"}
    assert here.service.counts == {"turns": 3, "conversations": 1}
    lines = [json.loads(line) for line in here.record.getvalue().splitlines()]
    (talk,) = here.service.conversations()
    for name, values in (
        ("token_ids", talk.tape.ids),
        ("mask", talk.tape.mask),
        ("logprobs", talk.tape.logprobs),
    ):
        assert [v for line in lines for v in line[name]] == values
    assert [line["text"] for line in lines] == [f"I look {PEEK}{PEEK}", "blue", "fine"]
    said = "".join(chr(i) for i, m in zip(talk.tape.ids, talk.tape.mask, strict=True) if m)
    assert said == f"I look {PEEK}{PEEK}\0blue\0fine\0"


def test_images_are_parts_of_a_message() -> None:
    class Sees(Tagged):
        def images(self, text: str) -> tuple[str, ...]:
            return images.find(text)

    here, uri = Endpoint("blue", renderer=Sees()), "data:image/png;base64,UkVE"
    parts = [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": {"url": uri}}]
    here.say([{"role": "user", "content": [*parts, {"type": "text", "text": "and why"}]}])
    assert (
        here.text() == f"[|what is{uri} and why]"
    )  # the renderer of a policy that sees makes places of it
    assert images.find(here.text()) == (uri,)


@pytest.mark.parametrize(
    "url, told",
    [
        ({"url": "https://example.org/cat.png"}, "nothing is fetched"),
        ({"url": "data:image/png;base64,UkVE", "detail": "high"}, "Input should be 'auto'"),
        ({"url": "data:image/png;base64,UkVE"}, "does not see"),
        ({}, "Field required"),
    ],
)
def test_an_image_that_cannot_be_shown_is_refused(url: dict[str, str], told: str) -> None:
    done = Endpoint("blue").post(
        [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]
    )
    assert done.status_code == 400
    assert told in done.json()["error"]["message"]


@pytest.mark.parametrize(
    "change",
    [
        lambda messages: messages[1].update(content="green"),
        lambda messages: messages[0].update(content="hello"),
        lambda messages: messages[1].update(tool_calls=None, content="blue "),
    ],
)
def test_another_history_starts_anew(change: Callable[[list[Any]], None]) -> None:
    here = Endpoint("blue", "fine")
    messages: list[Any] = [dict(USER)]
    here.say(messages)
    change(messages)
    here.say([*messages, USER])
    assert here.service.counts == {"turns": 2, "conversations": 2, "resets": 1}
    assert here.text() == f"[|{messages[0]['content']}]{messages[1]['content']}\0(hi)"


def test_other_tools_start_anew_and_a_foreign_history_is_rendered() -> None:
    here = Endpoint("blue", "fine")
    messages: list[Any] = [dict(USER)]
    here.say(messages)
    call = {"id": "c", "type": "function", "function": {"name": "peek", "arguments": '{"at": "y"}'}}
    messages += [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        answer(call, "why"),
    ]
    here.say(messages, tools=TOOLS)
    assert here.service.counts["resets"] == 1
    assert here.text() == f"<peek>[|hi]blue\0(hi){PEEK.replace('x', 'y')}\0[why]"
    assert here.service.conversations()[-1].tape.mask.count(1) == len("fine\0")


def test_the_engine_is_told_the_adapter_and_the_renderer_the_turn() -> None:
    answered = []

    class Noting(Tagged):
        """Kimi's format names the calls that it answers."""

        def observe(self, observations: Sequence[str], turn_ids: Sequence[int] = ()) -> list[int]:
            answered.append("".join(map(chr, turn_ids)))
            return super().observe(observations, turn_ids)

    here = Endpoint(PEEK, "fine", renderer=Noting(), adapter="scout")
    messages: list[Any] = [dict(USER)]
    (call,) = here.say(messages, tools=TOOLS)["message"]["tool_calls"]
    here.say([*messages, answer(call, "one")], tools=TOOLS)
    assert answered == [PEEK + "\0"]
    assert [r.adapter for r in here.engine.asked] == ["scout", "scout"]


def test_one_history_continued_twice_branches() -> None:
    here = Endpoint("blue", "one", "two", "three")
    start: list[Any] = [dict(USER)]
    here.say(start)
    left, right = [*start, USER], [*start, {"role": "user", "content": "ho"}]
    here.say(left)
    here.say(right)
    assert here.text() == "[|hi]blue\0(ho)"
    here.say([*left, USER])
    assert here.text() == "[|hi]blue\0(hi)one\0(hi)"
    assert here.service.counts == {"turns": 4, "conversations": 2, "branches": 1}
    one, two = sorted(here.service.conversations(), key=lambda c: c.id)
    assert [t.text for t in two.turns] == ["blue", "two"]
    assert [t.observations for t in two.turns] == [("ho",), ()]
    assert two.tape.mask == [*one.tape.mask[: one.turns[0].end], 0, 0, 0, 0, 1, 1, 1, 1]
    assert [m["content"] for m in two.messages] == ["hi", "blue", "ho", "two"]
    lines = [json.loads(line) for line in here.record.getvalue().splitlines()]
    for talk in (one, two):
        assert [
            i for line in lines if line["conversation"] == talk.id for i in line["token_ids"]
        ] == talk.tape.ids


def test_a_cut_turn_goes_on_after_a_stop_token_outside_of_the_loss() -> None:
    here = Endpoint("blue sky", "fine")
    messages: list[Any] = [dict(USER)]
    assert here.say(messages, max_tokens=4)["finish_reason"] == "length"
    here.say([*messages, USER])
    assert here.text() == "[|hi]blue\0(hi)"
    (talk,) = here.service.conversations()
    assert talk.tape.mask[talk.turns[0].end] == 0


def test_malformed_calls_stay_in_the_text_and_are_answered_by_us() -> None:
    here = Endpoint(BAD, PEEK + BAD, "fine")
    choice = here.say([dict(USER)])
    assert (choice["message"]["content"], choice["finish_reason"]) == (BAD, "stop")
    assert "tool_calls" not in choice["message"]
    messages: list[Any] = [{"role": "user", "content": "ho"}]
    (call,) = here.say(messages)["message"]["tool_calls"]
    here.say([*messages, answer(call, "one")])
    assert "\0[one][error: a <tool_call> is not JSON" in here.text()


def test_logprobs_name_the_sampled_ids() -> None:
    choice = Endpoint("ab").say([dict(USER)], logprobs=True)
    assert [(t["token"], t["logprob"]) for t in choice["logprobs"]["content"]] == [
        ("token_id:97", 0.0),
        ("token_id:98", 0.0),
        ("token_id:0", 0.0),
    ]


def test_sampling() -> None:
    here = Endpoint("a", "b", "c", "d")
    for more in (
        {"temperature": 0.5, "seed": 7, "max_completion_tokens": 9},
        {"seed": 7},
        {"seed": -8},
        {},
    ):
        here.say([dict(USER)], **more)
    first, same, other, free = here.engine.asked
    assert (first.temperature, first.max_tokens, same.temperature, same.max_tokens) == (
        0.5,
        9,
        1.0,
        500,
    )
    assert first.seed == same.seed
    assert len({first.seed, other.seed, free.seed}) == 3


def test_a_stream_holds_the_same() -> None:
    here = Endpoint(PEEK)
    text = here.post([USER], stream=True, stream_options={"include_usage": True}).text
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event) for event in events[:-1]]
    assert pieces[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "peek"
    assert pieces[1]["choices"][0]["finish_reason"] == "tool_calls"
    assert pieces[2]["usage"]["completion_tokens"] == len(PEEK) + 1


@pytest.mark.parametrize(
    "more, expected",
    [
        ({"top_p": 0.9}, (400, "unsupported_value", "top_p")),
        ({"n": 2}, (400, "unsupported_value", "n")),
        ({"stop": ["x"]}, (400, "unsupported_value", "stop")),
        ({"tool_choice": "required"}, (400, "unsupported_value", "tool_choice")),
        (
            {"response_format": {"type": "json_object"}},
            (400, "unsupported_value", "response_format"),
        ),
        ({"top_k": 5}, (400, "unsupported_parameter", "top_k")),
        ({"temperature": -1}, (400, "invalid_value", "temperature")),
        ({"temperature": "hot"}, (400, "invalid_value", "temperature")),
        ({"max_tokens": 0}, (400, "invalid_value", "max_tokens")),
        ({"model": "mian"}, (404, "model_not_found", "model")),
        ({"messages": []}, (400, "invalid_value", "messages")),
        ({"messages": [{"role": "system", "content": "x"}]}, (400, "invalid_value", "messages")),
        ({"messages": [USER, USER]}, (400, "invalid_value", "messages")),
        (
            {"messages": [USER, {"role": "assistant", "content": "x"}]},
            (400, "invalid_value", "messages"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            (400, "invalid_value", None),
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    more: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    here = Endpoint("never said")
    got = error(
        here.client.post("/v1/chat/completions", json={"model": "main", "messages": [USER], **more})
    )
    assert got[:2] == expected[:2]
    assert expected[2] is None or got[2] == expected[2]
    assert here.engine.asked == []


@pytest.mark.parametrize("value", [1, 1.0, None])
def test_what_changes_nothing_is_taken(value: object) -> None:
    more = {
        "top_p": value,
        "n": 1,
        "stop": None,
        "tool_choice": "auto",
        "frequency_penalty": 0,
        "user": "me",
    }
    assert Endpoint("yes").post([USER], **more).status_code == 200


def test_calls_and_answers_must_match() -> None:
    here = Endpoint(PEEK, "x")
    messages: list[Any] = [dict(USER)]
    here.say(messages)
    for wrong in ([], [USER], [{"role": "tool", "tool_call_id": "other", "content": "x"}]):
        assert error(here.post([*messages, *wrong]))[:2] == (400, "invalid_value")
    call = messages[-1]["tool_calls"][0]
    assert error(here.post([*messages, answer(call, "a"), answer(call, "b")]))[:2] == (
        400,
        "invalid_value",
    )


def test_the_window() -> None:
    here = Endpoint("blue sky", window=8)
    choice = here.say([dict(USER)])
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "blu")
    assert (
        error(here.post([{"role": "user", "content": "long text"}]))[1] == "context_length_exceeded"
    )


def test_the_body_the_type_and_the_host() -> None:
    here = Endpoint("x", limits=ServerLimits(body_bytes=300))
    assert error(here.post([{"role": "user", "content": "x" * 300}]))[:2] == (413, "body_too_large")
    assert (
        error(
            here.client.post(
                "/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"}
            )
        )[0]
        == 415
    )
    for body in (b"{", b"[]", b"\xff", b"[" * 200):
        done = here.client.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert error(done)[:2] == (400, "invalid_json")
    assert here.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400
    assert error(here.client.get("/v1/embeddings"))[:2] == (404, "not_found")
    assert here.client.get("/v1/models").json()["data"][0]["id"] == "main"


def test_the_deadline_frees_the_engine_and_the_conversation_can_go_on() -> None:
    import asyncio

    here = Endpoint("blue", "fine", limits=ServerLimits(deadline_s=0.2))
    messages: list[Any] = [dict(USER)]
    here.say(messages)
    quick = Engine.generate

    async def slow(self: Engine, request: Request) -> Generation:
        await asyncio.sleep(9)
        raise AssertionError

    here.engine.generate = slow.__get__(here.engine)  # type: ignore[method-assign]
    assert error(here.post([*messages, USER]))[:2] == (504, "deadline")
    assert here.engine.sessions == {}
    here.engine.generate = quick.__get__(here.engine)  # type: ignore[method-assign]
    here.say([*messages, USER])
    assert here.text() == "[|hi]blue\0(hi)"


def test_too_many_at_once() -> None:
    assert error(Endpoint("x", limits=ServerLimits(concurrent=0)).post([USER]))[:2] == (
        429,
        "too_many_requests",
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONVERSATIONS", 2)


def test_the_oldest_conversation_is_forgotten(few: None) -> None:
    here = Endpoint(*"abcdef")
    talks: list[list[Any]] = [[{"role": "user", "content": str(i)}] for i in range(3)]
    for messages in talks:
        here.say(messages)
    assert set(here.engine.sessions) == {"serve/1", "serve/2"}
    here.say([*talks[2], USER])
    here.say([*talks[0], USER])
    assert here.service.counts["resets"] == 1
