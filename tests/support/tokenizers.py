"""Small tokenizers with the markup of pretrained families, and their own chat templates, which TRL ships."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

QWEN2_5 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
QWEN3 = (*QWEN2_5, "<tool_response>", "</tool_response>", "<think>", "</think>")
HEADER = ("<|start_header_id|>", "<|end_header_id|>")
LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *HEADER,
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
CALL = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
SECTION = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
MEDIA = ("<|media_begin|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>")
KIMI = (
    "[EOS]",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_system|>",
    "<|im_middle|>",
    "<|im_end|>",
    *SECTION,
    *CALL,
)
WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def tokenizer_with(
    markup: Sequence[str], eos: str, template: str | None = None, **more: str
) -> Any:
    """A byte-level BPE that splits words as Qwen's does (`.` and a newline are one token), with a family's markup."""
    inner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(WORDS, "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    text = [
        'find the capital of Kenya.\n It is Nairobi.\n\n {"name": "search", "arguments": {"query": "Kenya"}}'
    ] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    inner.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in markup if "|" in t]
    )
    inner.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in markup if "|" not in t]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, **more)
    if template:
        tokenizer.chat_template = (resources.files("trl") / "chat_templates" / template).read_text()
    return tokenizer


def qwen3() -> Any:
    return tokenizer_with(QWEN3, "<|im_end|>", "qwen3.jinja")


def llama3() -> Any:
    return tokenizer_with(LLAMA3, "<|eot_id|>", "llama3_2.jinja", bos_token="<|begin_of_text|>")


def kimi() -> Any:
    return tokenizer_with((*KIMI, *MEDIA), "<|im_end|>")


def qwen2_5() -> Any:
    return tokenizer_with(QWEN2_5, "<|im_end|>", "qwen2_5.jinja")
