"""Policies: model, optimizer and engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from parl.config.adapters import Adapter
from parl.config.base import (
    ConfigModel,
    Fraction,
    NonNegFloat,
    NonNegInt,
    PositiveFloat,
    PositiveInt,
    Rate,
)
from parl.config.endpoint import RemoteConfig
from parl.config.tiny import TinyModel, TinyVlm


class Optimizer(ConfigModel):
    """One optimizer per policy: Muon on matrices where `muon_lr` is set, AdamW on everything else."""

    lr: PositiveFloat = 3e-4
    """AdamW's learning rate."""
    embedding_lr_scale: PositiveFloat = 1.0
    """Multiplies `lr` for the token embedding (tiny models with unit-rms embeddings want 5 to 25)."""
    muon_lr: NonNegFloat = 0.0
    """Learning rate of Muon for two-dimensional weights; 0 leaves them to AdamW."""
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    weight_decay: NonNegFloat = 0.0
    grad_clip: PositiveFloat = 1.0
    """Maximum norm of the gradient."""
    warmup_steps: NonNegInt = 0
    decay: Literal["constant", "linear"] = "constant"
    """`linear`: constant for `hold`, then down to 3 % at the end of the run or stage."""
    decay_start: Fraction = 0.3


class EngineConfig(ConfigModel):
    """How a policy generates."""

    type: Literal["torch", "vllm"] = "torch"
    """`torch`: ours, in this process. `vllm`: an extra, in processes of its own (docs/how-to/use-vllm.md)."""
    prefill_tokens: PositiveInt = 4096
    """Largest number of (padded) prompt tokens in one forward pass."""
    decode_rows: PositiveInt = 256
    """Largest number of sequences in one decoding pass."""
    kv_cache_gb: PositiveFloat = 4.0
    """vllm: memory of its key-value cache, GiB. The torch engine takes what it needs."""


def _own_by_default(engine: Any) -> Any:
    return {"type": "torch", **engine} if isinstance(engine, dict) else engine


Engine = Annotated[
    EngineConfig | RemoteConfig, Field(discriminator="type"), BeforeValidator(_own_by_default)
]


class Policy(ConfigModel):
    """One set of weights: a model of its own, or an adapter on another policy's."""

    model: str = "tiny"
    """`tiny` or `tiny_vlm` (which sees; built from the key of that name, with a vocabulary from the environment), a
    transformers folder, a run folder, or an id on the Hugging Face hub (`ORG/NAME`). Of an adapter: a peft folder or a
    run folder to start from; otherwise it starts at no change."""
    adapter: Adapter | None = None
    """null = full weights. An adapter has its base's `tiny`, `engine`, `dtype`, `renderer` and `tools_in_prompt`."""
    tiny: TinyModel = TinyModel()
    tiny_vlm: TinyVlm = TinyVlm()
    engine: Engine = EngineConfig()
    """`type: openai` instead: the weights are behind an endpoint (see docs/how-to/use-an-endpoint.md)."""
    optimizer: Optimizer = Optimizer()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which it samples and computes gradients. Weights that learn, and their optimizer's state, are always float32:
    see docs/how-to/use-a-pretrained-model.md."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time.
    `selective` keeps the results of matrix products and attention, and computes the rest again."""
    renderer: Literal["auto", "chatml", "qwen3", "llama3", "kimi_k2_5"] = "auto"
    """The chat format. `auto` tells it by the tokenizer: see docs/reference/chat-formats.md."""
    tools_in_prompt: bool = True
    """List the tools and their schemas in the system message (a tiny model has learned them and never lists them)."""

    @model_validator(mode="after")
    def _vllm_has_a_model(self) -> Policy:
        if self.engine.type == "vllm" and self.is_tiny:
            raise ValueError(
                "engine.type is vllm, which cannot serve a tiny model; give `model` a transformers folder or an id on "
                "the Hugging Face hub, or set engine.type: torch"
            )
        return self

    @property
    def lists_tools(self) -> bool:
        return self.tools_in_prompt and not self.is_tiny

    @property
    def is_tiny(self) -> bool:
        """Built from nothing, with a vocabulary from the environment."""
        return self.model in ("tiny", "tiny_vlm")

    @property
    def remote(self) -> RemoteConfig | None:
        """The endpoint that serves it, if its weights are not here."""
        return self.engine if isinstance(self.engine, RemoteConfig) else None
