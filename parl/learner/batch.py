"""From samples to padded tensors: token-budget micro-batches of similar lengths.

B rows, T positions. Right-padded, never packed: a short convolution leaks across packed sequences, and attention
does where the model's cache is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from parl.core.types import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch. Positions where `mask_BT` is 0 carry no loss; padding has id 0 and mask 0."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    old_logp_BT: torch.Tensor
    advantage_BT: torch.Tensor
    weight_B: torch.Tensor
    temperature_B: torch.Tensor
    images: tuple[tuple[str, ...], ...]
    """Of each row, data URIs in the order of their ids."""


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of similar lengths together: rows * longest <= budget (a longer row has a batch of its own).

    Example: micro_batches([3, 9, 4], budget=10) == [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def collate(
    samples: Sequence[Sample], temperatures: Sequence[float], device: torch.device
) -> Batch:
    """Pad samples into one batch on a device."""
    width = max(len(s.token_ids) for s in samples)
    ids = torch.zeros((len(samples), width), dtype=torch.long)
    mask = torch.zeros((len(samples), width))
    old = torch.zeros((len(samples), width))
    advantage = torch.zeros((len(samples), width))
    for i, sample in enumerate(samples):
        n = len(sample.token_ids)
        ids[i, :n] = torch.tensor(sample.token_ids)
        mask[i, :n] = torch.tensor(sample.mask, dtype=torch.float32)
        old[i, :n] = torch.tensor(sample.logprobs)
        advantage[i, :n] = torch.tensor(sample.advantages)
    return Batch(
        ids.to(device),
        mask.to(device),
        old.to(device),
        advantage.to(device),
        torch.tensor([s.weight for s in samples]).to(device),
        torch.tensor(list(temperatures)).to(device),
        tuple(s.images for s in samples),
    )
