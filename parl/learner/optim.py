"""One optimizer object per policy: Muon on matrices, AdamW on everything else, the embedding with a rate of its own.

Muon is our own thirty lines because `torch.optim.Muon` orthogonalises in bfloat16, which is slow on a CPU (for the
0.4 M model 555 ms a step, against 28 ms in float32); the update is the same, scaled to AdamW's size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from parl.config.policy import Optimizer


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz steps (K. Jordan, 2024); update rms 0.2 (Moonlight, 2502.16982)."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                self._step_shape(params, group["lr"] * 0.2 * max(shape) ** 0.5, group["momentum"])

    def _step_shape(self, params: list[torch.nn.Parameter], lr: float, momentum: float) -> None:
        """Matrices of one shape together, as one batch of matrix products."""
        updates = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
            updates.append(p.grad.lerp(buffer, momentum))
        for p, update in zip(params, orthogonalize(torch.stack(updates)), strict=True):
            p.add_(update, alpha=-lr)


def orthogonalize(matrices_BMN: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards U V^T of each matrix's singular value decomposition, in its own precision."""
    x = matrices_BMN / (matrices_BMN.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    for _ in range(steps):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.transpose(1, 2) if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers behind one interface, as trainers and accelerate want it."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self._both = (muon, adamw)
        self.defaults: dict[str, Any] = {}
        self.param_groups = [*muon.param_groups, *adamw.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {**self._both[0].state, **self._both[1].state}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for optimizer in self._both:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self._both:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._both[0].state_dict(), "adamw": self._both[1].state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._both[0].load_state_dict(state_dict["muon"])
        self._both[1].load_state_dict(state_dict["adamw"])
        self.param_groups = [*self._both[0].param_groups, *self._both[1].param_groups]


def build_optimizer(model: torch.nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """The policy's optimizer. Every group carries `base_lr`, which `set_lr_scale` multiplies."""
    matrices, embeddings, others = [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if "embed" in name or "lm_head" in name:
            embeddings.append(p)
        elif config.muon_lr > 0 and p.dim() == 2:
            matrices.append(p)
        else:
            others.append(p)
    adamw = torch.optim.AdamW(
        [
            {"params": others, "lr": config.lr},
            {"params": embeddings, "lr": config.lr * config.embedding_lr_scale},
        ],
        betas=config.betas,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    optimizer: torch.optim.Optimizer = adamw
    if matrices:
        optimizer = MuonAdamW(Muon(matrices, lr=config.muon_lr), adamw)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def lr_scale(config: Optimizer, step: int, num_steps: int) -> float:
    """Warm-up, then constant, then (with `decay: linear`) down to 3 % from `hold` of the steps on."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay == "constant":
        return warm
    progress = step / max(1, num_steps)
    return warm * (
        1.0
        if progress <= config.decay_start
        else max(0.03, (1 - progress) / (1 - config.decay_start))
    )


def set_lr_scale(optimizer: torch.optim.Optimizer, scale: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale
