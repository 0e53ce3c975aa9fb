"""The engines of a run: which one serves which policy, and which weights play which role.

An engine has a copy of the weights. Adapters on one base share one engine and its memory.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from parl.config.policy import EngineConfig
from parl.config.roles import Roles
from parl.config.schema import Config
from parl.core.machine import device
from parl.core.manifest import verify
from parl.core.types import ROLES, Role
from parl.learner.entries import PolicyEntry, adapters_on
from parl.learner.policy_models import PolicyModels
from parl.policy.base import PolicyHandle, WeightedEngine
from parl.policy.engines.torch import TorchEngine
from parl.policy.models import lora
from parl.policy.models.dtype import cast_parameters
from parl.policy.models.load import load_folder

SNAPSHOT = " at the cold start"
"""Ends the name of an adapter whose weights no longer change."""


class EngineSet:
    """Live engines, which follow the learners, and a snapshot for a role that is frozen."""

    def __init__(self, config: Config, models: PolicyModels) -> None:
        self._config = config
        self._models = models
        self._entries = models.entries
        self._snapshot_policy = _snapshot_policy(config)
        self._live: dict[str, WeightedEngine] = {}
        self._snapshots: dict[str, WeightedEngine] = {}

    def start(self) -> None:
        """Make engines over copies of the current weights.

        Called again after the cold start has changed them.
        """
        # The old engines end first: an engine may have processes and memory that the new one needs.
        self._live = {}
        for name, model in self._models.models.items():
            entry = self._entries[name]
            if entry.kind != "full":
                continue
            adapters = self._adapter_shapes(entry)
            engine = self._make(entry, model, adapters)
            # A snapshot begins with the weights that its policy has now, and keeps them.
            for adapter in adapters:
                weights = lora.adapter_state(self._models.models[adapter.removesuffix(SNAPSHOT)])
                engine.load_weights(weights, 0, adapter)
            self._live[name] = engine

    def freeze(self, cold_start: Path) -> None:
        """Make the snapshot of a frozen role whose policy the other role trains.

        Args:
            cold_start: the checkpoint of the cold start, whose weights the snapshot keeps.
        """
        if self._snapshot_policy is None:
            return
        entry = self._entries[self._snapshot_policy]
        # From disk and not from memory: a resumed run has trained weights in memory by now.
        verify(cold_start)
        folder = cold_start / "policies" / entry.name
        if entry.kind == "adapter":
            _, weights = lora.read_adapter(folder)
            self._live[entry.base].load_weights(weights, 0, entry.name + SNAPSHOT)
        else:
            model, _ = load_folder(folder, entry.dtype)
            self._snapshots[entry.name] = self._make(entry, model.to(device()), {})

    def of(self, policy: str) -> WeightedEngine:
        """Return the live engine that serves a policy."""
        return self._live[self._entries[policy].base]

    def push(self, policy: str, weights: Mapping[str, Tensor], version: int) -> None:
        """Give a policy's engine new weights."""
        self.of(policy).load_weights(weights, version, self._entries[policy].engine_key)

    def handles(self, roles: Roles | None = None) -> dict[str, PolicyHandle]:
        """Return what plays each role.

        Args:
            roles: the roles of a step (`phases.roles_at`): a role that is frozen there is played by
                its snapshot. Without them live weights play all roles, as in evaluations.
        """
        handles: dict[str, PolicyHandle] = {}
        for role in ROLES:
            is_frozen = roles is not None and not roles.of(role).trainable
            handles[role] = self._handle(role, is_frozen)
        return handles

    def _handle(self, role: Role, is_frozen: bool) -> PolicyHandle:
        entry = self._entries[self._config.roles.of(role).policy]
        renderer = self._models.renderers[entry.name]
        if entry.kind == "endpoint":
            endpoint = self._models.remote[entry.name]
            # An endpoint is given the tools as data, and its server writes them into the prompt.
            return PolicyHandle(entry.name, renderer, endpoint, tools_in_prompt=False)
        is_snapshot = is_frozen and entry.name == self._snapshot_policy
        engine, key = self.of(entry.name), entry.engine_key
        if is_snapshot and entry.kind == "full":
            engine = self._snapshots[entry.name]
        if is_snapshot and entry.kind == "adapter":
            key += SNAPSHOT
        lists_tools = self._config.policies[entry.base].lists_tools
        return PolicyHandle(entry.name, renderer, engine, lists_tools, key, entry.base)

    def _adapter_shapes(self, base: PolicyEntry) -> dict[str, LoraConfig]:
        """Return the shape of each adapter that the base's engine holds, snapshots last."""
        names = [entry.name for entry in adapters_on(self._entries, base.name)]
        if self._snapshot_policy in names:
            names.append(f"{self._snapshot_policy}{SNAPSHOT}")
        shapes = {}
        for name in names:
            model = self._models.models[name.removesuffix(SNAPSHOT)]
            shapes[name] = model.peft_config[lora.DEFAULT]
        return shapes

    def _make(
        self, entry: PolicyEntry, model: PreTrainedModel, adapters: Mapping[str, LoraConfig]
    ) -> WeightedEngine:
        engine = entry.config.engine
        assert isinstance(engine, EngineConfig)
        stop_ids = self._models.renderers[entry.name].stop_ids
        if engine.type == "vllm":
            from parl.policy.engines.vllm import VllmEngine

            return VllmEngine(model, stop_ids, engine, adapters or None, entry.dtype)
        if adapters:
            # The base under adapters never changes, so the engine shares its memory.
            return TorchEngine(lora.share_weights(model, same=False), stop_ids, engine, adapters)
        # A copy: the learner changes its weights in place while the engine may be sampling.
        return TorchEngine(
            cast_parameters(copy.deepcopy(model), entry.dtype), stop_ids, engine, None
        )


def _snapshot_policy(config: Config) -> str | None:
    """Return the policy of which a snapshot plays a frozen role, if there is one.

    There is one where both roles share a policy, one of them trains it, and the other is frozen at
    some step: the frozen role keeps the weights of the cold start while the live ones change.
    """
    roles = [role for _, role in config.roles.items()]
    is_shared = len({role.policy for role in roles}) == 1
    is_trained = any(role.ever_trainable for role in roles)
    is_frozen_once = any(role.trainable is not True for role in roles)
    return roles[0].policy if is_shared and is_trained and is_frozen_once else None
