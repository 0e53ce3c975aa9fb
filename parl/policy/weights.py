"""Weights between processes: torch tensors as numpy arrays and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """bfloat16, which numpy lacks, travels as 16-bit integers."""
    plain = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def to_tensor(value: Any) -> torch.Tensor:
    """What `to_numpy` made, or a tensor as it is."""
    if isinstance(value, torch.Tensor):
        return value
    tensor = torch.tensor(value)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor
