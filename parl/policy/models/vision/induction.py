"""Weights under which the text part of a tiny model that sees learns to copy, the skill under every search.

The tiny model of text alone has a convolution, by which a word knows the one before it (`parl.policy.models.tiny`). This
layout is attention alone and finds no such thing in a whole stage of it, so two heads of the first layer begin with it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from parl.policy.models.tiny import COPY_GAIN, SHARED_MEAN

LOOK_BACK = 3.0
"""Weight of what all embeddings have in common in the queries and keys of the heads that look back."""
SHARPNESS = 2.0
"""Of attention in the first layer: the scale of its normalised queries and keys."""


def induction_init(text: Any, seed: int) -> None:
    """Draw the weights of a Qwen3-VL's text part anew, so that copying is near at hand.

    Embeddings share a mean, and later layers pass on what they attend to, as in `parl.policy.models.tiny`. Two heads of the
    first layer answer to that mean alone, by one vector in their keys and the same, turned back by one position, in
    their queries: under rotary positions such a head attends to the place before.
    """
    drawn = torch.Generator().manual_seed(seed)
    embeddings = text.embed_tokens.weight
    shared = torch.randn(embeddings.shape[1], generator=drawn)
    embeddings.normal_(0, 1.0, generator=drawn).add_(SHARED_MEAN * shared).div_(
        math.sqrt(1 + SHARED_MEAN**2)
    )
    for layer in text.layers:
        for name, weight in layer.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 1 / math.sqrt(weight.shape[1]), generator=drawn)
                weight.mul_(0.1 if name.endswith("down_proj.weight") else 1.0)
    for layer in text.layers[1:]:
        layer.self_attn.o_proj.weight.copy_(COPY_GAIN * layer.self_attn.v_proj.weight.T)
    first, direction, back = (
        text.layers[0].self_attn,
        shared / shared.norm(),
        text.rotary_emb.inv_freq,
    )
    for head in range(2):
        key = torch.randn(first.head_dim, generator=drawn)
        one, two = key.chunk(2)
        query = torch.cat(
            [one * back.cos() + two * back.sin(), two * back.cos() - one * back.sin()]
        )
        rows = slice(head * first.head_dim, (head + 1) * first.head_dim)
        for weight, vector in ((first.q_proj.weight, query), (first.k_proj.weight, key)):
            weight[rows] = 0.2 * weight[rows] + LOOK_BACK * torch.outer(vector, direction)
    first.q_norm.weight.fill_(SHARPNESS)
    first.k_norm.weight.fill_(SHARPNESS)
