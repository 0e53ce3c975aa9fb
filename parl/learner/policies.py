"""All policies of a run: models, engines and learners, and the arrow from learners back to engines.

A role is played by the live weights of its policy. A frozen role whose policy the other role may
train is played by a snapshot instead: the weights after the cold start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parl.config.roles import Roles
from parl.config.schema import Config
from parl.core.types import UNKNOWN_TOKEN, Sample
from parl.env.base import AgentEnv
from parl.learner import checkpoint as checkpoints
from parl.learner.engines import EngineSet
from parl.learner.entries import resolve_policies
from parl.learner.learner import check_engine
from parl.learner.learners import LearnerSet
from parl.learner.policy_models import PolicyModels
from parl.policy.base import PolicyHandle, Renderer
from parl.policy.engines.openai import EndpointEngine
from parl.policy.models.experts import router_agreement
from parl.policy.models.vision.families import image_adapter_of
from parl.policy.models.vision.forward import truncate_context

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5}
"""Largest difference of a log-prob that is allowed between engine and learner, by dtype.

Measured: 1e-5 and 0.35.
"""
PROBE_TOKENS = 64
"""Length of the text on which engine and learner are compared after each sync."""


class PolicySet:
    """The models, engines and learners of a run.

    Args:
        env: gives the vocabulary of tiny models.
        folder: a checkpoint whose weights are loaded; None makes the first ones.
    """

    def __init__(self, config: Config, env: AgentEnv, folder: Path | None = None) -> None:
        self.entries = resolve_policies(config)
        self._models = PolicyModels(self.entries, env, folder)
        self.engines = EngineSet(config, self._models)
        self.learners = LearnerSet(config, self._models)
        self._env = env

    @property
    def models(self) -> Mapping[str, PreTrainedModel]:
        return self._models.models

    @property
    def tokenizers(self) -> Mapping[str, PreTrainedTokenizerBase]:
        return self._models.tokenizers

    @property
    def renderers(self) -> Mapping[str, Renderer]:
        return self._models.renderers

    @property
    def remote(self) -> Mapping[str, EndpointEngine]:
        """Policies that an endpoint serves."""
        return self._models.remote

    def with_own_weights(self) -> list[str]:
        """Return the policies that are neither adapters nor behind an endpoint."""
        return self._models.with_own_weights()

    def copy_weights(self, source: str) -> None:
        """Give the weights of `source` to all other policies (see `PolicyModels.copy_weights`)."""
        self._models.copy_weights(source)

    def stored(self, linked: Path | None = None) -> dict[str, checkpoints.Stored]:
        """Return the policies for a checkpoint (see `PolicyModels.stored`)."""
        return self._models.stored(linked)

    def restore(self, folder: Path, learner_states: Mapping[str, Any], cold_start: Path) -> None:
        """Take the weights of a checkpoint, and start engines and learners on them.

        Args:
            folder: the checkpoint: of a step, or of the cold start.
            learner_states: optimizer states and weight versions; empty at the cold start.
            cold_start: the checkpoint that snapshots of frozen roles are made of.
        """
        # Models first: engines copy their weights, learners train them in place.
        self._models.load(self._env, folder)
        self.engines.start()
        self.learners.start()
        if learner_states:
            self.load_learners(learner_states)
        # Last: an adapter's snapshot is loaded into the engine that was started above.
        self.engines.freeze(cold_start)

    def load_learners(self, states: Mapping[str, Any]) -> None:
        """Take the learners of a checkpoint, and give the engines their weights and versions."""
        self.learners.load(states)
        # Engines start at version 0; tokens that they sample must carry the checkpoint's.
        for name in self.learners:
            self._push(name)

    def handles(self, roles: Roles | None = None) -> dict[str, PolicyHandle]:
        """Return what plays each role (see `EngineSet.handles`)."""
        return self.engines.handles(roles)

    def update(
        self, samples: Sequence[Sample], token_mass: Mapping[str, float], step: int
    ) -> dict[str, float]:
        """Train every learner on its samples of a step (see `LearnerSet.update`)."""
        return self.learners.update(samples, token_mass, step)

    def sync(self, probe: Sequence[int], images: Sequence[str] = ()) -> dict[str, float]:
        """Move every learner's weights to its engine and compare the log-probs of a probe in both.

        Args:
            probe: token ids, such as those of the longest trace of the step. A short text takes its
                place where it has fewer than two known tokens (every episode failed, or an endpoint
                plays the role), or images that the policy does not see.
            images: those of the probe, as data URIs.
        Returns:
            the largest difference per policy, and for a mixture of experts the agreement of its
            routers.
        Raises:
            EngineMismatch: an engine would serve other weights than the learner's.
        """
        metrics: dict[str, float] = {}
        for name, learner in self.learners.items():
            self._push(name)
            entry, model, engine = self.entries[name], self.models[name], self.engines.of(name)
            # The agents of this policy may all have failed, or another policy may have seen images.
            is_unseen = bool(images) and image_adapter_of(model) is None
            if len(probe) < 2 or UNKNOWN_TOKEN in probe or is_unseen:
                probe, images = self.renderers[name].start("probe", (), "probe"), ()
            ids, probe_images = truncate_context(model, probe, images, PROBE_TOKENS)
            tolerance = TOLERANCE[self.entries[entry.base].config.dtype]
            metrics[f"policy/{name}/sync_mismatch"] = check_engine(
                engine, learner, ids, tolerance, entry.engine_key, probe_images
            )
            # Routers belong to the base, which adapters leave as it is.
            if entry.kind == "full":
                agreement = router_agreement(engine, learner, ids)
                if agreement is not None:
                    metrics[f"policy/{name}/router_agreement"] = agreement
        return metrics

    def _push(self, name: str) -> None:
        learner = self.learners[name]
        self.engines.push(name, learner.weights(), learner.version)
