"""From samples to padded tensors: token-budget micro-batches of similar lengths.

Shapes: B rows, T positions. Rows are right-padded and never packed: a short convolution leaks
across packed sequences, and attention does where the model's cache is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from parl.core.types import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch. Positions where `mask_BT` is 0 carry no loss; padding has id 0 and mask 0.

    Example:
        two samples with token_ids (5, 6, 7) and (8, 9), masks (0, 1, 1) and (0, 1):
        ids_BT [[5, 6, 7], [8, 9, 0]], mask_BT [[0, 1, 1], [0, 1, 0]]
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    old_logp_BT: torch.Tensor
    """Log-probs recorded at sampling."""
    advantage_BT: torch.Tensor
    weight_B: torch.Tensor
    temperature_B: torch.Tensor
    images: tuple[tuple[str, ...], ...]
    """For each row, data URIs in the order of their ids."""


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices of similar lengths: rows * longest <= budget.

    A row that is longer than the budget is a batch alone.

    Example: micro_batches([3, 9, 4], budget=10) == [[1], [2, 0]]
    """
    # The longest first: each batch's first row is its longest, and rows of similar length waste the
    # least padding.
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        if batches:
            batch = batches[-1]
            num_positions = (len(batch) + 1) * lengths[batch[0]]
            if num_positions <= budget:
                batch.append(i)
                continue
        batches.append([i])
    return batches


def collate(
    samples: Sequence[Sample], temperatures: Sequence[float], device: torch.device
) -> Batch:
    """Pad samples into one batch on a device.

    Args:
        temperatures: of sampling, one per sample.
    """
    # As wide as the longest: `micro_batches` puts similar lengths together.
    width = max(len(sample.token_ids) for sample in samples)
    shape = (len(samples), width)
    ids_BT = torch.zeros(shape, dtype=torch.long)
    mask_BT = torch.zeros(shape)
    old_logp_BT = torch.zeros(shape)
    advantage_BT = torch.zeros(shape)
    for i, sample in enumerate(samples):
        # The rest of the row stays 0: padding without loss.
        length = len(sample.token_ids)
        ids_BT[i, :length] = torch.tensor(sample.token_ids)
        mask_BT[i, :length] = torch.tensor(sample.mask, dtype=torch.float32)
        old_logp_BT[i, :length] = torch.tensor(sample.logprobs)
        advantage_BT[i, :length] = torch.tensor(sample.advantages)
    # Filled on the CPU and moved at once: many small copies to a GPU would be slow.
    return Batch(
        ids_BT=ids_BT.to(device),
        mask_BT=mask_BT.to(device),
        old_logp_BT=old_logp_BT.to(device),
        advantage_BT=advantage_BT.to(device),
        weight_B=torch.tensor([sample.weight for sample in samples]).to(device),
        temperature_B=torch.tensor(list(temperatures)).to(device),
        images=tuple(sample.images for sample in samples),
    )
