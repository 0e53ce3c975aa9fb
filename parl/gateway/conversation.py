"""One conversation as tokens: what was fed and what was sampled, recorded once and never rendered again.

In: messages of a client. Out: sampled turns, and the ids, mask and log-probs of all of them. A client sends its whole
history with each request; what we have said in it is recognised (`key`), and only what is new is rendered.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from parl.core.messages import Message
from parl.core.types import ToolCall, Turn
from parl.env.tools import ToolSpec
from parl.gateway.chat import ApiError, ChatRequest, Reply
from parl.policy.base import PolicyHandle, Renderer, Request
from parl.policy.engines.scripted import call_text
from parl.policy.tape import Tape, images_in


@runtime_checkable
class MultiTurnRenderer(Protocol):
    """A renderer of a format in which the user may speak again."""

    def reply(self, text: str) -> list[int]: ...


@dataclass(eq=False)
class Conversation:
    """A growing context. `session` names it to the engine, which keeps its state between turns."""

    id: str
    session: str
    policy: PolicyHandle
    tape: Tape
    messages: list[Message]
    turns: list[Turn] = field(default_factory=list)

    @classmethod
    def begin(
        cls, name: str, session: str, policy: PolicyHandle, request: ChatRequest
    ) -> Conversation:
        """Render a request whole. Raises ApiError: the format cannot say it."""
        images = images_in(policy.renderer, _heard(request.messages))
        return cls(
            name, session, policy, Tape(_render(policy, request), images), list(request.messages)
        )

    def branch(self, name: str, session: str, num_turns: int) -> Conversation:
        """A conversation of its own with the tokens of this one up to the end of a turn."""
        turns = self.turns[:num_turns]
        end, tape = turns[-1].end, Tape(())
        tape.ids, tape.mask, tape.logprobs = (
            self.tape.ids[:end],
            self.tape.mask[:end],
            self.tape.logprobs[:end],
        )
        heard = [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]
        first = len(heard) - len(
            self.turns
        )  # those before it were a client's, rendered as part of the prompt
        messages = self.messages[: heard[first + num_turns - 1] + 1]
        told = (
            *_heard(self.messages[: heard[first]]),
            *(text for t in turns[:-1] for text in t.observations),
        )
        tape.images = list(images_in(self.policy.renderer, told))
        turns[-1] = replace(turns[-1], observations=(), env_calls=0)
        return Conversation(name, session, self.policy, tape, messages, turns)

    def render_observations(self, news: Sequence[Message]) -> tuple[tuple[str, ...], list[int]]:
        """What answers the last turn, as texts and as tokens; nothing is fed yet. Raises ApiError."""
        renderer = self.policy.renderer
        # a turn that was cut has no stop token: it is fed one, outside of the loss
        stop = [] if self.tape.ids[-1] in renderer.stop_ids else [renderer.stop_ids[0]]
        if news[0]["role"] == "user":
            return (news[0]["content"],), stop + _reply(renderer, news[0]["content"])
        told = iter(
            news
        )  # malformed calls, which the client has not seen, are answered with their error
        texts = tuple(
            c.error if c.error is not None else next(told)["content"]
            for c in self.turns[-1].tool_calls
        )
        said = self.tape.ids[self.turns[-1].start : self.turns[-1].end]
        return texts, stop + renderer.observe(texts, said)

    def record_observations(self, texts: tuple[str, ...], env_calls: int) -> None:
        """Write down how the last turn was answered, whether or not the policy will read it."""
        self.turns[-1] = replace(self.turns[-1], observations=texts, env_calls=env_calls)

    def feed(self, news: Sequence[Message], ids: Sequence[int]) -> None:
        """Feed an `observation`, once it is noted."""
        self.tape.feed(ids, images_in(self.policy.renderer, self.turns[-1].observations))
        self.messages += news

    async def sample_turn(self, room: int, temperature: float, seed: int) -> Reply:
        """Sample one turn of at most `room` tokens."""
        policy, start = self.policy, len(self.tape.ids)
        context, images, said = tuple(self.tape.ids), tuple(self.tape.images), tuple(self.messages)
        generation = await policy.engine.generate(
            Request(
                self.session, context, said, room, temperature, seed, policy.adapter, images=images
            )
        )
        self.tape.add_sampled(generation.token_ids, generation.logprobs, generation.mask)
        text, calls = policy.renderer.parse(self.tape.ids[start:])
        self.turns.append(Turn(text, calls, (), start, len(self.tape.ids), generation.versions))
        cut = generation.finish == "length"
        good = () if cut else tuple(c for c in calls if c.error is None)
        reply = Reply(
            id=f"chatcmpl-{self.id}-{len(self.turns)}",
            content=text.partition("<tool_call>")[0].strip() if good or (cut and calls) else text,
            calls=tuple((f"call_{self.id}_{len(self.turns)}_{i}", c) for i, c in enumerate(good)),
            finish="length" if cut else "tool_calls" if good else "stop",
            token_ids=generation.token_ids,
            logprobs=generation.logprobs,
            num_prompt=start,
        )
        self.messages.append(reply.message)
        return reply


def history_key(model: str, tools: Sequence[ToolSpec], messages: Sequence[Message]) -> str:
    """Equal for histories that say the same, however a client has written them."""
    return json.dumps([model, [t.model_dump() for t in tools], list(messages)], sort_keys=True)


def _heard(messages: Sequence[Message]) -> list[str]:
    """What a policy reads of messages that it has not written."""
    return [m["content"] for m in messages if m["role"] != "assistant"]


def check_images(policy: PolicyHandle, request: ChatRequest) -> None:
    """Raise ApiError for an image that the policy would not see."""
    for uri in request.images:
        if not policy.renderer.images(uri):
            told = "messages: the policy does not see this image: it reads text alone, or the data are damaged"
            raise ApiError(400, "unsupported_value", told, "messages")


def _render(policy: PolicyHandle, request: ChatRequest) -> list[int]:
    """A prompt; turns in it that somebody else has written become part of it."""
    renderer, messages = policy.renderer, list(request.messages)
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    tools = request.tools if policy.tools_in_prompt else ()
    ids = renderer.start(system, tools, messages.pop(0)["content"])
    while messages:
        said = messages.pop(0)
        calls = [ToolCall(c["name"], c["arguments"]) for c in said["tool_calls"]]
        text = "\n".join(filter(None, (said["content"], *map(call_text, calls))))
        turn = [*renderer.encode(text), renderer.stop_ids[0]]
        ids += turn
        num = len(calls) or 1
        heard, messages = messages[:num], messages[num:]
        texts = [m["content"] for m in heard]
        ids += renderer.observe(texts, turn) if calls else _reply(renderer, texts[0])
    return ids


def _reply(renderer: Renderer, text: str) -> list[int]:
    if not isinstance(renderer, MultiTurnRenderer):
        raise ApiError(
            400,
            "unsupported_value",
            "messages: this policy's chat format has one message of the user, the first.",
            "messages",
        )
    return renderer.reply(text)
