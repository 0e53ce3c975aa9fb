"""A policy built from nothing: a stock LFM2 layout of 0.4 M parameters and a word-level tokenizer.

In: the environment's vocabulary and tools. Out: a normal transformers folder (`AutoModelForCausalLM`,
`AutoTokenizer`). Fixed scaffolding of tool calls is one token each, so that a search costs about six tokens.
Initialisation and shape are measured choices: see docs/explain/log-cold-start.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from parl.config.tiny import TinyModel
from parl.env.tools import ToolSpec

PAD, UNK, END = "<pad>", "?", "<|im_end|>"
HEADERS = ("<|im_start|>system\n", "<|im_start|>user\n", "\n<|im_start|>user\n")
NEXT_HEADERS = ("\n<|im_start|>tool\n", "\n<|im_start|>assistant\n")
CALL_END = '"}}</tool_call>'


def call_scaffolding(tools: Sequence[ToolSpec]) -> list[str]:
    """The fixed texts of the tools' calls: what stands before, between and after the required arguments.

    A call of a tool that requires none is fixed as a whole.
    """
    texts = []
    for tool in tools:
        required = tool.parameters.get("required", [])
        if not required:
            texts.append(f'<tool_call>{{"name": "{tool.name}", "arguments": {{}}}}</tool_call>')
            continue
        texts.append(f'<tool_call>{{"name": "{tool.name}", "arguments": {{"{required[0]}": "')
        texts += [f'", "{name}": "' for name in required[1:]]
    return [*dict.fromkeys(texts), CALL_END]


def build_tokenizer(
    words: Sequence[str], tools: Sequence[ToolSpec], marks: Sequence[str] = ()
) -> Any:
    """A `PreTrainedTokenizerFast`: one token a word, newline a word of its own, scaffolding as added tokens.

    `marks` are further markup: what stands for images.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    markup = [END, *HEADERS, *NEXT_HEADERS, *call_scaffolding(tools), *marks]
    vocab = {w: i for i, w in enumerate(dict.fromkeys([PAD, UNK, *markup, *words]))}
    inner = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[ \t]+"), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    inner.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in [PAD, *markup]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, unk_token=UNK
    )


def build_model(shape: TinyModel, vocab_size: int, eos_id: int, seed: int) -> Any:
    """A `Lfm2ForCausalLM` with the initialisation under which copying is learned in about a hundred steps."""
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    d = shape.hidden_size
    config = Lfm2Config(
        vocab_size=vocab_size,
        hidden_size=d,
        intermediate_size=shape.ff_size,
        num_hidden_layers=len(shape.layers),
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.max_positions,
        norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        conv_bias=False,
        conv_L_cache=3,
        block_auto_adjust_ff_dim=False,
        layer_types=list(shape.layers),
        pad_token_id=0,
        eos_token_id=eos_id,
        bos_token_id=None,
    )
    model = Lfm2ForCausalLM(config)
    _initialize(model, torch.Generator().manual_seed(seed))
    return model


SHARED_MEAN = 2.0
"""Norm of what all embeddings have in common, in units of what is each word's own."""
COPY_GAIN = 2.0
"""How strongly an attention layer passes on what it attends to, before it has learned anything."""


def _initialize(model: Any, generator: Any) -> None:
    """Draw the weights so that copying, the skill under every tool call, is near at hand.

    Two departures from plain normal weights, each without effect alone and together the difference between 100 steps
    and none within 200 (docs/explain/log-cold-start.md):

    * Embeddings share a mean. The convolution multiplies three projections of its input; a common part makes two of
      them act as open gates, so that what the third sees of the words before reaches the next layer from the start.
    * Attention copies. Its output projection begins as the transpose of its value projection (compare Trockman and
      Kolter, "Mimetic initialization", 2305.09828), so attending to a word raises that word's logit, the head being
      tied to the embedding.
    """
    import torch

    d = model.config.hidden_size
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed" in name:
                shared = torch.randn(d, generator=generator)
                p.normal_(0, 1.0, generator=generator)
                p.add_(SHARED_MEAN * shared).div_(math.sqrt(1 + SHARED_MEAN**2))
            elif "conv.conv" in name:
                p.normal_(0, 0.5, generator=generator)
            elif p.dim() == 2:
                p.normal_(0, 1 / math.sqrt(p.shape[1]), generator=generator)
                if name.endswith(("out_proj.weight", "w2.weight")):
                    p.mul_(0.1)
            elif "q_layernorm" in name or "k_layernorm" in name:
                p.fill_(1.8)
            elif "embedding_norm" in name:
                p.fill_(0.5 / math.sqrt(d))
            else:
                p.fill_(1.0)
        for layer in model.model.layers:
            attention = getattr(layer, "self_attn", None)
            if attention is not None:
                attention.out_proj.weight.add_(COPY_GAIN * attention.v_proj.weight.T)
