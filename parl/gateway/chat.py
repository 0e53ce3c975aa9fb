"""OpenAI's chat completions format, read and written.

In: the body of a request. Out: a `ChatRequest`, or an `ApiError` that says in OpenAI's shape what is not supported;
and the body of the answer. What a parameter would change and we cannot do is refused, never ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from parl.core import images
from parl.core.messages import Message
from parl.core.types import ToolCall
from parl.env.tools import ToolSpec

ONLY: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "n": (1,),
    "stop": ([],),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
}
"""Parameters with one value that we can serve: the one that changes nothing (so can null)."""
WITHOUT_EFFECT = ("user", "metadata", "stream_options", "safety_identifier", "prompt_cache_key")


class ApiError(Exception):
    """An answer that is an error, in OpenAI's shape."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


def _uri(url: str) -> str:
    if not images.is_image(url):
        raise ValueError(
            "an image is given as its data, data:image/png;base64,...; nothing is fetched"
        )
    return url


class _Url(BaseModel):
    url: Annotated[str, AfterValidator(_uri)]
    detail: Literal["auto"] = "auto"


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class _ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: _Url

    @property
    def text(self) -> str:
        """As images stand in texts everywhere here; a blank keeps the letters that follow out of the data."""
        return f"{self.image_url.url} "


_Part = Annotated[_TextPart | _ImagePart, Field(discriminator="type")]


class _Called(BaseModel):
    name: str
    arguments: str = "{}"


