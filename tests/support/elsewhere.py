"""A device that is not there: its tensors compute on the CPU and say that they are elsewhere.

What mixes them with tensors of the CPU fails, as it does with a GPU. So a machine without one can show that everything
in a pass is on the model's device. Not shown: speed, memory, kernels that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

ELSEWHERE = torch.device("xla:0")
"""A kind of device that torch knows by name and that needs no library to be named."""
MIXES = (
    "aten::copy_",
    "aten::_to_copy",
    "aten::to",
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
)
"""What takes tensors of two devices on a GPU, too: copies, and indices from the CPU (not to it)."""


class Away(torch.Tensor):
    """A tensor on ELSEWHERE. `here` is what it really is."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Away:
        with torch.inference_mode(
            False
        ):  # what is made in inference mode may be no view of a parameter
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                here.shape,
                strides=here.stride(),
                storage_offset=here.storage_offset(),
                dtype=here.dtype,
                device="meta",  # torch's own code asks the device for streams and the like
            )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return ELSEWHERE

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_plain(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_plain(key), value)

    def tolist(self) -> Any:
        return self.here.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl


def _plain(key: Any) -> Any:
    """An index with lists as tensors of the CPU: from lists torch would make tensors of "meta", which hold nothing."""
    whole = key if isinstance(key, tuple) else (key,)
    return tuple(torch.tensor(part) if isinstance(part, list) else part for part in whole)


class Elsewhere(TorchDispatchMode):
    """While inside, tensors can be made on and moved to ELSEWHERE."""

    def __enter__(self) -> Elsewhere:
        torch._C._set_only_lift_cpu_tensors(
            True
        )  # or `torch.tensor` asks the device itself for memory
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """One operation, on the CPU: what it is given and makes says that it is elsewhere, where that is due."""
    name, flat = func._schema.name, tree_flatten((args, dict(kwargs)))[0]
    away = [x for x in flat if isinstance(x, Away)]
    near = [
        x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Away) and x.dim() > 0
    ]
    indexed_here = name.startswith("aten::index") and not isinstance(args[0], Away)
    if away and near and (name not in MIXES or indexed_here):
        raise RuntimeError(f"{func}: tensors on two devices")
    targets = [x for x in flat if isinstance(x, torch.device)]
    to = targets[0].type in (ELSEWHERE.type, "meta") if targets else None
    goes = (
        to if to is not None else isinstance(args[0], Away) if name == "aten::copy_" else bool(away)
    )
    args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, dict(kwargs)))
    args, kwargs = tree_map_only(Away, lambda x: x.here, (args, kwargs))
    found, known = func(*args, **kwargs), {id(x.here): x for x in away}
    return (
        tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else Away(x), found)
        if goes
        else found
    )


def move(model: Any) -> Any:
    """The model with its parameters and buffers on ELSEWHERE."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            moved = torch.nn.Parameter(
                Away(parameter.detach()), requires_grad=parameter.requires_grad
            )
            module.register_parameter(name, moved)
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(
                name, Away(buffer), persistent=name not in module._non_persistent_buffers_set
            )
    if getattr(model, "_tied_weights_keys", None):
        model.tie_weights()
    return model
