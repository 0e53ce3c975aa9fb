"""Models by name: built from nothing, loaded from a transformers folder, or fetched from the Hugging Face hub.

In: a policy's config and the environment. Out: a model and its tokenizer. Raises ConfigError with the way out.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from parl.config.adapters import Adapter
from parl.config.policy import Policy
from parl.core.errors import ConfigError, ModelUnavailable, did_you_mean
from parl.core.images import NO_IMAGE
from parl.core.manifest import verify
from parl.env.base import AgentEnv
from parl.env.swarm_tools import SWARM_TOOLS
from parl.policy.models import lora
from parl.policy.models.dtype import cast_parameters
from parl.policy.models.experts import routers
from parl.policy.models.tiny import build_model, build_tokenizer
from parl.policy.models.vision import families as eyes

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def load_policy(
    name: str, config: Policy, env: AgentEnv, seed: int, dtype: torch.dtype
) -> tuple[Any, Any]:
    """(model, tokenizer) of a policy, with weights in `dtype`. Tiny ones know the environment's words and tools."""
    if config.model == "tiny":
        tokenizer = build_tokenizer(env.vocabulary(), [*env.tool_specs(), *SWARM_TOOLS])
        return cast_parameters(
            build_model(config.tiny, len(tokenizer), tokenizer.eos_token_id, seed), dtype
        ), tokenizer
    if config.model == "tiny_vlm":
        from parl.policy.models.vision import tiny as tiny_vlm

        tools = [*env.tool_specs(), *SWARM_TOOLS]
        tokenizer = build_tokenizer([*env.vocabulary(), NO_IMAGE], tools, tiny_vlm.MARKS)
        return cast_parameters(
            tiny_vlm.build_model(config.tiny_vlm, tokenizer, seed), dtype
        ), tokenizer
    return load_folder(resolve_folder(name, config.model), dtype)


def new_adapter(name: str, config: Policy, base: Any, seed: int) -> Any:
    """The base's modules on the same weights, with a fresh adapter in them, or the stored one of `config.model`."""
    assert config.adapter is not None
    shape = lora_config(name, config.adapter, base)
    model = lora.share_weights(base, same=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lora.attach(model, {lora.DEFAULT: shape})
    if config.model != "tiny":
        load_adapter(name, model, resolve_folder(name, config.model, "adapter_config.json"))
    return model


def stored_adapter(name: str, config: Policy, base: Any, folder: Path) -> Any:
    """The same with the adapter of a checkpoint."""
    model = new_adapter(name, config.replace(model="tiny"), base, 0)
    load_adapter(name, model, folder)
    return model


def load_adapter(name: str, model: Any, folder: Path) -> None:
    """Give the model's adapter the weights of a peft folder. Raises ConfigError when they are of another shape."""
    try:
        shape, weights = lora.read_adapter(folder)
        own = model.peft_config[lora.DEFAULT]
        if (shape.r, shape.lora_alpha) != (own.r, own.lora_alpha):
            raise RuntimeError(
                f"rank {shape.r} and alpha {shape.lora_alpha}, here {own.r} and {own.lora_alpha}"
            )
        lora.set_adapter_state(model, weights)
    except Exception as error:  # peft, safetensors and torch raise many kinds for a bad folder
        raise ConfigError(
            f"{folder} is no adapter that fits policies.{name}.adapter: {error}"
        ) from None


def lora_config(name: str, adapter: Adapter, base: Any) -> LoraConfig:
    """The adapter in peft's terms. Raises ConfigError for a target that is no linear layer of the base."""
    head, sees = base.get_output_embeddings(), eyes.image_adapter_of(base) is not None
    layers = [
        key for key, m in base.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    ]
    if routers(base):  # their weights are fused, and the router is nobody's to bend
        layers = [key for key in layers if ".mlp." not in key]
    # One pass of the vision part serves agents with other adapters, so it has none.
    decoder = (
        next((f"{key}." for key, m in base.named_modules() if m is base.get_decoder()), "")
        if sees
        else ""
    )
    layers = [key for key in layers if key.startswith(decoder)]
    linear = sorted({key.rpartition(".")[2] for key in layers})
    targets = linear if adapter.target_modules == "all-linear" else list(adapter.target_modules)
    for target in targets:
        if target not in linear:
            raise ConfigError(
                f"policies.{name}.adapter.target_modules: '{target}' is no linear layer of policies.{adapter.base}."
                f"{did_you_mean(target, linear)} Or say all-linear."
            )
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=targets,
        exclude_modules=rf"(?!{re.escape(decoder)}).*" if decoder else None,
        base_model_name_or_path=adapter.base,
    )


def resolve_folder(name: str, model: str, has: str = "config.json") -> Path:
    """A folder of weights, the last checkpoint of a run that has a policy of this name, or a model of the hub.

    `has`: a file that the folder must hold.
    """
    path = Path(model)
    if (path / "config.resolved.yaml").is_file():
        found = sorted(path.glob(f"checkpoints/step_*/policies/{name}"))
        if not found:
            raise ConfigError(f"The run {path} has no checkpoint with a policy '{name}'.")
        verify(found[-1].parents[1])
        path = found[-1]
    if has == "config.json" and (path / "adapter_config.json").is_file():
        raise ConfigError(
            f"policies.{name}.model: {path} is an adapter. Merge it with its base first (parl export RUN --merged), or "
            f"make this policy an adapter as well: policies.{name}.adapter={{base: POLICY}}."
        )
    if (path / has).is_file():
        return path
    if has == "config.json" and not path.exists() and HUB_ID.fullmatch(model):
        return _from_hub(name, model)
    kind = "a transformers folder" if has == "config.json" else "a peft folder"
    hub = ", or an id on the Hugging Face hub (ORG/NAME)" if has == "config.json" else ""
    raise ConfigError(
        f"policies.{name}.model is '{model}', which is neither `tiny` nor `tiny_vlm`, nor {kind} (with a {has}), "
        f"nor a run folder. Give the path of one of these{hub}."
    )


def _from_hub(name: str, model: str) -> Path:
    """The model's folder in the hub's cache, downloaded where it is not there yet."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except (
        Exception
    ) as error:  # no network, no such model, a licence that was not accepted, a full disk
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
        raise ModelUnavailable(
            f"policies.{name}.model is '{model}', which is no folder here and could not be fetched from the Hugging "
            f"Face hub: {reason}. Give the path of a transformers folder, or fetch it where there is a network: "
            f"hf download {model} --local-dir FOLDER."
        ) from None


def load_folder(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load a causal LM, or a model that sees (`model.image_adapter`), and its tokenizer from a folder, without the network."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
    )

    if not any(
        (path / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        raise ConfigError(
            f"{path} has no tokenizer. Save one beside the model: tokenizer.save_pretrained('{path}')."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        seeing = AutoConfig.from_pretrained(path, local_files_only=True).model_type in eyes.FAMILIES
        kind: Any = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
        model, notes = kind.from_pretrained(
            path, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    except (
        Exception
    ) as error:  # transformers, safetensors and torch raise many kinds for a bad folder
        raise ConfigError(f"{path} cannot be loaded as a causal language model: {error}") from None
    if notes["missing_keys"] or notes["mismatched_keys"]:
        bad = sorted({str(k) for k in (*notes["missing_keys"], *notes["mismatched_keys"])})
        raise ConfigError(
            f"{path}: the weights lack or do not fit {', '.join(bad[:3])}; they are not of this config.json."
        )
    if seeing:
        model.image_adapter = eyes.load(path, model.config, tokenizer)
    return model, tokenizer


def set_gradient_checkpointing(name: str, config: Policy, model: Any) -> None:
    """Switch gradient checkpointing on where the policy asks for it; it acts in training passes alone."""
    if not config.gradient_checkpointing:
        return
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"policies.{name}.gradient_checkpointing: {type(model).__name__} does not support it; set it to false."
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if config.gradient_checkpointing == "selective":
        options["context_fn"] = functools.partial(
            create_selective_checkpoint_contexts, _dear_operations()
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _dear_operations() -> list[Any]:
    """What takes the time of a layer. Scores of attention that is not fused (`bmm`) are not among it: too large."""
    aten = torch.ops.aten
    kinds = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    fused = [getattr(aten, f"_scaled_dot_product_{kind}").default for kind in kinds]
    return [aten.mm.default, aten.addmm.default, *fused]