class _Call(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: _Called


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None

    @property
    def parts(self) -> Sequence[_TextPart | _ImagePart]:
        return () if isinstance(self.content, str) else self.content or ()

    @property
    def text(self) -> str:
        return (
            self.content if isinstance(self.content, str) else "".join(p.text for p in self.parts)
        )


class _Function(BaseModel):
    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class _Tool(BaseModel):
    type: Literal["function"]
    function: _Function


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[_Message] = Field(min_length=1)
    tools: list[_Tool] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    logprobs: bool | None = None
    stream: bool | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a client asks for. None = it leaves the choice to us."""

    model: str
    messages: tuple[Message, ...]
    """Ours: tool messages in the order of the calls that they answer, without ids."""
    tools: tuple[ToolSpec, ...]
    temperature: float | None
    max_tokens: int | None
    seed: int | None
    logprobs: bool
    stream: bool
    images: tuple[str, ...] = ()
    """Those that are parts of messages: a policy that does not see them cannot answer."""

    @property
    def history_length(self) -> int:
        """Messages up to and including the last one of an assistant: the part that a record may hold."""
        return max(
            (i + 1 for i, m in enumerate(self.messages) if m["role"] == "assistant"), default=0
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """One sampled turn as a client sees it."""

    id: str
    content: str
    calls: tuple[tuple[str, ToolCall], ...]
    """(id, call) of the well-formed calls; one that is not stays in the text."""
    finish: Literal["stop", "length", "tool_calls"]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    num_prompt: int

    @property
    def message(self) -> Message:
        """What the client will send back as the assistant's message."""
        calls = [{"name": c.name, "arguments": dict(c.arguments)} for _, c in self.calls]
        return {"role": "assistant", "content": self.content, "tool_calls": calls}


# --- requests --------------------------------------------------------------------------------------------------------


def parse_request(body: bytes) -> ChatRequest:
    """Raises ApiError (400) with the parameter and what is allowed."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"The body is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ApiError(
            400, "invalid_json", "The body must be a JSON object with `model` and `messages`."
        )
    for name, allowed in ONLY.items():
        given = raw.pop(name, None)
        if given is not None and given not in allowed:
            shown = json.dumps(allowed[0])
            raise ApiError(
                400,
                "unsupported_value",
                f"{name}: only {shown} is supported (given: {given!r})"[:500],
                name,
            )
    for name in WITHOUT_EFFECT:
        raw.pop(name, None)
    try:
        parsed = _Body.model_validate(raw)
    except ValidationError as error:
        first = max(
            error.errors(), key=lambda e: len(e["loc"])
        )  # of a union's branches, what was meant got furthest
        param = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
        unknown = first["type"] == "extra_forbidden"
        told = "this endpoint does not know it; leave it out" if unknown else first["msg"]
        raise ApiError(
            400, "unsupported_parameter" if unknown else "invalid_value", f"{param}: {told}", param
        ) from None
    functions = [t.function for t in parsed.tools or ()]
    return ChatRequest(
        model=parsed.model,
        messages=tuple(_messages(parsed.messages)),
        tools=tuple(
            ToolSpec(name=f.name, description=f.description, parameters=f.parameters)
            for f in functions
        ),
        temperature=parsed.temperature,
        max_tokens=parsed.max_completion_tokens or parsed.max_tokens,
        seed=parsed.seed,
        logprobs=bool(parsed.logprobs),
        stream=bool(parsed.stream),
        images=tuple(
            p.image_url.url for m in parsed.messages for p in m.parts if isinstance(p, _ImagePart)
        ),
    )


def _messages(given: Sequence[_Message]) -> list[Message]:
    """Ours: [system] user, then an assistant's message and what answers it, in turn. Raises ApiError."""
    out: list[Message] = []
    rest = list(given)
    if rest[0].role in ("system", "developer"):
        out.append({"role": "system", "content": rest.pop(0).text, "tool_calls": []})
    if not rest or rest[0].role != "user":
        raise _refused(
            "messages must begin with at most one system message and then one of the user"
        )
    out.append({"role": "user", "content": rest.pop(0).text, "tool_calls": []})
    while rest:
        said = rest.pop(0)
        if said.role != "assistant":
            raise _refused(
                f"a message of the role '{said.role}' where one of the assistant must stand"
            )
        calls = said.tool_calls or []
        out.append(
            {"role": "assistant", "content": said.text, "tool_calls": [_call(c) for c in calls]}
        )
        num = len(calls) or 1
        heard, rest = rest[:num], rest[num:]
        if calls:
            answers = {m.tool_call_id: m.text for m in heard if m.role == "tool"}
            if set(answers) != {c.id for c in calls} or len(answers) < num:
                raise _refused(
                    "each tool call must be answered by one tool message with its tool_call_id, and no other"
                )
            out += [{"role": "tool", "content": answers[c.id], "tool_calls": []} for c in calls]
        elif not heard or heard[0].role != "user":
            raise _refused(
                "an assistant's message without tool calls must be followed by one of the user"
            )
        else:
            out.append({"role": "user", "content": heard[0].text, "tool_calls": []})
    return out


def _call(call: _Call) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise _refused(f"the arguments of the call {call.id} are not a JSON object")
    return {"name": call.function.name, "arguments": arguments}


def _refused(message: str) -> ApiError:
    return ApiError(400, "invalid_value", f"messages: {message}.", "messages")


# --- answers ---------------------------------------------------------------------------------------------------------


def completion(request: ChatRequest, reply: Reply) -> dict[str, Any]:
    """The body of an answer. With `logprobs`, a token is written as `token_id:N`: the id is what was sampled."""
    choice = {
        "index": 0,
        "message": _answer(reply),
        "finish_reason": reply.finish,
        "logprobs": _logprobs(request, reply),
    }
    return {**_head(request, reply, "chat.completion"), "choices": [choice], "usage": _usage(reply)}


def chunks(request: ChatRequest, reply: Reply) -> Iterator[str]:
    """The same as a stream of server-sent events: the whole turn in one piece, for clients that insist on streams."""
    head = _head(request, reply, "chat.completion.chunk")
    answer = _answer(reply)
    answer["tool_calls"] = [
        {"index": i, **call} for i, call in enumerate(answer.get("tool_calls", ()))
    ]
    deltas = [(answer, None, _logprobs(request, reply)), ({}, reply.finish, None)]
    for delta, finish, logprobs in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
    yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(reply)})}\n\n"
    yield "data: [DONE]\n\n"


def _head(request: ChatRequest, reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.id, "object": kind, "created": int(time.time()), "model": request.model}


def _answer(reply: Reply) -> dict[str, Any]:
    calls = [
        {
            "id": i,
            "type": "function",
            "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments))},
        }
        for i, c in reply.calls
    ]
    content = reply.content if reply.content or not calls else None
    return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}


def _logprobs(request: ChatRequest, reply: Reply) -> dict[str, Any] | None:
    if not request.logprobs:
        return None
    both = zip(reply.token_ids, reply.logprobs, strict=True)
    rows: list[dict[str, Any]] = [
        {"token": f"token_id:{i}", "logprob": p, "bytes": None, "top_logprobs": []} for i, p in both
    ]
    return {"content": rows}


def _usage(reply: Reply) -> dict[str, int]:
    num = len(reply.token_ids)
    return {
        "prompt_tokens": reply.num_prompt,
        "completion_tokens": num,
        "total_tokens": reply.num_prompt + num,
    }
