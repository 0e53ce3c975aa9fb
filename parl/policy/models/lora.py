"""LoRA adapters (peft) inside transformers models: attach, read, write, and several of them in one pass.

In: a causal LM and the shape of an adapter. Out: the same class of model with low-rank layers inside. A weight of an
adapter is called as in peft's files, without the adapter's name: `model.layers.0.self_attn.q_proj.lora_A.weight`.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

DEFAULT = "default"
FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Of every name in a peft file."""


def attach(model: Any, adapters: Mapping[str, LoraConfig]) -> Any:
    """Put adapters into the model, in place; nothing else of it is trainable then. B is 0, so it computes the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Already found a `peft_config`"
        )  # several adapters are what we want
        for name, config in adapters.items():
            inject_adapter_in_model(copy.deepcopy(config), model, name)
    for key, p in model.named_parameters():
        if ".lora_" in key:
            p.data = (
                p.data.float()
            )  # also on a bfloat16 base, whose steps would be too coarse to learn in
    return model


def share_weights(model: Any, same: bool) -> Any:
    """A copy of the model's modules on the same weights in memory.

    Args:
        same: the parameters are the model's own objects; otherwise frozen ones on the same memory.
    """
    own = {
        id(p): p if same else torch.nn.Parameter(p.detach(), requires_grad=False)
        for p in model.parameters()
    }
    return copy.deepcopy(model, own)


def has_adapter(model: Any) -> bool:
    return any(isinstance(m, LoraLayer) for m in model.modules())


def adapter_state(model: Any, name: str = DEFAULT) -> dict[str, torch.Tensor]:
    """The weights of one adapter, by their names in peft's files."""
    pattern = re.compile(rf"(.+\.lora_[AB])\.{re.escape(name)}\.(\w+)")
    found = ((pattern.fullmatch(key), value) for key, value in model.state_dict().items())
    return {f"{match[1]}.{match[2]}": value.detach() for match, value in found if match}


@torch.no_grad()
def set_adapter_state(model: Any, weights: Mapping[str, torch.Tensor], name: str = DEFAULT) -> None:
    """Replace the weights of one adapter. Raises RuntimeError when a name or shape does not fit."""
    own = adapter_state(model, name)
    different = sorted({k for k in own.keys() | weights.keys() if k not in own or k not in weights})
    different += sorted(k for k in own if k in weights and own[k].shape != weights[k].shape)
    if different:
        raise RuntimeError(f"the adapter's weights do not fit: {', '.join(different[:3])}")
    for key, value in weights.items():
        own[key].copy_(value)


def base_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights under the adapters."""
    return {k: v.detach() for k, v in model.state_dict().items() if ".lora_" not in k}


def set_base_state(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Replace the weights under the adapters. Raises RuntimeError when a name or shape does not fit."""
    model.load_state_dict({**model.state_dict(), **weights} if has_adapter(model) else weights)


def model_state(model: Any) -> dict[str, torch.Tensor]:
    """What is trained of a policy: its adapter if it has one, else all weights."""
    return adapter_state(model) if has_adapter(model) else base_state(model)


def set_model_state(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `model_state`."""
    if has_adapter(model):
        set_adapter_state(model, weights)
    else:
        set_base_state(model, weights)


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write a peft adapter folder; `base` is where its base model is found."""
    folder.mkdir(parents=True)
    weights = {PREFIX + k: v.cpu().contiguous() for k, v in adapter_state(model).items()}
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    config = copy.deepcopy(model.peft_config[DEFAULT])
    config.base_model_name_or_path, config.task_type, config.inference_mode = (
        base,
        "CAUSAL_LM",
        True,
    )
    config.save_pretrained(str(folder))


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Shape and weights of a peft adapter folder."""
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    return config, {k.removeprefix(PREFIX): v for k, v in load_file(folder / FILE).items()}


class RowAdapters:
    """Says which adapter each row of a pass takes, by peft's mixed batches: the base's product is computed once."""

    def __init__(self, model: Any) -> None:
        self._rows: list[str] = []
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.register_forward_pre_hook(self._name_rows, with_kwargs=True)

    def of(self, rows: Sequence[str | None]) -> None:
        """Of the next pass; None: the base alone."""
        self._rows = [name or "__base__" for name in rows]

    def _name_rows(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": self._rows}
