"""Small models that see, with random weights: one of each family, as a transformers folder would give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from parl.config.tiny import TinyVlm
from parl.core import images
from parl.policy.models.vision import families as eyes
from parl.policy.models.vision import tiny
from tests.support.tokenizers import QWEN2_5, tokenizer_with

NAMES = ("qwen3_vl", "qwen2_5_vl", "llava", "idefics3")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
    "bos_token_id": None,
}


def picture(seed: int, width: int = 48, height: int = 32) -> str:
    """Noise, so that no two images and no two places of one are alike."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return images.to_uri(Image.fromarray(pixels))


def model_that_sees(name: str) -> tuple[Any, Any]:
    """(model with eyes, tokenizer)."""
    torch.manual_seed(0)
    model, tokenizer = {
        "qwen3_vl": qwen3_vl,
        "qwen2_5_vl": qwen2_5_vl,
        "llava": llava,
        "idefics3": idefics3,
    }[name]()
    return model.eval(), tokenizer


def qwen3_vl() -> tuple[Any, Any]:
    tokenizer = tokenizer_with((*QWEN2_5, *tiny.MARKS), "<|im_end|>", pad_token="<|endoftext|>")
    shape = TinyVlm(
        hidden_size=32, ff_size=48, num_heads=2, vision_size=16, max_pixels=64 * 64, merge_size=1
    )
    return tiny.build_model(shape, tokenizer, seed=0), tokenizer


def qwen2_5_vl() -> tuple[Any, Any]:
    tokenizer = tokenizer_with((*QWEN2_5, *tiny.MARKS), "<|im_end|>", pad_token="<|endoftext|>")
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(tiny.MARKS))
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": rope,
            "pad_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size=size)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    model.image_adapter = eyes.Qwen(config, processor, tokenizer)
    return model, tokenizer


def llava() -> tuple[Any, Any]:
    tokenizer = tokenizer_with((*QWEN2_5, "<image>"), "<|im_end|>", pad_token="<|endoftext|>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
    )
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer), pad_token_id=None, eos_token_id=None)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    model: Any = LlavaForConditionalGeneration(config)
    model.image_adapter = eyes.Llava(config, processor, tokenizer)
    return model, tokenizer


def idefics3() -> tuple[Any, Any]:
    marks = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    marks += ["<fake_token_around_image>", "<global-img>"]
    tokenizer = tokenizer_with(
        (*QWEN2_5, "<image>", *marks), "<|im_end|>", pad_token="<|endoftext|>"
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = {
        **TEXT,
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "pad_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "initializer_range": 0.2,
    }
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        scale_factor=2,
        pad_token_id=None,
    )
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    model: Any = Idefics3ForConditionalGeneration(config)
    model.image_adapter = eyes.Idefics3(config, processor, tokenizer)
    return model, tokenizer


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write one as a transformers folder."""
    model.save_pretrained(folder)
    eyes.save(model, folder)
    tokenizer.save_pretrained(folder)
