"""LoRA adapters in the config, and what has to hold between policies and roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from parl.config.base import ConfigModel, PositiveInt

if TYPE_CHECKING:
    pass


class Adapter(ConfigModel):
    """A LoRA adapter: low-rank updates of another policy's linear layers, trained in place of its weights."""

    base: str
    """The policy that it is an adapter on. Several may share one, which is in memory once and not trained by RL."""
    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """The update is multiplied by alpha / rank (peft's `lora_alpha`)."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = (
        "all-linear"
    )
    """Names of linear layers, such as [q_proj, v_proj]; `all-linear` is all of them but the head (and, in a
    mixture of experts, but the experts and their router; of a model that sees, those of its text part)."""
