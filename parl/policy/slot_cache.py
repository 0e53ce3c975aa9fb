"""Per-position state of many sequences in shared buffers: keys, values, and the inputs of short convolutions.

A slot is one agent's context. Everything is stored by position, convolution inputs included, so the state at any
prefix is there: a prefix can be copied to another slot, and rows of different lengths can be fed in one pass.
It answers the part of transformers' `Cache` interface that decoder layers call.

B rows of the current pass, C tokens per row (right-padded), S slots, T positions, H heads, D head size.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

Tensor = torch.Tensor


class SlotCache:
    """State of all slots. `begin` names the rows of a pass; the layers then call `update` and `update_conv_state`."""

    def __init__(self, num_layers: int) -> None:
        # transformers' short convolution asks its layer for `record_past`; True selects the path through `update_conv_state`
        self.layers = [SimpleNamespace(record_past=True) for _ in range(num_layers)]
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._conv: dict[int, Tensor] = {}
        self.slots = self.positions = 0
        self._rows = self._at = torch.zeros(0, dtype=torch.long)
        self._span = 0

    def reserve(self, slots: int, positions: int) -> None:
        """Grow the buffers (doubling) to hold this many slots of this many positions."""
        if slots <= self.slots and positions <= self.positions:
            return
        self.slots = _grown(self.slots, slots)
        self.positions = _grown(self.positions, positions)
        for buffers in (self._keys, self._values, self._conv):
            for layer, old in buffers.items():
                new = old.new_zeros((self.slots, self.positions, *old.shape[2:]))
                new[: old.shape[0], : old.shape[1]] = old
                buffers[layer] = new

    def begin(self, rows: Tensor, at: Tensor, span: int) -> None:
        """Rows (B,) are slots; their tokens go to positions `at` (B, C); attention reads the first `span` positions."""
        self._rows, self._at, self._span = rows, at, span

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Give `target` the first `length` positions of `source`."""
        for buffers in (self._keys, self._values, self._conv):
            for buffer in buffers.values():
                buffer[target, :length] = buffer[source, :length]

    # --- what decoder layers call ------------------------------------------------------------------------------------

    def update(self, keys_BHCD: Tensor, values_BHCD: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; return those of all positions up to the span, as (B, H, span, D)."""
        keys = self._buffer(self._keys, layer, keys_BHCD.transpose(1, 2))
        values = self._buffer(self._values, layer, values_BHCD.transpose(1, 2))
        return self._read(keys), self._read(values)

    def _buffer(self, buffers: dict[int, Tensor], layer: int, new_BC: Tensor) -> Tensor:
        if layer not in buffers:
            buffers[layer] = new_BC.new_zeros((self.slots, self.positions, *new_BC.shape[2:]))
        buffers[layer][self._rows[:, None], self._at] = new_BC
        return buffers[layer]

    def _read(self, buffer: Tensor) -> Tensor:
        return buffer[:, : self._span].index_select(0, self._rows).transpose(1, 2)

    def has_previous_state(self, layer: int | None = None) -> bool:
        return True

    def update_conv_state(self, new_BDC: Tensor, layer: int, conv_kernel_size: int, **_: Any) -> Tensor:
        """Store the convolution's inputs; return them with the `kernel - 1` before them (zeros before the start)."""
        buffer = self._buffer(self._conv, layer, new_BDC.transpose(1, 2))
        back = torch.arange(1 - conv_kernel_size, 0)
        before = self._at[:, :1] + back
        past = buffer[self._rows[:, None], before.clamp(min=0)] * (before >= 0).unsqueeze(-1)
        return torch.cat([past.transpose(1, 2), new_BDC], dim=-1)

    def get_seq_length(self, layer: int = 0) -> int:
        return self._span

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return self._span, 0


def _grown(have: int, need: int) -> int:
    have = max(have, 16)
    while have < need:
        have *= 2
    return have
