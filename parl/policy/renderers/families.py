"""Chat formats of pretrained families (Qwen3, Llama 3, Kimi K2.5) behind our Renderer protocol.

In: texts and sampled ids. Out: token ids and tool calls. The formats themselves are the package `renderers`', which
mirrors each model's own template. It is asked for the prompt and for what follows a turn (`bridge_to_next_turn`), never
to render a turn again, so a longer conversation always begins with the ids of the shorter one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from parl.core.errors import ConfigError
from parl.core.types import ToolCall
from parl.env.tools import ToolSpec
from parl.policy.base import Renderer
from parl.policy.renderers.chatml import ChatML
from parl.policy.renderers.images import ImageSegmenter

if TYPE_CHECKING:
    from parl.policy.models.vision.families import ImageAdapter

_HEAD = re.compile(r'<tool_call>\{"name": "([^"]*)", "arguments": ')
_TAIL = "}</tool_call>"


def _qwen3_calls(text: str) -> str:
    return text.replace("<tool_call>{", "<tool_call>\n{").replace(_TAIL, "}\n</tool_call>")


def _llama3_calls(text: str) -> str:
    return _HEAD.sub(r'{"name": "\1", "parameters": ', text).replace(_TAIL, "}")


def _kimi_calls(text: str) -> str:
    """One section around all calls; a call's id is `functions.NAME:INDEX`. A text that breaks off leaves it open."""
    begin, end = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
    pieces = _HEAD.split(text)
    out = pieces[0]
    for i, (name, rest) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True)):
        arguments, closed, after = rest.partition(_TAIL)
        out += (
            begin if i == 0 else ""
        ) + f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>"
        out += arguments + ("<|tool_call_end|>" if closed else "")
        last = i == len(pieces) // 2 - 1
        out += (end if last and closed else "") + (after if last else after.lstrip())
    return out


@dataclass(frozen=True, slots=True)
class Family:
    """What is particular to one family."""

    marks: tuple[str, ...]
    """Tokens that its tokenizers have: all that its renderer writes or reads."""
    renderer: str
    """Its class in the package `renderers`."""
    config: str
    knobs: tuple[tuple[str, Any], ...]
    write_calls: Callable[[str], str]
    """An assistant's text with Hermes calls, as scripts and forced prefixes are written -> with the family's calls."""


FAMILIES = {
    "qwen3": Family(
        (
            *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"),
            *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        ),
        "Qwen3Renderer",
        "Qwen3RendererConfig",
        (),
        _qwen3_calls,
    ),
    "llama3": Family(
        (
            *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>"),
        ),
        "Llama3Renderer",
        "Llama3RendererConfig",
        (),
        _llama3_calls,
    ),
    # Its thinking mode opens the block in the prompt: forced prefixes and demonstrations would begin inside of it.
    "kimi_k2_5": Family(
        (
            *("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>"),
            *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
            *("<|media_begin|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>"),
        ),
        "KimiK25Renderer",
        "KimiK25RendererConfig",
        (("thinking", False),),
        _kimi_calls,
    ),
}
CHOICES = ("chatml", *FAMILIES)


def make_renderer(
    name: str, choice: str, tokenizer: Any, eyes: ImageAdapter | None = None
) -> Renderer:
    """The renderer of the policy `name`, whose model may have eyes. Raises ConfigError: the tokenizer does not fit."""
    family = detect(tokenizer) if choice == "auto" else choice
    if family is None:
        raise ConfigError(
            f"policies.{name}: this model's chat format is not known (neither its tokens nor its template tell). "
            f"Name the nearest one: policies.{name}.renderer={'|'.join(CHOICES)}."
        )
    if family == "chatml":
        return ChatML(tokenizer, eyes)
    missing = [t for t in FAMILIES[family].marks if t not in tokenizer.get_vocab()]
    if missing:
        raise ConfigError(
            f"policies.{name}.renderer is {family}, but the model's tokenizer lacks {', '.join(missing)}. "
            f"Choose one of auto, {', '.join(CHOICES)}."
        )
    return FamilyRenderer(family, tokenizer, eyes)


