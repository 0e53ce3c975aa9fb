"""The learners of a run, by policy: one process each, or several (`train.learner_processes`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from parl.config.derived import num_cpus
from parl.config.schema import Config
from parl.core.errors import CheckpointError
from parl.core.types import Sample
from parl.learner.entries import PolicyEntry
from parl.learner.learner import Learner
from parl.learner.policy_models import PolicyModels

if TYPE_CHECKING:
    from parl.learner.group import LearnerGroup


class LearnerSet(Mapping[str, "Learner | LearnerGroup"]):
    """A learner for each policy that some role trains."""

    def __init__(self, config: Config, models: PolicyModels) -> None:
        self._config = config
        self._models = models
        self._learners: dict[str, Learner | LearnerGroup] = {}

    def start(self) -> None:
        """Make the learners over the current weights."""
        for entry in self._models.entries.values():
            if entry.is_trained:
                self._learners[entry.name] = self._make(entry)

    def load(self, states: Mapping[str, Any]) -> None:
        """Take the optimizer states and weight versions of a checkpoint.

        Raises:
            CheckpointError: they belong to other policies.
        """
        # A learner without its moments would go on as another run.
        if set(states) != set(self._learners):
            raise CheckpointError(
                f"The checkpoint has learners for {sorted(states)}, the config trains "
                f"{sorted(self._learners)}. Resume with the run's own config, or start a new run "
                "from its policies."
            )
        for name, state in states.items():
            self._learners[name].load_state_dict(state)

    def states(self) -> dict[str, Any]:
        """Return what a resumed run needs of each learner, its weights aside."""
        return {name: learner.state_dict() for name, learner in self._learners.items()}

    def versions(self) -> dict[str, int]:
        """Return the weight version of each policy that learns."""
        return {name: learner.version for name, learner in self._learners.items()}

    def update(
        self, samples: Sequence[Sample], token_mass: Mapping[str, float], step: int
    ) -> dict[str, float]:
        """Train every learner on its samples of a step and return the metrics.

        Args:
            token_mass: policy -> N, the denominator of its loss (Kimi K2.5, eq. 1).
        """
        train = self._config.train
        # Log-probs are taken at the temperature of sampling, else ratios would not be 1 on-policy.
        temperatures: dict[str, float] = {
            role: settings.sampling.temperature for role, settings in self._config.roles.items()
        }
        metrics: dict[str, float] = {}
        for name, learner in self._learners.items():
            # Overwritten by the update, and there too in a step without samples for this policy.
            metrics[f"policy/{name}/weight_version"] = float(learner.version)
            policy_samples = [sample for sample in samples if sample.policy == name]
            if policy_samples:
                metrics |= learner.update(
                    policy_samples,
                    temperatures,
                    token_mass[name],
                    step,
                    train.num_steps,
                    train.updates_per_step,
                )
        return metrics

    def __getitem__(self, policy: str) -> Learner | LearnerGroup:
        return self._learners[policy]

    def __iter__(self) -> Iterator[str]:
        return iter(self._learners)

    def __len__(self) -> int:
        return len(self._learners)

    def _make(self, entry: PolicyEntry) -> Learner | LearnerGroup:
        train, loss = self._config.train, self._config.loss
        model = self._models.models[entry.name]
        optimizer = entry.config.optimizer
        # An adapter's weights are float32; its base has the dtype of the policy.
        dtype = entry.dtype if entry.kind == "full" else torch.float32
        if train.learner_processes == 1:
            return Learner(entry.name, model, optimizer, loss, train.tokens_per_batch, dtype)
        # Imported here: it needs Ray, which a run with one learner process does not.
        from parl.learner.group import LearnerGroup

        return LearnerGroup(
            entry.name,
            model,
            optimizer,
            loss,
            train.tokens_per_batch,
            train.learner_processes,
            self._config.threads,
            num_cpus(self._config.rollout, train, len(self._config.policies)),
            dtype,
        )
