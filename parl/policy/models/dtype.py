"""The data type of a model's parameters."""

from __future__ import annotations

from typing import TypeVar

import torch

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


def cast_parameters(model: ModelT, dtype: torch.dtype) -> ModelT:
    """Convert a model's parameters to another data type, in place.

    Buffers keep theirs: the frequencies of a rotary embedding would lose most of their digits.

    Returns:
        The same model.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