def detect(tokenizer: Any) -> str | None:
    """The family whose tokens the tokenizer has; None for those that only look like one of them."""
    vocab, template = tokenizer.get_vocab(), str(tokenizer.chat_template or "")
    for family in ("kimi_k2_5", "llama3"):
        if all(t in vocab for t in FAMILIES[family].marks):
            return family
    if "<|im_end|>" not in vocab or "<|im_middle|>" in vocab:
        return None
    if "<think>" not in vocab:
        return "chatml"
    other_calls = "<function=" in template  # Qwen3.5 and its like write calls in XML
    return "qwen3" if all(t in vocab for t in FAMILIES["qwen3"].marks) and not other_calls else None


class FamilyRenderer:
    """A renderer of the package `renderers` as one of ours."""

    def __init__(self, family: str, tokenizer: Any, eyes: ImageAdapter | None = None) -> None:
        import renderers  # 0.7 s, so only where it is used

        self._family, self._tokenizer, self._eyes, self._pictures = (
            family,
            tokenizer,
            eyes,
            ImageSegmenter(eyes),
        )
        traits = FAMILIES[family]
        self._write_calls = traits.write_calls
        self._mark = eyes.mark if eyes is not None else ""
        knobs = getattr(renderers, traits.config)(**dict(traits.knobs))
        self._inner = getattr(renderers, traits.renderer)(tokenizer, knobs)
        self._stop: tuple[int, ...] = tuple(self._inner.get_stop_token_ids())
        markup = sorted(
            (t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True
        )
        self._markup = re.compile("|".join(map(re.escape, markup)))
        self._header = self._render("", (), "x")
        self._parsed = lru_cache(65536)(self._parse)

    def __reduce__(self) -> tuple[type[FamilyRenderer], tuple[str, Any, ImageAdapter | None]]:
        return FamilyRenderer, (self._family, self._tokenizer, self._eyes)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._stop

    def start(self, system: str, tools: Sequence[ToolSpec], user: str) -> list[int]:
        return self._unfold(
            self._render(self._plain(system), tools, self._plain(user)), (system, user)
        )

    def observe(self, observations: Sequence[str], turn_ids: Sequence[int] = ()) -> list[int]:
        ids = [*self._parsed(tuple(turn_ids))[2], *[""] * len(observations)]
        messages = [
            {"role": "tool", "content": self._plain(text), "tool_call_id": ids[i]}
            for i, text in enumerate(observations)
        ]
        # What follows a turn depends on its end alone, so a turn of nothing but the stop token stands for all.
        bridged = self._inner.bridge_to_next_turn(self._header, [self._stop[0]], messages)
        assert bridged is not None, "an extension by tool messages is always possible"
        return self._unfold(bridged.token_ids[len(self._header) + 1 :], observations)

    def parse(self, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        return self._parsed(tuple(token_ids))[:2]

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(self._write_calls(text), add_special_tokens=False)
        return [i for i in ids if i not in self._pictures.forbidden]

    def show(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(self._plain(text), add_special_tokens=False)
        return self._unfold(ids, (text,))

    def images(self, text: str) -> tuple[str, ...]:
        return self._pictures.shown(text)

    def _render(self, system: str, tools: Sequence[ToolSpec], user: str) -> list[int]:
        messages = [{"role": "system", "content": system}] if system else []
        specs = [
            {
                "type": "function",
                "function": {
                    "name": t.name,
                    "description": t.description,
                    "parameters": t.parameters,
                },
            }
            for t in tools
        ]
        messages.append({"role": "user", "content": user})
        return list(
            self._inner.render_ids(messages, tools=specs or None, add_generation_prompt=True)
        )

    def _plain(self, text: str) -> str:
        """Text from outside forges no markup: a space breaks what would be a token of its own. An image that is seen is
        one pad for now."""
        return "".join(
            self._markup.sub(lambda m: f"{m[0][0]} {m[0][1:]}", piece)
            if isinstance(piece, str)
            else self._mark
            for piece in self._pictures.pieces(text)
        )

    def _unfold(self, ids: Sequence[int], texts: Sequence[str]) -> list[int]:
        """Ids with one pad for each image of the texts -> with all that stands for it."""
        if self._eyes is None:
            return list(ids)
        eyes, spans = (
            self._eyes,
            (self._eyes.span(uri) for text in texts for uri in self.images(text)),
        )
        return [i for token in ids for i in (next(spans) if token == eyes.pad else (token,))]

    def _parse(
        self, token_ids: tuple[int, ...]
    ) -> tuple[str, tuple[ToolCall, ...], tuple[str, ...]]:
        """Text without thinking and calls, the calls, their ids."""
        if self._family == "llama3":
            return (*_parse_llama3(self._text(token_ids)), ())
        try:
            response = self._inner.parse_response(self._one_section(token_ids))
        except (
            ValueError,
            RecursionError,
        ):  # numbers of thousands of digits, brackets thousands deep
            return "", (ToolCall("", {}, "error: a tool call cannot be read"),), ()
        calls = tuple(_call(c.name, c.arguments, c.status.value) for c in response.tool_calls)
        return response.content.strip(), calls, tuple(c.id or "" for c in response.tool_calls)

    def _text(self, token_ids: Sequence[int]) -> str:
        end = next((i for i, t in enumerate(token_ids) if t in self._stop), len(token_ids))
        return str(
            self._tokenizer.backend_tokenizer.decode(
                list(token_ids[:end]), skip_special_tokens=False
            )
        )

    def _one_section(self, token_ids: Sequence[int]) -> list[int]:
        """Kimi reads one section of calls; a turn that was written in pieces has one for each."""
        if self._family != "kimi_k2_5":
            return list(token_ids)
        end, begin = self._tokenizer.convert_tokens_to_ids(
            [f"<|tool_calls_section_{x}|>" for x in ("end", "begin")]
        )
        out: list[int] = []
        for token in token_ids:
            if token == begin and out and out[-1] == end:
                out.pop()
            else:
                out.append(token)
        return out


_PROBLEMS = {
    "invalid_json": "is not JSON",
    "unclosed_block": "was not closed",
    "missing_name": "has no name",
    "malformed_structure": "is not of the model's own form",
}


def _call(name: Any, arguments: Any, status: str = "ok") -> ToolCall:
    """A call as the library read it, or one with an `error`."""
    if not isinstance(name, str) or not name:
        name, status = "", "missing_name" if status == "ok" else status
    try:
        json.dumps(
            [name, arguments], ensure_ascii=False
        ).encode()  # half of a surrogate pair is JSON, but no text
    except ValueError:
        return ToolCall("", {}, "error: a tool call cannot be read")
    if status != "ok":
        return ToolCall(name, {}, f"error: a tool call {_PROBLEMS.get(status, status)}")
    if not isinstance(arguments, dict):
        return ToolCall(name, {}, f"error: {name}: arguments must be a JSON object")
    return ToolCall(name, {k: v.strip() if isinstance(v, str) else v for k, v in arguments.items()})


_LLAMA3_CALL = re.compile(
    r'\A\s*(?:<\|python_tag\|>)?\s*\{\s*"name"\s*:|\{\s*"name"\s*:\s*"[^"]*"\s*,\s*"(?:parameters|arguments)"\s*:'
)


def _parse_llama3(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """A call is a bare JSON object. Llama's template knows one in a turn; here several may follow each other: what was
    sampled is never rendered again, and a swarm lives by parallel calls."""
    found = _LLAMA3_CALL.search(text)
    if found is None:
        return text.strip(), ()
    content = text[: found.start()].strip()
    calls: list[ToolCall] = []
    while found is not None:
        try:
            raw, end = json.JSONDecoder().raw_decode(text, text.index("{", found.start()))
        except (ValueError, RecursionError):
            calls.append(_call("", {}, "invalid_json"))
            break
        calls.append(_call(raw.get("name"), raw.get("parameters", raw.get("arguments", {}))))
        found = _LLAMA3_CALL.search(text, end)
    return content, tuple(calls)
