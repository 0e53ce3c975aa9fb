"""The learner of one policy: from samples to new weights, by accelerate.

Shapes: B rows, T positions, N loss positions of all rows together, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from parl.config.loss import Loss
from parl.config.policy import Optimizer
from parl.core.errors import EngineMismatch
from parl.core.types import Sample
from parl.learner import loss as losses
from parl.learner.batch import Batch, collate, micro_batches
from parl.learner.optim import build_optimizer, lr_scale, set_lr_scale
from parl.learner.precision import MixedPrecisionCopy
from parl.policy.base import WeightedEngine
from parl.policy.models import lora
from parl.policy.models.vision.families import image_adapter_of
from parl.policy.models.vision.forward import hidden_states, logits


@dataclass(slots=True)
class Totals:
    """Sums over tokens, of one micro-batch or of several together."""

    loss: float = 0.0
    num_tokens: float = 0.0
    entropy: float = 0.0
    num_clipped: float = 0.0
    grad_norm: float = 0.0
    mismatches: list[float] = field(default_factory=list)
    """|log-prob of the learner - log-prob of the sampler| of each token of on-policy steps."""
    mismatch: float = 0.0
    """Their sum."""
    max_mismatch: float = 0.0

    def add(self, other: Totals) -> None:
        """Add the sums of another part."""
        self.loss += other.loss
        self.num_tokens += other.num_tokens
        self.entropy += other.entropy
        self.num_clipped += other.num_clipped
        self.grad_norm += other.grad_norm
        self.mismatches = self.mismatches + other.mismatches
        self.mismatch += other.mismatch
        self.max_mismatch = max(self.max_mismatch, other.max_mismatch)


class Learner:
    """Owns the trained weights of one policy and their optimizer.

    Args:
        model: in float32. It keeps the weights that learn, their gradients and moments.
        tokens_per_batch: largest number of positions of a micro-batch, padding included.
        dtype: of forward and backward passes. If it is not float32, a copy of the model makes them.
    Raises:
        ConfigError: the loss is unknown, or does not have the config's knobs.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        optimizer: Optimizer,
        loss: Loss,
        tokens_per_batch: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name
        self.version = 0
        self._loss = loss
        self._policy_loss = losses.get(loss.type)
        self._loss_knobs = self._policy_loss.bind(loss)
        self._optimizer_config = optimizer
        self._tokens_per_batch = tokens_per_batch
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        # In several processes the model stays unwrapped, too: gradients are summed here, once per
        # optimizer step, and not by DistributedDataParallel after each micro-batch.
        is_parallel = self.accelerator.num_processes > 1
        self.model = self.accelerator.prepare_model(model, evaluation_mode=is_parallel)
        self.optimizer = self.accelerator.prepare(build_optimizer(model, optimizer))
        self._short_copy: MixedPrecisionCopy | None = None
        if dtype != torch.float32:
            master = self.accelerator.unwrap_model(self.model)
            self._short_copy = MixedPrecisionCopy(master, dtype)
        # That of the last update. Before the first one the entropy floor must not act.
        self._entropy = float("inf")

    @property
    def bare_model(self) -> PreTrainedModel:
        """The model that makes the passes, without accelerate's wrapper."""
        if self._short_copy is not None:
            return self._short_copy.model
        return self.accelerator.unwrap_model(self.model)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the current weights for engines; for an adapter, those of the adapter alone."""
        return lora.model_state(self.accelerator.unwrap_model(self.model))

    def logprobs(self, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
        """Return the log-probs (T-1,) of a sequence's tokens under the current weights."""
        return logprobs(self.bare_model, token_ids, images)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, the weights aside."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "version": self.version,
            "entropy": self._entropy,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]
        # Checkpoints from before the entropy floor do not have it.
        self._entropy = state.get("entropy", self._entropy)

    def update(
        self,
        samples: Sequence[Sample],
        temperatures: Mapping[str, float],
        denominator: float,
        step: int,
        num_steps: int,
        num_updates: int,
    ) -> dict[str, float]:
        """Train on the samples in `num_updates` optimizer steps, each sample in one of them.

        In several processes (`LearnerGroup`) each is given all samples, and trains on its share.

        Args:
            samples: with the log-probs recorded at sampling, and advantages.
            temperatures: role -> temperature of sampling.
            denominator: N of eq. 1 for all samples together. Samples without an advantage, which
                are left out, count in it. Each optimizer step takes its share.
            step: of the run, 0-based; with `num_steps` it places the learning rate on its schedule.
        Returns:
            metrics, named policy/NAME/...
        """
        scale = lr_scale(self._optimizer_config, step, num_steps)
        set_lr_scale(self.optimizer, scale)
        totals = Totals()
        num_on_policy_tokens = 0.0
        for k in range(num_updates):
            part = samples[k::num_updates]
            if not part:
                continue
            of_step = self._optimizer_step(part, temperatures, denominator / num_updates)
            # Only the first step is on-policy. There a difference of log-probs is a mismatch of
            # sampler and learner; later it is mostly what the steps before have learned.
            if k == 0:
                num_on_policy_tokens = of_step.num_tokens
            else:
                of_step.mismatches = []
                of_step.mismatch = 0.0
                of_step.max_mismatch = 0.0
            totals.add(of_step)
        self.version += 1
        num_tokens = max(1.0, totals.num_tokens)
        median, p99 = np.quantile(totals.mismatches or [0.0], (0.5, 0.99))
        metrics = {
            "loss": totals.loss / num_updates,
            "grad_norm": totals.grad_norm / num_updates,
            "entropy": totals.entropy / num_tokens,
            "clipped_fraction": totals.num_clipped / num_tokens,
            "logp_mismatch_mean": totals.mismatch / max(1.0, num_on_policy_tokens),
            "logp_mismatch_p50": float(median),
            "logp_mismatch_p99": float(p99),
            "logp_mismatch_max": totals.max_mismatch,
            "lr": self._optimizer_config.lr * scale,
            "weight_version": float(self.version),
        }
        self._entropy = metrics["entropy"]
        return {f"policy/{self.name}/{name}": value for name, value in metrics.items()}

    def _optimizer_step(
        self, samples: Sequence[Sample], temperatures: Mapping[str, float], denominator: float
    ) -> Totals:
        """Add up the gradients of micro-batches, then step."""
        self.bare_model.train()
        totals = Totals()
        # Each process has its share of the samples.
        share = samples[self.accelerator.process_index :: self.accelerator.num_processes]
        lengths = [len(sample.token_ids) for sample in share]
        for indices in micro_batches(lengths, self._tokens_per_batch):
            rows = [share[i] for i in indices]
            row_temperatures = [temperatures[sample.role] for sample in rows]
            batch = collate(rows, row_temperatures, self.bare_model.device)
            loss, of_batch = self._batch_loss(batch, denominator)
            self.accelerator.backward(loss)
            totals.add(of_batch)
        if self.accelerator.num_processes > 1:
            totals = self._reduce_over_processes(totals)
        grad_norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self._optimizer_config.grad_clip
        )
        totals.grad_norm = float(grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._short_copy is not None:
            self._short_copy.follow()
        return totals

    def _reduce_over_processes(self, totals: Totals) -> Totals:
        """Sum the gradients over the processes, and their totals."""
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                continue
            # A process without samples has no gradient, and must take part in the sum all the same:
            # the others would wait for it.
            gradient = parameter.grad
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(gradient, reduction="sum")
        merged = Totals()
        for of_process in gather_object([totals]):
            merged.add(of_process)
        return merged

    def _batch_loss(self, batch: Batch, denominator: float) -> tuple[torch.Tensor, Totals]:
        """Return the loss of a micro-batch, with its gradient, and sums over its tokens."""
        model = self.bare_model
        hidden_BTD = hidden_states(model, batch.ids_BT, batch.images)
        # The state at position t predicts token t + 1. Only positions that carry loss go through
        # the language-model head, whose logits are the largest tensors of a pass.
        is_loss_BT = batch.mask_BT[:, 1:].bool()
        row_N = is_loss_BT.nonzero()[:, 0]
        logits_NV = logits(model, hidden_BTD[:, :-1][is_loss_BT])
        # At the temperature of sampling, else ratios would not be 1 on-policy.
        logits_NV = logits_NV / batch.temperature_B[row_N][:, None]
        logp_NV = torch.log_softmax(logits_NV, -1)
        ids_N = batch.ids_BT[:, 1:][is_loss_BT]
        logp_N = logp_NV.gather(1, ids_N[:, None])[:, 0]
        old_logp_N = batch.old_logp_BT[:, 1:][is_loss_BT]
        advantage_N = batch.advantage_BT[:, 1:][is_loss_BT]
        weight_N = batch.weight_B[row_N]

        tensors = [logp_N, old_logp_N, advantage_N, torch.ones_like(logp_N)]
        if self._policy_loss.takes_traces:
            tensors.append(row_N)
        loss, stats = self._policy_loss.function(
            *tensors, **self._loss_knobs, weights=weight_N, denominator=denominator
        )
        entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
        if self._entropy_bonus_acts():
            bonus = self._loss.entropy_bonus * (entropy_N * weight_N).sum() / denominator
            loss = loss - bonus
        with torch.no_grad():
            mismatch_N = (logp_N - old_logp_N).abs()
        return loss, Totals(
            loss=float(loss.detach()),
            num_tokens=float(len(logp_N)),
            entropy=float(entropy_N.detach().sum()),
            num_clipped=float(stats.get("clipped_fraction", 0.0)) * len(logp_N),
            mismatches=mismatch_N.tolist(),
            mismatch=float(mismatch_N.sum()),
            # `max` of an empty tensor raises.
            max_mismatch=float(mismatch_N.max()) if len(mismatch_N) else 0.0,
        )

    def _entropy_bonus_acts(self) -> bool:
        floor = self._loss.entropy_floor
        return self._loss.entropy_bonus > 0 and (floor is None or self._entropy < floor)


class ScoringLearner(Protocol):
    """What `check_engine` needs of a learner."""

    version: int

    def logprobs(self, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
        """Return the log-probs (T-1,) of a sequence's tokens."""
        ...


def logprobs(
    model: PreTrainedModel, token_ids: Sequence[int], images: Sequence[str] = ()
) -> torch.Tensor:
    """Return the log-probs (T-1,) of a sequence's tokens, by one pass without a cache.

    Wherever the model is, they are on the CPU.
    """
    ids_1T = torch.tensor([list(token_ids)], device=model.device)
    with torch.no_grad():
        if image_adapter_of(model) is None:
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
        else:
            hidden_1TD = hidden_states(model, ids_1T, [images])
            logits_TV = logits(model, hidden_1TD)[0, :-1]
        logp_TV = torch.log_softmax(logits_TV, -1)
        return logp_TV.gather(1, ids_1T[0, 1:, None])[:, 0].cpu()


def check_engine(
    engine: WeightedEngine,
    learner: ScoringLearner,
    probe: Sequence[int],
    tolerance: float,
    adapter: str = "",
    images: Sequence[str] = (),
) -> float:
    """Compare the log-probs of a probe in engine and learner, and return the largest difference.

    Args:
        probe: token ids.
        tolerance: largest difference that is allowed.
        adapter: the engine's part that serves the policy.
        images: data URIs of the images in the probe.
    Raises:
        EngineMismatch: the difference is larger, or not a number.
    """
    of_engine = engine.score(probe, adapter, images)
    of_learner = learner.logprobs(probe, images)
    difference = float((of_engine - of_learner).abs().max())
    # Written so that NaN is refused as well.
    if not difference <= tolerance:
        raise EngineMismatch(
            f"After syncing version {learner.version} the engine's log-probs of a probe differ "
            f"from the learner's by {difference:.2e} (allowed: {tolerance:.0e}). The engine serves "
            "stale or other weights; training would be wrong."
        )
    return difference
