"""The optimizer of a policy: Muon on matrices, AdamW on everything else.

Muon is implemented here because `torch.optim.Muon` orthogonalises in bfloat16, which is slow on a
CPU: for the 0.4 M model 555 ms a step, against 28 ms in float32. The update is the same, scaled to
AdamW's size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from parl.config.policy import Optimizer

FINAL_LR = 0.03
"""Share of the learning rate that linear decay ends at."""


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz steps.

    Source: K. Jordan, 2024; the scale, an update of rms 0.2, is that of Moonlight (2502.16982).
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            # Matrices of one shape are orthogonalised as one batch of matrix products: a small
            # model has many matrices, and each product alone is short.
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                lr = group["lr"] * 0.2 * max(shape) ** 0.5
                self._step_shape(parameters, lr, group["momentum"])

    def _step_shape(self, params: list[torch.nn.Parameter], lr: float, momentum: float) -> None:
        updates = []
        for parameter in params:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            # Nesterov: momentum looks one step ahead.
            updates.append(parameter.grad.lerp(buffer, momentum))
        orthogonal = orthogonalize(torch.stack(updates))
        for parameter, update in zip(params, orthogonal, strict=True):
            parameter.add_(update, alpha=-lr)


def orthogonalize(matrices_BMN: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximate U V^T of each matrix's singular value decomposition, by Newton-Schulz steps.

    It computes in the precision of the matrices.
    """
    x = matrices_BMN / (matrices_BMN.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # X X^T is the smaller product where matrices are wide.
    is_tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if is_tall else x
    for _ in range(steps):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.transpose(1, 2) if is_tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers behind the interface of one, as trainers and accelerate want it."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        # Not super().__init__: the two have checked and hold the parameters already.
        self._both = (muon, adamw)
        self.defaults: dict[str, Any] = {}
        self.param_groups = [*muon.param_groups, *adamw.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """The states of all parameters."""
        return {**self._both[0].state, **self._both[1].state}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Step both."""
        for optimizer in self._both:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both."""
        for optimizer in self._both:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"muon": self._both[0].state_dict(), "adamw": self._both[1].state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self._both[0].load_state_dict(state_dict["muon"])
        self._both[1].load_state_dict(state_dict["adamw"])
        # Loading replaces the groups of each; `set_lr_scale` must see the new ones.
        self.param_groups = [*self._both[0].param_groups, *self._both[1].param_groups]


def build_optimizer(model: torch.nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """Return the policy's optimizer.

    Every group carries `base_lr`, which `set_lr_scale` multiplies.

    Embeddings and the language-model head have their own learning rate (`embedding_lr_scale`) and,
    as Muon's author advises, AdamW.
    """
    matrices, embeddings, others = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "embed" in name or "lm_head" in name:
            embeddings.append(parameter)
        # Orthogonalising is for matrices: norms and biases have one dimension.
        elif config.muon_lr > 0 and parameter.dim() == 2:
            matrices.append(parameter)
        else:
            others.append(parameter)
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
    # Groups have different rates, which a schedule must scale alike.
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def lr_scale(config: Optimizer, step: int, num_steps: int) -> float:
    """Return the factor on the learning rate at a step (0-based).

    It warms up, then is constant; with `decay: linear` it falls to FINAL_LR from `decay_start` of
    the steps on.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay == "constant":
        return warmup
    progress = step / max(1, num_steps)
    if progress <= config.decay_start:
        return warmup
    remaining = (1 - progress) / (1 - config.decay_start)
    return warmup * max(FINAL_LR, remaining)


def set_lr_scale(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set every group's learning rate to `scale` times its own."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale
