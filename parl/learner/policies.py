"""All policies of a run: models, renderers, engines and learners, and which of them plays which role at a step.

A frozen role is played by a snapshot of its policy (the weights after the cold start); a trained role by the live
weights. The engine has a copy of its own: `sync` moves the learner's weights there and compares a probe.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from parl import ray_session
from parl.config.schema import Config, Optimizer
from parl.env import AgentEnv, seed_for
from parl.errors import CheckpointError
from parl.learner.checkpoint import verify
from parl.learner.experts import router_agreement
from parl.learner.learner import Learner, check_engine
from parl.learner.models import load_folder, load_policy, save_memory
from parl.policy.base import PolicyHandle, Renderer
from parl.policy.families import make_renderer
from parl.policy.torch_engine import TorchEngine
from parl.types import ROLES, Sample

if TYPE_CHECKING:
    from parl.learner.group import LearnerGroup

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5}
"""Largest allowed difference of a probe's log-prob between engine and learner, by dtype (measured: 1e-5, 0.35)."""
PROBE_TOKENS = 64


class PolicySet:
    """Everything that has weights."""

    def __init__(self, config: Config, env: AgentEnv, folder: Path | None = None) -> None:
        """Build the policies, or load their weights from a checkpoint `folder`."""
        self._config = config
        self.models: dict[str, Any] = {}
        self.tokenizers: dict[str, Any] = {}
        self.renderers: dict[str, Renderer] = {}
        for name, policy in config.policies.items():
            if folder is None:
                model, tokenizer = load_policy(name, policy, env, seed_for(config.seed, "model", name) % 2**31)
            else:
                model, tokenizer = load_folder(folder / "policies" / name, getattr(torch, policy.dtype))
            save_memory(name, policy, model)
            self.models[name], self.tokenizers[name] = model, tokenizer
            self.renderers[name] = make_renderer(name, policy.renderer, tokenizer)
        self.learners: dict[str, Learner | LearnerGroup] = {}
        self._live: dict[str, TorchEngine] = {}
        self._frozen: dict[str, TorchEngine] = {}

    def start_engines(self) -> None:
        """Engines over copies of the current weights; called again after the cold start has changed them."""
        for name, model in self.models.items():
            self._live[name] = self._engine(name, model)

    def freeze(self, folder: Path) -> None:
        """Snapshots for roles that are frozen at some step, from the cold start's checkpoint."""
        for role in ROLES:
            settings = getattr(self._config.roles, role)
            if settings.trainable is not True and settings.policy not in self._frozen:
                verify(folder)
                dtype = getattr(torch, self._config.policies[settings.policy].dtype)
                model, _ = load_folder(folder / "policies" / settings.policy, dtype)
                self._frozen[settings.policy] = self._engine(settings.policy, model)

    def _engine(self, name: str, model: Any) -> TorchEngine:
        engine = self._config.policies[name].engine
        return TorchEngine(copy.deepcopy(model), self.renderers[name].stop_ids, engine)

    def start_learners(self) -> None:
        """A learner for each policy that some role trains."""
        for name, policy in self._config.policies.items():
            roles = [getattr(self._config.roles, r) for r in ROLES]
            if any(r.policy == name and r.ever_trainable for r in roles):
                self.learners[name] = self._learner(name, policy.optimizer)

    def _learner(self, name: str, optimizer: Optimizer) -> Learner | LearnerGroup:
        train, loss, model = self._config.train, self._config.loss, self.models[name]
        if train.learner_processes == 1:
            return Learner(name, model, optimizer, loss, train.tokens_per_batch)
        from parl.learner.group import LearnerGroup

        cpus, threads, num = ray_session.cpus_of(self._config), self._config.threads, train.learner_processes
        return LearnerGroup(name, model, optimizer, loss, train.tokens_per_batch, num, threads, cpus)

    def load_learners(self, states: Mapping[str, Any]) -> None:
        """Optimizer states and versions of a checkpoint. Raises CheckpointError when they do not fit."""
        if set(states) != set(self.learners):
            raise CheckpointError(
                f"The checkpoint has learners for {sorted(states)}, the config trains {sorted(self.learners)}. "
                "Resume with the run's own config, or start a new run from its policies."
            )
        for name, state in states.items():
            self.learners[name].load_state_dict(state)
        for name, learner in self.learners.items():
            self._live[name].load_weights(learner.weights(), learner.version)

    def learner_states(self) -> dict[str, Any]:
        return {name: learner.state_dict() for name, learner in self.learners.items()}

    def handles(self, step: int | None = None) -> dict[str, PolicyHandle]:
        """Who plays each role at a step; without one, the live weights play all (evaluation of a loaded policy)."""
        out: dict[str, PolicyHandle] = {}
        for role in ROLES:
            settings = getattr(self._config.roles, role)
            name = settings.policy
            frozen = step is not None and not settings.trainable_at(step) and name in self._frozen
            engine = self._frozen[name] if frozen else self._live[name]
            tools = self._config.policies[name].lists_tools
            out[role] = PolicyHandle(name, self.renderers[name], engine, tools)
        return out

    def versions(self) -> dict[str, int]:
        """Weight version of each policy that learns."""
        return {name: learner.version for name, learner in self.learners.items()}

    def sync(self, probe: Sequence[int]) -> dict[str, float]:
        """Move every learner's weights to its engine; returns the probe's mismatch per policy (and the agreement of
        its experts, where it has some).

        A probe of fewer than two tokens (every episode of the step failed) is replaced by a short text.
        Raises EngineMismatch when an engine would serve other weights than the learner's.
        """
        off = {}
        for name, learner in self.learners.items():
            self._live[name].load_weights(learner.weights(), learner.version)
            if len(probe) < 2:
                probe = self.renderers[name].start("probe", (), "probe")
            tolerance = TOLERANCE[self._config.policies[name].dtype]
            off[f"policy/{name}/sync_mismatch"] = check_engine(
                self._live[name], learner, probe[:PROBE_TOKENS], tolerance
            )
            agreement = router_agreement(self._live[name], learner, probe[:PROBE_TOKENS])
            if agreement is not None:
                off[f"policy/{name}/router_agreement"] = agreement
        return off

    def update(self, samples: Sequence[Sample], mass: Mapping[str, float], step: int) -> dict[str, float]:
        """One step of every learner on its samples; `mass` is the loss's denominator per policy."""
        metrics: dict[str, float] = {}
        temperatures: dict[str, float] = {r: getattr(self._config.roles, r).sampling.temperature for r in ROLES}
        train = self._config.train
        for name, learner in self.learners.items():
            own = [s for s in samples if s.policy == name]
            metrics[f"policy/{name}/weight_version"] = float(learner.version)  # of a step in which nothing was learned
            if own:
                metrics |= learner.update(own, temperatures, mass[name], step, train.num_steps, train.updates_per_step)
        return metrics
