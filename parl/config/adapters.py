"""LoRA adapters in the config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from parl.config.base import ConfigModel, PositiveInt


class Adapter(ConfigModel):
    """A LoRA adapter: low-rank updates of another policy's linear layers.

    They are trained in place of its weights (docs/how-to/train-adapters.md).
    """

    # No dropout: the learner would see other probabilities than those that were sampled from.
    base: str
    """The policy on which the adapter stands. Several adapters may share one, which is in memory
    once and not trained by RL."""
    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """The update is multiplied by alpha / rank (peft's `lora_alpha`)."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = (
        "all-linear"
    )
    """Names of linear layers, such as [q_proj, v_proj]. `all-linear` is all of them without the
    head; in a mixture of experts also without the experts and their router; in a model that sees,
    those of its text part."""
