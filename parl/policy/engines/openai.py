"""An engine whose weights are somebody else's, behind an OpenAI-compatible endpoint: for roles that do not learn.

In: the agent's messages and tools. Out: a `Generation` whose text and calls are `written` and whose tokens are only
counted, as the endpoint counts them: their ids are UNKNOWN_TOKEN and carry no loss. Raises EndpointFailure when there
is no turn within the deadline and the attempts that the config allows.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from parl.config.base import NonNegInt
from parl.config.endpoint import RemoteConfig
from parl.core.errors import EndpointFailure
from parl.core.messages import Message
from parl.core.types import UNKNOWN_TOKEN, ToolCall
from parl.env.chat_client import MalformedReply, ask, key_of
from parl.env.tools import ToolSpec
from parl.policy.base import Generation, Request, TextGeneration, WindowFull
from parl.policy.engines.scripted import CharRenderer
from parl.policy.renderers.images import without_images

FULL = re.compile(
    r"400: .*(context_length_exceeded|exceed_context_size|maximum context length)", re.DOTALL
)
"""How servers say that the context does not fit (OpenAI and `parl serve`, llama.cpp, vLLM)."""


class _Function(BaseModel):
    name: str = Field(min_length=1)
    arguments: str | dict[str, Any] | None = None


class _Call(BaseModel):
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: NonNegInt
    completion_tokens: NonNegInt


class _Reply(BaseModel):
    """What is read of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage


class NullRenderer(CharRenderer):
    """A renderer of texts that only the endpoint can count: what was read is no token before it has said how many."""

    def start(self, system: str, tools: Sequence[ToolSpec], user: str) -> list[int]:
        return []

    def observe(self, observations: Sequence[str], turn_ids: Sequence[int] = ()) -> list[int]:
        return []


class EndpointEngine:
    """Asks the endpoint for turns.

    It travels to other processes as its config: a worker reads the key where it runs.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self._config = config
        self._client: tuple[Any, asyncio.Semaphore] | None = None
        self._users = 0
        self._tls: Any = None

    def __reduce__(self) -> tuple[type[EndpointEngine], tuple[RemoteConfig]]:
        return EndpointEngine, (self._config,)

    async def generate(self, request: Request) -> Generation:
        """One turn. Raises EndpointFailure, WindowFull; ConfigError when the variable with the key is not set."""
        config = self._config
        tools = [{"type": "function", "function": t.model_dump()} for t in request.tools]
        body = {
            "messages": chat_messages(request.messages),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed % 2**31,
            **({"tools": tools} if tools else {}),
        }
        async with self._shared() as (client, slots), slots:
            try:
                async with asyncio.timeout(config.deadline_s):
                    return await ask(client, config, turn_of, _failure, **body)
            except TimeoutError:
                raise _failure("timeout", f"no turn within {config.deadline_s:g} s") from None

    def release(self, session: str) -> None:
        """The endpoint keeps nothing that we could let go."""

    @asynccontextmanager
    async def _shared(self) -> AsyncIterator[tuple[Any, asyncio.Semaphore]]:
        """The client of all requests that overlap: it belongs to their event loop, and must not outlive it."""
        import httpx
        import openai

        if self._client is None:
            self._tls = (
                self._tls or httpx.create_ssl_context()
            )  # made once: it takes a hundred times as long as a client
            client = openai.AsyncOpenAI(
                base_url=self._config.base_url,
                api_key=key_of(self._config, "policies.NAME.engine"),
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(verify=self._tls),
            )
            self._client = client, asyncio.Semaphore(self._config.max_concurrent)
        shared = self._client
        self._users += 1
        try:
            yield shared
        finally:
            self._users -= 1
            if not self._users:
                self._client = None
                await shared[0].close()


def _failure(kind: str, detail: str) -> Exception:
    return WindowFull() if FULL.match(detail) else EndpointFailure(f"endpoint_{kind}", detail)


def turn_of(done: Any) -> Generation:
    """A chat completion as a turn. Raises Malformed; arguments that are no JSON object are the model's own error."""
    try:
        reply = _Reply.model_validate(done.to_dict())
    except ValidationError as error:
        first = error.errors()[0]
        raise MalformedReply(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    choice, usage = reply.choices[0], reply.usage
    if choice.finish_reason == "content_filter":
        raise MalformedReply("the endpoint's filter has withheld the reply")
    calls = tuple(_call(c.function) for c in choice.message.tool_calls or ())
    num = usage.completion_tokens
    return Generation(
        token_ids=(UNKNOWN_TOKEN,) * num,
        logprobs=(0.0,) * num,
        finish="length" if choice.finish_reason == "length" else "stop",
        versions=(0,),
        mask=(0,) * num,
        as_text=TextGeneration(
            (choice.message.content or "").encode("utf-8", "replace").decode(),
            calls,
            usage.prompt_tokens,
        ),
    )


def _call(function: _Function) -> ToolCall:
    arguments: Any = function.arguments or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
            json.dumps(
                arguments, ensure_ascii=False
            ).encode()  # half of a surrogate pair is JSON, but no text
        except (ValueError, RecursionError):
            return ToolCall(
                function.name, {}, f"error: {function.name}: the arguments are not JSON"
            )
    if not isinstance(arguments, dict):
        return ToolCall(
            function.name, {}, f"error: {function.name}: arguments must be a JSON object"
        )
    return ToolCall(function.name, arguments)


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Ours in OpenAI's format, where each call has an id and an answer that names it. Images are `[image]`.

    Calls that are answered in common (`on_overflow: answer`) all get that answer.
    """
    out: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            last = i + 1 == len(messages) or messages[i + 1]["role"] != "tool"
            answered, open_calls = (open_calls, []) if last else (open_calls[:1], open_calls[1:])
            text = without_images(message["content"])
            out += [{"role": "tool", "tool_call_id": name, "content": text} for name in answered]
            continue
        said: dict[str, Any] = {
            "role": message["role"],
            "content": without_images(message["content"]),
        }
        open_calls = [f"call_{i}_{k}" for k in range(len(message["tool_calls"]))]
        if open_calls:
            both = zip(open_calls, message["tool_calls"], strict=True)
            said["tool_calls"] = [
                {
                    "id": name,
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
                }
                for name, call in both
            ]
        out.append(said)
    return out
