"""Which images a policy is shown, and who is told of them: without a model, so in milliseconds."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from parl.config.roles import ClockConfig, Limits, Swarm
from parl.core.messages import Message
from parl.core.types import Episode, ScoredEpisode, Task
from parl.env.demonstrations import Segment
from parl.gateway.chat import ChatRequest
from parl.gateway.conversation import Conversation
from parl.policy.base import Generation, PolicyHandle, Request
from parl.policy.engines.openai import chat_messages
from parl.policy.engines.scripted import ScriptedEngine
from parl.policy.renderers.images import ImageSegmenter, without_images
from parl.rollout.swarm import SwarmRunner
from parl.runs.records import episode_of, episode_record
from tests.support.helpers import Characters, WordsEnv, call, roles, run, script

RED, BLUE, BAD = (f"data:image/png;base64,{word}" for word in ("UkVE", "QkxV", "QkFE"))
PAD = 7


class ImageAdapter:
    """Sees every image but BAD, in three places."""

    forbidden = (PAD, 8)

    def accepts(self, uri: str) -> bool:
        return uri != BAD

    def span(self, uri: str) -> tuple[int, ...]:
        assert self.accepts(uri)
        return (PAD,) * 3


class Seeing(Characters):
    """A character renderer with eyes."""

    pictures = ImageSegmenter(ImageAdapter())  # type: ignore[arg-type]

    def start(self, system: str, tools: Any, user: str) -> list[int]:
        return self.show(f"{system}|{user}")

    def observe(self, observations: Any, turn_ids: Any = ()) -> list[int]:
        return [i for text in observations for i in self.show(text)]

    def show(self, text: str) -> list[int]:
        pieces = self.pictures.pieces(text)
        return [
            i for piece in pieces for i in (map(ord, piece) if isinstance(piece, str) else piece)
        ]

    def images(self, text: str) -> tuple[str, ...]:
        return self.pictures.shown(text)


def test_pieces() -> None:
    seeing, blind = ImageSegmenter(ImageAdapter()), ImageSegmenter(None)  # type: ignore[arg-type]
    text = f"a {RED}{BLUE} b {BAD} c"
    assert seeing.pieces(text) == ["a ", (PAD,) * 3, (PAD,) * 3, " b [image] c"]
    assert seeing.shown(text) == (RED, BLUE)
    assert blind.pieces(text) == ["a [image][image] b [image] c"]
    assert blind.shown(text) == ()
    assert without_images(text) == blind.pieces(text)[0]
    assert seeing.pieces("plain") == blind.pieces("plain") == ["plain"]
    assert (seeing.pieces(""), seeing.shown("")) == ([""], ())
    assert seeing.forbidden == {PAD, 8}
    assert not blind.forbidden


class Engine(ScriptedEngine):
    """Remembers what it was asked: every image has its places."""

    def __init__(self, said: list[str]) -> None:
        self.asked: list[Request] = []
        self.left, self.renderer = said, Seeing()
        super().__init__(self._next, self.renderer)

    def _next(self, messages: Any, rng: Any) -> list[Segment]:
        return [Segment(self.left.pop(0))]

    async def generate(self, request: Request) -> Generation:
        assert request.token_ids.count(PAD) == 3 * len(request.images)
        self.asked.append(request)
        return await super().generate(request)


def play(said: list[str], limits: Limits | None = None) -> tuple[Episode, list[Request]]:
    engine = Engine(said)
    handle = PolicyHandle("main", engine.renderer, engine)
    task = Task("t", "test/Words-v0", f"see {RED} and {BAD}", {"word": "blue"})
    runner = SwarmRunner(
        {"orchestrator": handle, "subagent": handle}, roles(limits), Swarm(), ClockConfig()
    )
    episode = asyncio.run(runner.run(WordsEnv(), task, episode_id="e", group="g", step=0, seed="s"))
    return episode, engine.asked


def test_an_agent_is_told_of_each_image_once() -> None:
    """The prompt's, then those of what it was fed; the engine has all of them with each turn."""
    episode, asked = play([call("peek", at=BLUE), call("peek", at="x"), "blue"])
    trace = episode.orchestrator
    # `peek` answers with all places so far: the image comes back in both observations
    assert [r.images for r in asked] == [(RED,), (RED, BLUE), (RED, BLUE, BLUE)]
    assert trace.images == (RED, BLUE, BLUE)
    assert trace.token_ids.count(PAD) == 9
    assert [trace.mask[i] for i, token in enumerate(trace.token_ids) if token == PAD] == [0] * 9


def test_an_image_that_does_not_fit_is_not_fed() -> None:
    said = call("peek", at=BLUE)
    start = len(Seeing().start("", (), f"see {RED} and {BAD}"))
    room = start + len(said) + 1
    for more, seen in ((2, (RED,)), (3, (RED,)), (4, (RED, BLUE))):
        trace = play([said, "blue"], Limits(turns=5, context_tokens=room + more))[0].orchestrator
        assert trace.images == seen
        assert trace.token_ids.count(PAD) == 3 * len(seen)


def test_records_hold_images_and_older_ones_do_without() -> None:
    for episode, seen in ((play(["blue"])[0], {"images": [RED]}), (run(script(["blue"])), {})):
        record = json.loads(json.dumps(episode_record(ScoredEpisode(episode, {}), {})))
        assert {k: v for k, v in record["traces"][0].items() if k == "images"} == seen
        assert episode_of(record) == episode


def test_an_endpoint_is_told_that_there_was_an_image() -> None:
    messages: tuple[Message, ...] = (
        {"role": "user", "content": f"see {RED}", "tool_calls": []},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "peek", "arguments": {}}]},
        {"role": "tool", "content": BLUE, "tool_calls": []},
    )
    assert [m["content"] for m in chat_messages(messages)] == ["see [image]", "", "[image]"]


def test_a_conversation_and_its_branches() -> None:
    """Of `parl serve`: images in messages of a user; a branch has those of its own past."""

    class Chatting(Seeing):
        def reply(self, text: str) -> list[int]:
            return self.show(f"({text})")

    policy = PolicyHandle("main", Chatting(), Engine(["one", "two", "three"]))
    first: Message = {"role": "user", "content": f"see {RED}", "tool_calls": []}
    request = ChatRequest("main", (first,), (), None, None, None, False, False)
    talk = Conversation.begin("c", "s", policy, request)
    asyncio.run(talk.sample_turn(10, 1.0, 0))
    for name in (BLUE, RED):
        news: list[Message] = [{"role": "user", "content": f"and {name}", "tool_calls": []}]
        texts, ids = talk.render_observations(news)
        talk.record_observations(texts, 0)
        talk.feed(news, ids)
        asyncio.run(talk.sample_turn(10, 1.0, 0))
    assert talk.tape.images == [RED, BLUE, RED]
    for num, images in ((1, [RED]), (2, [RED, BLUE])):
        branch = talk.branch("b", "t", num)
        assert branch.tape.images == images
        assert branch.tape.ids.count(PAD) == 3 * len(images)
