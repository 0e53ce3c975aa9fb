"""The models of a run: weights, tokenizers and renderers, new or from a checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parl.core.errors import ConfigError
from parl.core.machine import device
from parl.env.base import AgentEnv
from parl.env.chat_client import key_of
from parl.learner import checkpoint as checkpoints
from parl.learner.entries import PolicyEntry
from parl.policy.base import Renderer
from parl.policy.engines.openai import EndpointEngine, NullRenderer
from parl.policy.models.load import (
    load_folder,
    load_policy,
    new_adapter,
    set_gradient_checkpointing,
    stored_adapter,
)
from parl.policy.models.vision.families import image_adapter_of
from parl.policy.renderers.families import make_renderer

NO_VLLM = (
    "policies.{name}.engine.type is vllm, but there is no vllm in this environment. Install it "
    "into one of its own (make vllm, or pip install 'parl-swarm[vllm]' where there is a GPU; "
    "docs/how-to/use-vllm.md), or set engine.type: torch."
)
NO_IMAGES_IN_VLLM = (
    "policies.{name}.engine.type is vllm, which is given no images here, but the model ({kind}) "
    "sees. Set engine.type: torch, or take a model that reads text alone: it reads [image] in "
    "their place."
)


class PolicyModels:
    """Models, tokenizers and renderers by policy; for a policy behind an endpoint its client.

    Args:
        folder: a checkpoint whose weights are loaded; None makes the first ones.
    Raises:
        ConfigError: a model does not fit its engine, renderer or adapter, or a key is not set.
        ModelUnavailable: a pretrained model cannot be fetched.
    """

    def __init__(
        self, entries: Mapping[str, PolicyEntry], env: AgentEnv, folder: Path | None
    ) -> None:
        self.entries = entries
        self.models: dict[str, PreTrainedModel] = {}
        self.tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self.renderers: dict[str, Renderer] = {}
        self.remote: dict[str, EndpointEngine] = {}
        """Policies without weights here; they are in no checkpoint."""
        # Before any model is loaded, which may take minutes.
        for name, entry in entries.items():
            if entry.config.engine.type == "vllm" and importlib.util.find_spec("vllm") is None:
                raise ConfigError(NO_VLLM.format(name=name))
        # Adapters last: each stands on a base that has to be there.
        for entry in sorted(entries.values(), key=lambda entry: entry.kind == "adapter"):
            if entry.kind == "endpoint":
                self._add_endpoint(entry)
            else:
                self._add_model(entry, env, folder)

    def load(self, env: AgentEnv, folder: Path) -> None:
        """Take the weights of a checkpoint in place of the present ones."""
        for entry in sorted(self.entries.values(), key=lambda entry: entry.kind == "adapter"):
            if entry.kind != "endpoint":
                self._add_model(entry, env, folder)

    def copy_weights(self, source: str) -> None:
        """Give the weights of `source` to all other policies that have weights of their own.

        Raises:
            ConfigError: one of them has another shape.
        """
        state = self.models[source].state_dict()
        shapes = {key: value.shape for key, value in state.items()}
        for name, model in self.models.items():
            if name == source or self.entries[name].kind != "full":
                continue
            # By shape and not by config: two configs may describe the same model.
            if shapes != {key: value.shape for key, value in model.state_dict().items()}:
                raise ConfigError(
                    f"cold_start.policy: {name} cannot begin as a copy of {source}, it is a model "
                    f"of another shape. Give it the `model` and `tiny` of policies.{source}, or "
                    "remove cold_start.policy."
                )
            model.load_state_dict(state)

    def with_own_weights(self) -> list[str]:
        """Return the policies that are neither adapters nor behind an endpoint."""
        return [name for name in self.models if self.entries[name].kind == "full"]

    def stored(self, linked: Path | None = None) -> dict[str, checkpoints.Stored]:
        """Return the policies for a checkpoint.

        Args:
            linked: a checkpoint that has the bases under adapters, which never change: they are
                linked, not copied.
        """
        bases = {entry.base for entry in self.entries.values() if entry.kind == "adapter"}
        policies: dict[str, checkpoints.Stored] = {}
        for name, model in self.models.items():
            if linked is not None and name in bases:
                policies[name] = linked / "policies" / name
            else:
                policies[name] = (model, self.tokenizers[name])
        return policies

    def _add_endpoint(self, entry: PolicyEntry) -> None:
        assert entry.config.remote is not None
        # Raises ConfigError where the key's variable is not set: now, not at the first turn.
        key_of(entry.config.remote, f"policies.{entry.name}.engine")
        self.remote[entry.name] = EndpointEngine(entry.config.remote)
        self.renderers[entry.name] = NullRenderer()

    def _add_model(self, entry: PolicyEntry, env: AgentEnv, folder: Path | None) -> None:
        model, tokenizer = self._load(entry, env, folder)
        base = self.entries[entry.base]
        image_adapter = image_adapter_of(model)
        if image_adapter is not None and base.config.engine.type == "vllm":
            kind = model.config.model_type
            raise ConfigError(NO_IMAGES_IN_VLLM.format(name=entry.base, kind=kind))
        set_gradient_checkpointing(entry.name, entry.config, model)
        self.models[entry.name] = model.to(device())
        self.tokenizers[entry.name] = tokenizer
        # The renderer of an adapter is its base's: the two share a tokenizer and a chat format.
        self.renderers[entry.name] = make_renderer(
            entry.name, base.config.renderer, tokenizer, image_adapter
        )

    def _load(
        self, entry: PolicyEntry, env: AgentEnv, folder: Path | None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        stored = None if folder is None else folder / "policies" / entry.name
        if entry.kind == "adapter":
            base_model = self.models[entry.base]
            if stored is None:
                model = new_adapter(entry.name, entry.config, base_model, entry.seed)
            else:
                model = stored_adapter(entry.name, entry.config, base_model, stored)
            return model, self.tokenizers[entry.base]
        if stored is None:
            return load_policy(entry.name, entry.config, env, entry.seed, entry.storage_dtype)
        return load_folder(stored, entry.storage_dtype)
