"""The learner of one policy: from samples to new weights, by accelerate.

In: samples with sampling log-probs and advantages. Out: changed weights and metrics. Only positions that carry loss
go through the language-model head.

B rows, T positions, N loss positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from parl.config.loss import Loss
from parl.config.policy import Optimizer
from parl.core.errors import EngineMismatch
from parl.core.types import Sample
from parl.learner import loss as losses
from parl.learner.batch import Batch, collate, micro_batches
from parl.learner.optim import build_optimizer, lr_scale, set_lr_scale
from parl.learner.precision import MixedPrecisionCopy
from parl.policy.models import lora
from parl.policy.models.vision.families import image_adapter_of
from parl.policy.models.vision.forward import hidden_states, logits


class Learner:
    """Owns the trained weights of one policy and their optimizer.

    Args:
        dtype: of the passes. Where it is not float32, `model` keeps weights, gradients and moments in float32.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        optimizer: Optimizer,
        loss: Loss,
        tokens_per_batch: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self._loss, self._optimizer_config = name, loss, optimizer
        self._policy_loss = losses.get(loss.type)
        self._knobs = self._policy_loss.bind(loss)
        self._tokens_per_batch = tokens_per_batch
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        # Unwrapped in several processes, too: gradients are summed here once a step, after all micro-batches.
        self.model = self.accelerator.prepare_model(
            model, evaluation_mode=self.accelerator.num_processes > 1
        )
        self.optimizer = self.accelerator.prepare(build_optimizer(model, optimizer))
        self._passes = (
            None
            if dtype == torch.float32
            else MixedPrecisionCopy(self.accelerator.unwrap_model(self.model), dtype)
        )
        self.version = 0
        self._entropy = float(
            "inf"
        )  # as the last update measured it; before the first one the floor does not act

    @property
    def bare_model(self) -> Any:
        """The model that does the passes."""
        return (
            self._passes.model
            if self._passes is not None
            else self.accelerator.unwrap_model(self.model)
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """The current weights, of an adapter its own alone, for engines."""
        return lora.model_state(self.accelerator.unwrap_model(self.model))

    def logprobs(self, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
        """Log-probs (T-1,) of a sequence's tokens under the current weights."""
        return logprobs(self.bare_model, token_ids, images)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "version": self.version,
            "entropy": self._entropy,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]
        self._entropy = state.get("entropy", self._entropy)  # older checkpoints do not have it

    def update(
        self,
        samples: Sequence[Sample],
        temperatures: Mapping[str, float],
        denominator: float,
        step: int,
        num_steps: int,
        num_updates: int,
    ) -> dict[str, float]:
        """Train on the samples in `num_updates` optimizer steps, each sample in one of them. Returns metrics.

        `denominator` is N of eq. 1 for all samples together (samples without advantage count in it); each optimizer
        step takes its share. The first step is on-policy: there the mismatch of sampler and learner is measured,
        before any clipping. In several processes (`LearnerGroup`) each is given all samples, and takes its share.
        """
        scale = lr_scale(self._optimizer_config, step, num_steps)
        set_lr_scale(self.optimizer, scale)
        totals: dict[str, Any] = {}
        for k in range(num_updates):
            part = samples[k::num_updates]
            if part:
                _add(
                    totals,
                    self._optimizer_step(
                        part, temperatures, denominator / num_updates, first=k == 0
                    ),
                )
        self.version += 1
        count = max(1.0, totals.pop("tokens", 0.0))
        half, most = np.quantile(totals.get("mismatches") or [0.0], (0.5, 0.99))
        metrics = {
            "loss": totals.get("loss", 0.0) / num_updates,
            "grad_norm": totals.get("grad_norm", 0.0) / num_updates,
            "entropy": totals.get("entropy_sum", 0.0) / count,
            "clipped_fraction": totals.get("clipped_sum", 0.0) / count,
            "logp_mismatch_mean": totals.get("mismatch_sum", 0.0)
            / max(1.0, totals.get("first_tokens", 0.0)),
            "logp_mismatch_p50": float(half),
            "logp_mismatch_p99": float(most),
            "logp_mismatch_max": totals.get("mismatch_max", 0.0),
            "lr": self._optimizer_config.lr * scale,
            "weight_version": float(self.version),
        }
        self._entropy = metrics["entropy"]
        return {f"policy/{self.name}/{k}": v for k, v in metrics.items()}

    def _optimizer_step(
        self,
        samples: Sequence[Sample],
        temperatures: Mapping[str, float],
        denominator: float,
        first: bool,
    ) -> dict[str, Any]:
        self.bare_model.train()
        totals: dict[str, Any] = {}
        mine = samples[self.accelerator.process_index :: self.accelerator.num_processes]
        for indices in micro_batches([len(s.token_ids) for s in mine], self._tokens_per_batch):
            chosen = [mine[i] for i in indices]
            batch = collate(chosen, [temperatures[s.role] for s in chosen], self.bare_model.device)
            loss, stats = self._batch_loss(batch, denominator)
            self.accelerator.backward(loss)
            if first:
                stats |= {"first_tokens": stats["tokens"]}
            else:
                stats = {k: v for k, v in stats.items() if not k.startswith("mismatch")}
            _add(totals, stats)
        if self.accelerator.num_processes > 1:
            totals = self._over_all_processes(totals)
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self._optimizer_config.grad_clip
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._passes is not None:
            self._passes.follow()
        return totals | {"grad_norm": float(norm)}

    def _over_all_processes(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """Sum the gradients over the processes, and their totals (the largest of a maximum)."""
        reduce: Any = self.accelerator.reduce
        for parameter in (p for p in self.model.parameters() if p.requires_grad):
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(own, reduction="sum")
        everyone: list[Mapping[str, Any]] = gather_object([dict(totals)])
        merged: dict[str, Any] = {}
        for part in everyone:
            _add(merged, part)
        return merged

    def _batch_loss(self, batch: Batch, denominator: float) -> tuple[torch.Tensor, dict[str, Any]]:
        model = self.bare_model
        hidden = hidden_states(model, batch.ids_BT, batch.images)
        here = batch.mask_BT[:, 1:].bool()
        rows = here.nonzero()[:, 0]
        logits_NV = logits(model, hidden[:, :-1][here]) / batch.temperature_B[rows][:, None]
        logp_NV = torch.log_softmax(logits_NV, -1)
        logp = logp_NV.gather(1, batch.ids_BT[:, 1:][here][:, None])[:, 0]
        old = batch.old_logp_BT[:, 1:][here]
        ones = torch.ones_like(logp)
        arguments: tuple[torch.Tensor, ...] = (logp, old, batch.advantage_BT[:, 1:][here], ones)
        common: dict[str, Any] = {"weights": batch.weight_B[rows], "denominator": denominator}
        cfg = self._loss
        if self._policy_loss.takes_traces:
            arguments = (*arguments, rows)
        loss, stats = self._policy_loss.function(*arguments, **self._knobs, **common)
        entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
        if cfg.entropy_bonus and (cfg.entropy_floor is None or self._entropy < cfg.entropy_floor):
            loss = loss - cfg.entropy_bonus * (entropy_N * batch.weight_B[rows]).sum() / denominator
        with torch.no_grad():
            off = (logp - old).abs()
        return loss, {
            "loss": float(loss.detach()),
            "tokens": float(len(logp)),
            "entropy_sum": float(entropy_N.detach().sum()),
            "clipped_sum": float(stats.get("clipped_fraction", 0.0)) * len(logp),
            "mismatch_sum": float(off.sum()),
            "mismatch_max": float(off.max()) if len(off) else 0.0,
            "mismatches": off.tolist(),
        }


def logprobs(model: Any, token_ids: Sequence[int], images: Sequence[str] = ()) -> torch.Tensor:
    """Log-probs (T-1,) of a sequence's tokens, by one pass without a cache; on the CPU, wherever the model is."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    with torch.no_grad():
        if image_adapter_of(model) is None:
            found = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        else:
            found = logits(model, hidden_states(model, ids, [images]))[0, :-1]
        return torch.log_softmax(found, -1).gather(1, ids[0, 1:, None])[:, 0].cpu()


def check_engine(
    engine: Any,
    learner: Any,
    probe: Sequence[int],
    tolerance: float,
    adapter: str = "",
    images: Sequence[str] = (),
) -> float:
    """Compare one probe's log-probs in engine and learner; the largest difference. Raises EngineMismatch."""
    given = {"images": images} if images else {}
    off = float(
        (engine.score(probe, adapter, **given) - learner.logprobs(probe, **given)).abs().max()
    )
    if not off <= tolerance:
        raise EngineMismatch(
            f"After syncing version {learner.version} the engine's log-probs of a probe differ from the learner's by "
            f"{off:.2e} (allowed: {tolerance:.0e}). The engine serves stale or other weights; training would be wrong."
        )
    return off


def _add(totals: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Sums of numbers (the largest of a maximum); lists one after the other."""
    for key, value in more.items():
        before = totals.get(key, [] if isinstance(value, list) else 0.0)
        totals[key] = max(before, value) if key.endswith("_max") else before + value
