"""Shapes of the tiny models, which are built from nothing for an environment's words."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parl.config.base import ConfigModel, PositiveInt

VISION_HEADS = 2
"""Attention heads of the tiny vision part."""


class TinyShape(ConfigModel):
    """The sizes that every tiny model has."""

    hidden_size: PositiveInt = 128
    num_heads: PositiveInt = 4
    ff_size: PositiveInt = 128
    max_positions: PositiveInt = 2048


class TinyModel(TinyShape):
    """Shape of `model: tiny`: a stock LFM2 layout, which learns in minutes on a CPU."""

    # The convolution hands the word before to the next layer, without which copying does not set in
    # (ADR 5). A third attention layer learned no faster per second.
    layers: Annotated[tuple[Literal["conv", "full_attention"], ...], Field(min_length=1)] = (
        "conv",
        "full_attention",
        "full_attention",
    )


class TinyVlm(TinyShape):
    """Shape of `model: tiny_vlm`, which sees: a stock Qwen3-VL layout."""

    num_layers: PositiveInt = 3
    vision_size: PositiveInt = 64
    """Hidden size of the vision part."""
    vision_layers: PositiveInt = 2
    patch_size: PositiveInt = 8
    """Side of a patch in pixels."""
    merge_size: PositiveInt = 2
    """Side of the square of patches that becomes one token: 16 x 16 pixels by default."""
    min_pixels: PositiveInt = 32 * 32
    """A smaller image is enlarged to about this many."""
    max_pixels: PositiveInt = 128 * 128
    """A larger image is shrunk to about this many: by default 64 tokens."""
    # Measured on configs/joint.yaml: recall .10 after 450 steps without, .98 after 120 with it.
    copies: bool = False
    """Begin with attention to the word before, without which the model does not learn to copy words
    (the results of a search, say)."""

    @model_validator(mode="after")
    def _heads_fit(self) -> TinyVlm:
        if self.hidden_size % (2 * self.num_heads) or self.hidden_size // self.num_heads < 6:
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.num_heads} heads: each head needs an "
                "even size of at least 6 (positions in time, height and width)"
            )
        if self.vision_size % (4 * VISION_HEADS):
            raise ValueError(
                f"vision_size is {self.vision_size}; take a multiple of {4 * VISION_HEADS}"
            )
        if self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels is above max_pixels; swap them")
        return self
