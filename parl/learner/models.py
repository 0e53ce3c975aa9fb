"""Models by name: built from nothing, or loaded from a transformers folder.

In: a policy's config and the environment. Out: a model and its tokenizer. Raises ConfigError with the way out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from parl.config.schema import Policy
from parl.env import AgentEnv
from parl.errors import ConfigError
from parl.learner.checkpoint import verify
from parl.policy.tiny import build_model, build_tokenizer
from parl.rollout.tools import SWARM_TOOLS


def load_policy(name: str, config: Policy, env: AgentEnv, seed: int) -> tuple[Any, Any]:
    """(model, tokenizer) of a policy. `tiny` is made for the environment's vocabulary and tools."""
    if config.model == "tiny":
        tokenizer = build_tokenizer(env.vocabulary(), [*env.tool_specs(), *SWARM_TOOLS])
        return build_model(config.tiny, len(tokenizer), tokenizer.eos_token_id, seed), tokenizer
    return load_folder(resolve_folder(name, config.model), getattr(torch, config.dtype))


def resolve_folder(name: str, model: str) -> Path:
    """A transformers folder, or the last checkpoint of a run that has a policy of this name."""
    path = Path(model)
    if (path / "config.resolved.yaml").is_file():
        found = sorted(path.glob(f"checkpoints/step_*/policies/{name}"))
        if not found:
            raise ConfigError(f"The run {path} has no checkpoint with a policy '{name}'.")
        verify(found[-1].parents[1])
        return found[-1]
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"policies.{name}.model is '{model}', which is neither `tiny`, nor a transformers folder (with a "
            "config.json), nor a run folder. Give the path of one of these."
        )
    return path


def load_folder(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load a causal LM and its tokenizer from a folder, without the network."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not any((path / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise ConfigError(f"{path} has no tokenizer. Save one beside the model: tokenizer.save_pretrained('{path}').")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model, notes = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and torch raise many kinds for a bad folder
        raise ConfigError(f"{path} cannot be loaded as a causal language model: {error}") from None
    if notes["missing_keys"] or notes["mismatched_keys"]:
        bad = sorted({str(k) for k in (*notes["missing_keys"], *notes["mismatched_keys"])})
        raise ConfigError(
            f"{path}: the weights lack or do not fit {', '.join(bad[:3])}; they are not of this config.json."
        )
    return model, tokenizer
