"""All policies of a run: models, renderers, engines and learners, and which of them plays which role at a step.

A role is played by the live weights of its policy. A frozen role whose policy the other role may train is played by a
snapshot instead: the weights after the cold start. An engine has a copy of its own: `sync` moves the learner's weights
there and compares a probe. Adapters on one base share its weights in memory, and one engine.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig

from parl.config.derived import num_cpus
from parl.config.policy import EngineConfig, Optimizer
from parl.config.roles import Roles
from parl.config.schema import Config
from parl.core.errors import CheckpointError, ConfigError
from parl.core.machine import device
from parl.core.manifest import verify
from parl.core.seeds import seed_for
from parl.core.types import ROLES, UNKNOWN_TOKEN, Sample
from parl.env.base import AgentEnv
from parl.env.chat_client import key_of
from parl.learner import checkpoint as checkpoints
from parl.learner.learner import Learner, check_engine
from parl.policy.base import PolicyHandle, Renderer, WeightedEngine, cast
from parl.policy.engines.openai import EndpointEngine, NullRenderer
from parl.policy.engines.torch import BASE, TorchEngine
from parl.policy.models import lora
from parl.policy.models.experts import router_agreement
from parl.policy.models.load import (
    load_folder,
    load_policy,
    new_adapter,
    save_memory,
    stored_adapter,
)
from parl.policy.models.vision.families import image_adapter_of
from parl.policy.models.vision.forward import shortened
from parl.policy.renderers.families import make_renderer

if TYPE_CHECKING:
    from parl.learner.group import LearnerGroup

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5}
"""Largest allowed difference of a probe's log-prob between engine and learner, by dtype (measured: 1e-5, 0.35)."""
PROBE_TOKENS = 64
NO_VLLM = (
    "policies.{name}.engine.type is vllm, but there is no vllm in this environment. Install it into one of its own "
    "(make vllm, or pip install 'parl-swarm[vllm]' where there is a GPU; docs/vllm.md), or set engine.type: torch."
)
NO_EYES = (
    "policies.{name}.engine.type is vllm, which is given no images here, but the model ({kind}) sees. "
    "Set engine.type: torch, or take a model that reads text alone: it reads [image] in their place."
)
SNAPSHOT = " at the cold start"
"""Ends the name of an adapter whose weights no longer change."""


class PolicySet:
    """Everything that has weights."""

    def __init__(self, config: Config, env: AgentEnv, folder: Path | None = None) -> None:
        """Build the policies, or load their weights from a checkpoint `folder`."""
        for name, policy in config.policies.items():
            if policy.engine.type == "vllm" and importlib.util.find_spec("vllm") is None:
                raise ConfigError(NO_VLLM.format(name=name))
        self._config = config
        self.models: dict[str, Any] = {}
        self.tokenizers: dict[str, Any] = {}
        self.renderers: dict[str, Renderer] = {}
        self.remote: dict[str, EndpointEngine] = {}
        """Policies without weights here, in no checkpoint."""
        for name, policy in sorted(
            config.policies.items(), key=lambda item: item[1].adapter is not None
        ):
            seed, base = seed_for(config.seed, "model", name) % 2**31, config.base_of(name)
            if policy.remote is not None:
                key_of(
                    policy.remote, f"policies.{name}.engine"
                )  # raises ConfigError: it is not set
                self.remote[name], self.renderers[name] = (
                    EndpointEngine(policy.remote),
                    NullRenderer(),
                )
                continue
            if policy.adapter is not None:
                below = self.models[base]
                stored = folder / "policies" / name if folder else None
                model = (
                    stored_adapter(name, policy, below, stored)
                    if stored
                    else new_adapter(name, policy, below, seed)
                )
                tokenizer = self.tokenizers[base]
            elif folder is None:
                model, tokenizer = load_policy(name, policy, env, seed, self._held_in(name))
            else:
                model, tokenizer = load_folder(folder / "policies" / name, self._held_in(name))
            if image_adapter_of(model) is not None and config.policies[base].engine.type == "vllm":
                raise ConfigError(NO_EYES.format(name=base, kind=model.config.model_type))
            save_memory(name, policy, model)
            self.models[name], self.tokenizers[name] = model.to(device()), tokenizer
            self.renderers[name] = make_renderer(
                name, config.policies[base].renderer, tokenizer, image_adapter_of(model)
            )
        self.learners: dict[str, Learner | LearnerGroup] = {}
        self._live: dict[str, WeightedEngine] = {}
        self._frozen: dict[str, WeightedEngine] = {}

    def copy_weights(self, source: str) -> None:
        """Give the weights of `source` to all other policies that have weights of their own.

        Raises ConfigError when one of them is not of its shape.
        """
        state = self.models[source].state_dict()
        for name, model in self.models.items():
            if name == source or self._config.base_of(name) != name:
                continue
            if {k: v.shape for k, v in state.items()} != {
                k: v.shape for k, v in model.state_dict().items()
            }:
                raise ConfigError(
                    f"cold_start.policy: {name} cannot begin as a copy of {source}, it is a model of another shape. "
                    f"Give it the `model` and `tiny` of policies.{source}, or remove cold_start.policy."
                )
            model.load_state_dict(state)

    def start_engines(self) -> None:
        """Engines over copies of the current weights; called again after the cold start has changed them."""
        self._live = {}  # the old ones end first: an engine may have processes and memory of its own
        for name, model in self.models.items():
            if self._config.base_of(name) != name:
                continue
            shapes = self._adapters_on(name)
            self._live[name] = self._engine(name, model, shapes)
            for adapter in shapes:
                policy = adapter.removesuffix(SNAPSHOT)
                self._live[name].load_weights(lora.adapter_state(self.models[policy]), 0, adapter)

    def freeze(self, folder: Path) -> None:
        """Snapshots for frozen roles whose policy is trained by the other role, from the cold start's checkpoint."""
        for name in self._snapshots():
            verify(folder)
            base = self._config.base_of(name)
            if base != name:
                _, weights = lora.read_adapter(folder / "policies" / name)
                self._live[base].load_weights(weights, 0, name + SNAPSHOT)
            else:
                model, _ = load_folder(folder / "policies" / name, self._dtype(name))
                self._frozen[name] = self._engine(name, model.to(device()))

    def _snapshots(self) -> list[str]:
        """Policies of a role that is frozen at some step while the other role may train them."""
        roles = [self._config.roles.of(role) for role in ROLES]
        shared = len({r.policy for r in roles}) == 1 and any(r.ever_trainable for r in roles)
        return [roles[0].policy] if shared and any(r.trainable is not True for r in roles) else []

    def _adapters_on(self, base: str) -> dict[str, LoraConfig]:
        """Adapters that the base's engine has, snapshots included, and their shapes."""
        own = [n for n in self.models if self._config.base_of(n) == base != n]
        frozen = [n + SNAPSHOT for n in self._snapshots() if n in own]
        return {
            n: self.models[n.removesuffix(SNAPSHOT)].peft_config[lora.DEFAULT]
            for n in (*own, *frozen)
        }

    def _engine(
        self, name: str, model: Any, adapters: Mapping[str, LoraConfig] | None = None
    ) -> WeightedEngine:
        engine, stop_ids, dtype = (
            self._config.policies[name].engine,
            self.renderers[name].stop_ids,
            self._dtype(name),
        )
        assert isinstance(engine, EngineConfig)
        if engine.type == "vllm":
            from parl.policy.engines.vllm import VllmEngine

            return VllmEngine(model, stop_ids, engine, adapters, dtype)
        own = lora.shared(model, same=False) if adapters else cast(copy.deepcopy(model), dtype)
        return TorchEngine(own, stop_ids, engine, adapters)

    def _push(self, name: str) -> None:
        """Move a learner's weights to its engine."""
        base, learner = self._config.base_of(name), self.learners[name]
        self._live[base].load_weights(learner.weights(), learner.version, self._part(name))

    def _part(self, name: str) -> str:
        """What the policy is in its engine: an adapter, or the model itself."""
        return BASE if self._config.base_of(name) == name else name

    def start_learners(self) -> None:
        """A learner for each policy that some role trains."""
        for name, policy in self._config.policies.items():
            if self._learns(name):
                self.learners[name] = self._learner(name, policy.optimizer)

    def _learns(self, name: str) -> bool:
        roles = [self._config.roles.of(role) for role in ROLES]
        return any(r.policy == name and r.ever_trainable for r in roles)

    def _dtype(self, name: str) -> torch.dtype:
        """In which a policy computes, engine and learner."""
        found: torch.dtype = getattr(torch, self._config.policies[self._config.base_of(name)].dtype)
        return found

    def _held_in(self, name: str) -> torch.dtype:
        """In which this process has a policy's own weights: those that learn are float32, so that small updates count.

        A base does not learn while adapters stand on it, and its memory is what they save.
        """
        adapted = any(
            self._config.base_of(other) == name != other for other in self._config.policies
        )
        learns = self._learns(name) or (self._config.cold_start is not None and not adapted)
        return torch.float32 if learns else self._dtype(name)

    def _learner(self, name: str, optimizer: Optimizer) -> Learner | LearnerGroup:
        train, loss, model = self._config.train, self._config.loss, self.models[name]
        full = self._config.base_of(name) == name
        dtype = (
            self._dtype(name) if full else torch.float32
        )  # an adapter's are, its base has its own
        if train.learner_processes == 1:
            return Learner(name, model, optimizer, loss, train.tokens_per_batch, dtype)
        from parl.learner.group import LearnerGroup

        cpus, threads, num = (
            num_cpus(self._config.rollout, train, len(self._config.policies)),
            self._config.threads,
            train.learner_processes,
        )
        return LearnerGroup(
            name, model, optimizer, loss, train.tokens_per_batch, num, threads, cpus, dtype
        )

    def load_learners(self, states: Mapping[str, Any]) -> None:
        """Optimizer states and versions of a checkpoint. Raises CheckpointError when they do not fit."""
        if set(states) != set(self.learners):
            raise CheckpointError(
                f"The checkpoint has learners for {sorted(states)}, the config trains {sorted(self.learners)}. "
                "Resume with the run's own config, or start a new run from its policies."
            )
        for name, state in states.items():
            self.learners[name].load_state_dict(state)
        for name in self.learners:
            self._push(name)

    def stored(self, linked: Path | None = None) -> dict[str, checkpoints.Stored]:
        """The policies for a checkpoint; those that never change as they are in the checkpoint `linked`."""
        bases = {self._config.base_of(n) for n in self.models if self._config.base_of(n) != n}
        return {
            n: linked / "policies" / n if linked and n in bases else (model, self.tokenizers[n])
            for n, model in self.models.items()
        }

    def learner_states(self) -> dict[str, Any]:
        return {name: learner.state_dict() for name, learner in self.learners.items()}

    def handles(self, roles: Roles | None = None) -> dict[str, PolicyHandle]:
        """Who plays each role, given which learn now (`phases.roles_at`); without, live weights play all (evaluation)."""
        out: dict[str, PolicyHandle] = {}
        for role in ROLES:
            settings = self._config.roles.of(role)
            name, base = settings.policy, self._config.base_of(settings.policy)
            if name in self.remote:
                out[role] = PolicyHandle(
                    name, self.renderers[name], self.remote[name], tools_in_prompt=False
                )
                continue
            frozen = (
                roles is not None and not roles.of(role).trainable and name in self._snapshots()
            )
            engine = self._frozen[name] if frozen and base == name else self._live[base]
            tools = self._config.policies[base].lists_tools
            adapter = self._part(name) + (SNAPSHOT if frozen and base != name else "")
            out[role] = PolicyHandle(name, self.renderers[name], engine, tools, adapter, base)
        return out

    def versions(self) -> dict[str, int]:
        """Weight version of each policy that learns."""
        return {name: learner.version for name, learner in self.learners.items()}

    def sync(self, probe: Sequence[int], images: Sequence[str] = ()) -> dict[str, float]:
        """Move every learner's weights to its engine; returns the probe's mismatch per policy (and the agreement of
        its experts, where it has some).

        A probe of fewer than two known tokens (every episode of the step failed, or an endpoint plays the role) is
        replaced by a short text; so is one with images, for a policy that reads text alone.
        Raises EngineMismatch when an engine would serve other weights than the learner's.
        """
        off = {}
        for name, learner in self.learners.items():
            self._push(name)
            base, model = self._config.base_of(name), self.models[name]
            if (
                len(probe) < 2
                or UNKNOWN_TOKEN in probe
                or (images and image_adapter_of(model) is None)
            ):
                probe, images = self.renderers[name].start("probe", (), "probe"), ()
            ids, shown = shortened(model, probe, images, PROBE_TOKENS)
            tolerance = TOLERANCE[self._config.policies[base].dtype]
            off[f"policy/{name}/sync_mismatch"] = check_engine(
                self._live[base], learner, ids, tolerance, self._part(name), shown
            )
            agreement = router_agreement(self._live[base], learner, ids) if base == name else None
            if agreement is not None:
                off[f"policy/{name}/router_agreement"] = agreement
        return off

    def update(
        self, samples: Sequence[Sample], mass: Mapping[str, float], step: int
    ) -> dict[str, float]:
        """One step of every learner on its samples; `mass` is the loss's denominator per policy."""
        metrics: dict[str, float] = {}
        temperatures: dict[str, float] = {
            r: self._config.roles.of(r).sampling.temperature for r in ROLES
        }
        train = self._config.train
        for name, learner in self.learners.items():
            own = [s for s in samples if s.policy == name]
            metrics[f"policy/{name}/weight_version"] = float(
                learner.version
            )  # of a step in which nothing was learned
            if own:
                metrics |= learner.update(
                    own, temperatures, mass[name], step, train.num_steps, train.updates_per_step
                )
        return metrics
