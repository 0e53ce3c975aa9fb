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
    """The optimizer: Muon on matrices where `muon_lr` is set, AdamW on everything else."""

    lr: PositiveFloat = 3e-4
    """AdamW's learning rate."""
    # Measured on the quickstart's cold start: copying sets in at step 100 with a scale of 22.6, at
    # step 140 with 6.
    embedding_lr_scale: PositiveFloat = 1.0
    """Multiplies `lr` for the token embedding (tiny models with unit-rms embeddings want 5 to
    25)."""
    muon_lr: NonNegFloat = 0.0
    """Learning rate of Muon for two-dimensional weights; 0 leaves them to AdamW."""
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    weight_decay: NonNegFloat = 0.0
    grad_clip: PositiveFloat = 1.0
    """Maximum norm of the gradient."""
    warmup_steps: NonNegInt = 0
    # A single agent became worse at a constant 3e-4 (.905 to .835 within 16 steps of RL); at 1.5e-4
    # with a linear decay it stayed (.914).
    decay: Literal["constant", "linear"] = "constant"
    """`linear`: constant up to `decay_start`, then down to 3 % at the end of the run or stage."""
    decay_start: Fraction = 0.3
    """Share of the run or stage after which the rate falls."""


class EngineConfig(ConfigModel):
    """The engine with which a policy generates."""

    type: Literal["torch", "vllm"] = "torch"
    """`torch`: PARL's own, in this process. `vllm`: an extra, in processes of its own
    (docs/how-to/use-vllm.md)."""
    prefill_tokens: PositiveInt = 4096
    """Most prompt tokens, padding included, in one forward pass."""
    decode_rows: PositiveInt = 256
    """Most sequences in one decoding pass."""
    kv_cache_gb: PositiveFloat = 4.0
    """vllm: memory of its key-value cache, GiB. The torch engine takes what it
    needs."""


def _torch_by_default(engine: Any) -> Any:
    """Add the engine's type where a file leaves it out: a discriminated union has no default."""
    return {"type": "torch", **engine} if isinstance(engine, dict) else engine


Engine = Annotated[
    EngineConfig | RemoteConfig, Field(discriminator="type"), BeforeValidator(_torch_by_default)
]


class Policy(ConfigModel):
    """One set of weights: a model, or an adapter on another policy's model."""

    model: str = "tiny"
    """`tiny` or `tiny_vlm` (which sees; both are built from the key of that name, with a vocabulary
    from the environment), a transformers folder, a run folder, or an id on the Hugging Face hub
    (`ORG/NAME`). For an adapter: a peft folder or a run folder to start from; otherwise it starts
    at no change."""
    adapter: Adapter | None = None
    """null = full weights. An adapter has its base's `tiny`, `engine`, `dtype`, `renderer` and
    `tools_in_prompt`."""
    tiny: TinyModel = TinyModel()
    tiny_vlm: TinyVlm = TinyVlm()
    engine: Engine = EngineConfig()
    """`type: openai` instead: the weights are behind an endpoint
    (docs/how-to/use-an-endpoint.md)."""
    optimizer: Optimizer = Optimizer()
    # A bfloat16 weight rounds away an update below about 0.2 % of it: in thirty steps at 1e-6 such
    # weights go less than a tenth of the way.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of sampling and of gradients. Weights that learn, and their optimizer's state, are
    always float32: see docs/how-to/use-a-pretrained-model.md."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third
    more time. `selective` keeps the results of matrix products and attention, and computes the rest
    again."""
    renderer: Literal["auto", "chatml", "qwen3", "llama3", "kimi_k2_5"] = "auto"
    """The chat format. `auto` recognises it by the tokenizer: see
    docs/reference/chat-formats.md."""
    tools_in_prompt: bool = True
    """List the tools and their schemas in the system message. A tiny model never lists them: it has
    learned them in the cold start."""

    @model_validator(mode="after")
    def _vllm_has_a_model(self) -> Policy:
        if self.engine.type == "vllm" and self.is_tiny:
            raise ValueError(
                "engine.type is vllm, which cannot serve a tiny model; give `model` a transformers "
                "folder or an id on the Hugging Face hub, or set engine.type: torch"
            )
        return self

    @property
    def lists_tools(self) -> bool:
        """Whether the system message lists the tools."""
        return self.tools_in_prompt and not self.is_tiny

    @property
    def is_tiny(self) -> bool:
        """Whether the model is built from nothing, with a vocabulary from the environment."""
        return self.model in ("tiny", "tiny_vlm")

    @property
    def remote(self) -> RemoteConfig | None:
        """The endpoint that serves the policy, or None where its weights are here."""
        return self.engine if isinstance(self.engine, RemoteConfig) else None
