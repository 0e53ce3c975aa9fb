"""A policy that sees, built from nothing: a stock Qwen3-VL layout of 0.65 M parameters with the tiny word tokenizer.

In: a shape and the tokenizer's special ids. Out: a model with eyes; a normal transformers folder once it is saved.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from parl.config.tiny import VISION_HEADS, TinyVlm
from parl.policy.models.vision.families import Qwen
from parl.policy.models.vision.induction import induction_init

MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Tokens that the tokenizer must have."""
GRID = 12
"""Places by side of the learned position grid, which is stretched over each image."""


def build_model(shape: TinyVlm, tokenizer: Any, seed: int) -> Any:
    """A `Qwen3VLForConditionalGeneration` with the initialisation under which it soon learns to see.

    Weights are drawn with 0.08 and the positions of an image's patches with 1. With the usual 0.02 for both, it has
    learned little of where things are in an image by the time at which it knows that (docs/explain/models-that-see.md).
    """
    head = shape.hidden_size // shape.num_heads
    third = head // 2 // 3
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(MARKS))
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.ff_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_heads,
            "head_dim": head,
            "max_position_embeddings": shape.max_positions,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_interleaved": True,
                "mrope_section": [head // 2 - 2 * third, third, third],
            },
            "initializer_range": 0.08,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_size,
            "intermediate_size": 2 * shape.vision_size,
            "num_heads": VISION_HEADS,
            "patch_size": shape.patch_size,
            "spatial_merge_size": shape.merge_size,
            "temporal_patch_size": 1,
            "out_hidden_size": shape.hidden_size,
            "num_position_embeddings": GRID**2,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.08,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
    processor = Qwen2VLImageProcessorPil(
        patch_size=shape.patch_size,
        merge_size=shape.merge_size,
        temporal_patch_size=1,
        size={"shortest_edge": shape.min_pixels, "longest_edge": shape.max_pixels},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: Any = Qwen3VLForConditionalGeneration(config)
        model.model.visual.pos_embed.weight.normal_()
        if shape.copies:
            induction_init(model.model.language_model, seed)
    model.image_adapter = Qwen(config, processor, tokenizer)
    return model
