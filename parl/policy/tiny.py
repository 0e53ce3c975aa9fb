"""A policy built from nothing: a stock LFM2 layout of 0.4 M parameters and a word-level tokenizer.

In: the environment's vocabulary and tools. Out: a normal transformers folder (`AutoModelForCausalLM`,
`AutoTokenizer`). Fixed scaffolding of tool calls is one token each, so that a search costs about six tokens.
Initialisation and shape are measured choices: see docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from parl.config.schema import TinyModel
from parl.env import ToolSpec

PAD, UNK, END = "<pad>", "?", "<|im_end|>"
HEADERS = ("<|im_start|>system\n", "<|im_start|>user\n", "\n<|im_start|>user\n")
NEXT_HEADERS = ("\n<|im_start|>tool\n", "\n<|im_start|>assistant\n")
CALL_END = '"}}</tool_call>'


def call_scaffolding(tools: Sequence[ToolSpec]) -> list[str]:
    """The fixed texts of the tools' calls: what stands before, between and after the required arguments."""
    texts = []
    for tool in tools:
        required = tool.parameters.get("required", [])
        if not required:
            continue
        texts.append(f'<tool_call>{{"name": "{tool.name}", "arguments": {{"{required[0]}": "')
        texts += [f'", "{name}": "' for name in required[1:]]
    return [*dict.fromkeys(texts), CALL_END]


def build_tokenizer(words: Sequence[str], tools: Sequence[ToolSpec]) -> Any:
    """A `PreTrainedTokenizerFast`: one token a word, newline a word of its own, scaffolding as added tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    markup = [END, *HEADERS, *NEXT_HEADERS, *call_scaffolding(tools)]
    vocab = {w: i for i, w in enumerate(dict.fromkeys([PAD, UNK, *markup, *words]))}
    inner = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[ \t]+"), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [PAD, *markup]])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=END, unk_token=UNK)


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
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        conv_bias=False,
        conv_L_cache=3,
        block_auto_adjust_ff_dim=False,
        layer_types=list(shape.layers),
        pad_token_id=0,
        eos_token_id=eos_id,
        bos_token_id=None,
    )
    generator = torch.Generator().manual_seed(seed)
    model = Lfm2ForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed" in name:
                p.normal_(0, 1.0, generator=generator)
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
    return model
