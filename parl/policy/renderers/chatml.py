"""Append-only ChatML with Hermes tool calls: the tiny model, SmolLM2 and Qwen2.5.

In: texts. Out: token ids; every text is encoded once, on its own, so a longer conversation always begins with the
ids of the shorter one. Text from outside (prompts, observations) cannot forge markup: it is encoded by a tokenizer
that has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from parl.core import images
from parl.core.errors import ConfigError
from parl.core.types import ToolCall
from parl.env.tools import ToolSpec
from parl.policy.renderers.images import ImageSegmenter

if TYPE_CHECKING:
    from parl.policy.models.vision.families import ImageAdapter

END = "<|im_end|>"
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_TOOLS = """

# Tools
You may call one or more functions. Their signatures:
<tools>
{specs}
</tools>
For each call write <tool_call>{{"name": NAME, "arguments": {{...}}}}</tool_call>.
A message without a call is final."""


class ChatML:
    """Renderer for any fast tokenizer that has `<|im_start|>` and `<|im_end|>`.

    It works on the tokenizer's backend (`tokenizers.Tokenizer`): ten times faster than the wrapper for short texts.

    Args:
        eyes: of a model that sees.
    """

    def __init__(self, tokenizer: Any, eyes: ImageAdapter | None = None) -> None:
        self._tokenizer, self._eyes, self._pictures = tokenizer, eyes, ImageSegmenter(eyes)
        self._backend = tokenizer.backend_tokenizer
        self._literal = _without_markup(self._backend)
        self._end = self._backend.token_to_id(END)
        if self._end is None:
            raise ConfigError(
                f"The tokenizer has no {END}: this renderer speaks ChatML (SmolLM2, Qwen2.5, tiny)."
            )
        self._markup = lru_cache(4096)(self._encode_markup)
        self._text = lru_cache(65536)(self._encode_text)
        self._parsed = lru_cache(65536)(self._parse)

    def __reduce__(self) -> tuple[type[ChatML], tuple[Any, ImageAdapter | None]]:
        return ChatML, (self._tokenizer, self._eyes)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self._end,)

    def start(self, system: str, tools: Sequence[ToolSpec], user: str) -> list[int]:
        if tools:
            specs = "\n".join(
                json.dumps(
                    {"name": t.name, "description": t.description, "parameters": t.parameters}
                )
                for t in tools
            )
            system = (system + _TOOLS.format(specs=specs)).strip()
        ids: list[int] = []
        if system:
            ids += [
                *self._markup("<|im_start|>system\n"),
                *self._outside(system),
                *self._markup(END),
                *self._markup("\n"),
            ]
        ids += [*self._header("user"), *self._outside(user), self._end]
        return [*ids, *self._header("assistant", first=False)]

    def observe(self, observations: Sequence[str], turn_ids: Sequence[int] = ()) -> list[int]:
        ids: list[int] = []
        for text in observations:
            ids += [*self._header("tool", first=False), *self._outside(text), self._end]
        return [*ids, *self._header("assistant", first=False)]

    def reply(self, text: str) -> list[int]:
        """A further message of the user (in a chat with `parl serve`) and the next assistant header."""
        return [
            *self._header("user", first=False),
            *self._outside(text),
            self._end,
            *self._header("assistant", first=False),
        ]

    def parse(self, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        return self._parsed(tuple(token_ids))

    def encode(self, text: str) -> list[int]:
        return [i for i in self._markup(text) if i not in self._pictures.forbidden]

    def show(self, text: str) -> list[int]:
        return list(self._outside(text))

    def images(self, text: str) -> tuple[str, ...]:
        return self._pictures.shown(text)

    def unknown_words(self, text: str) -> list[str]:
        """Parts of a text that the vocabulary lacks (a word-level one: the policy would read `?` in their place)."""
        text = images.IMAGE.sub("", text)  # what is read in its place need not be known
        encoded = self._literal.encode(text, add_special_tokens=False)
        unknown = self._tokenizer.unk_token_id
        words = (
            text[a:b]
            for i, (a, b) in zip(encoded.ids, encoded.offsets, strict=True)
            if i == unknown
        )
        return [word for word in words if word != self._tokenizer.unk_token]

    def _header(self, role: str, first: bool = True) -> tuple[int, ...]:
        return self._markup(("" if first else "\n") + f"<|im_start|>{role}\n")

    def _outside(self, text: str) -> Sequence[int]:
        """A text from outside, with its images."""
        pieces = self._pictures.pieces(text)
        return [
            i for piece in pieces for i in (self._text(piece) if isinstance(piece, str) else piece)
        ]

    def _encode_markup(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._literal.encode(text, add_special_tokens=False).ids)

    def _parse(self, token_ids: tuple[int, ...]) -> tuple[str, tuple[ToolCall, ...]]:
        ids = list(token_ids[:-1] if token_ids and token_ids[-1] == self._end else token_ids)
        text = self._backend.decode(ids, skip_special_tokens=False)
        return text.strip(), parse_calls(text)


def _without_markup(backend: Any) -> Any:
    """The tokenizer without its added tokens: `<|im_end|>` and `<tool_call>` are ordinary characters to it."""
    raw = json.loads(backend.to_str())
    model = raw["model"]
    markup = {token["content"] for token in raw["added_tokens"]} - {model.get("unk_token")}
    raw["added_tokens"] = []
    if isinstance(model["vocab"], dict):  # a word-level vocabulary holds them as words, too
        model["vocab"] = {text: i for text, i in model["vocab"].items() if text not in markup}
    return type(backend).from_str(json.dumps(raw))


def parse_calls(text: str) -> tuple[ToolCall, ...]:
    """The `<tool_call>`s in an assistant's text, in order; one that cannot be read has an `error`."""
    return tuple(_parse_call(m.group(1), m.group(0)) for m in _CALL.finditer(text))


def without_calls(text: str) -> str:
    """An assistant's text without the calls that can be read; one that cannot stays."""
    return _CALL.sub(
        lambda m: m.group(0) if _parse_call(m.group(1), m.group(0)).error else "", text
    ).strip()


def _parse_call(body: str, whole: str) -> ToolCall:
    if not whole.endswith("</tool_call>"):
        return ToolCall("", {}, "error: a <tool_call> was not closed with </tool_call>")
    try:
        raw = json.loads(body)
        json.dumps(
            raw, ensure_ascii=False
        ).encode()  # half of a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        message = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be read"
        return ToolCall("", {}, f"error: a <tool_call> is not JSON: {message}")
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        return ToolCall("", {}, 'error: a <tool_call> needs {"name": NAME, "arguments": {...}}')
    arguments = raw.get("arguments", {})
    if not isinstance(arguments, dict):
        return ToolCall(raw["name"], {}, f"error: {raw['name']}: arguments must be a JSON object")
    return ToolCall(
        raw["name"], {k: v.strip() if isinstance(v, str) else v for k, v in arguments.items()}
    )
