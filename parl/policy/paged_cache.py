"""Per-position state of many sequences in shared pages: keys, values, and the inputs of short convolutions.

A slot is one agent's context, a list of pages of PAGE positions. Everything is stored by position, convolution inputs
included, so the state at any prefix is there: a prefix can be copied to another slot, and rows of different lengths
can be fed in one pass. It answers the part of transformers' `Cache` interface that decoder layers call.

B rows of the current pass, C tokens per row (right-padded), P pages per row, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

PAGE = 32
SCRATCH = 0
"""The page that padding is written to and that fills up short rows; masks keep it from being attended to."""


class PagedCache:
    """State of all slots. `begin` names the rows of a pass; the layers then call `update` and `update_conv_state`."""

    def __init__(self, num_layers: int) -> None:
        # transformers' short convolution asks its layer for this; True selects the path through `update_conv_state`
        self.layers = [SimpleNamespace(record_past=True) for _ in range(num_layers)]
        self._pools: dict[tuple[str, int], torch.Tensor] = {}  # (what, layer) -> (pages, PAGE, ...)
        self._tables: dict[int, list[int]] = {}
        self._free: list[int] = []
        self._num_pages = 1
        self._table_BP = self._at_BC = self._write_BC = torch.zeros(0, dtype=torch.long)

    def extend(self, slot: int, positions: int) -> None:
        """Give the slot pages for this many positions."""
        table = self._tables.setdefault(slot, [])
        while len(table) * PAGE < positions:
            if not self._free:
                self._free = list(range(2 * self._num_pages, self._num_pages - 1, -1))
                self._num_pages = 2 * self._num_pages + 1
            table.append(self._free.pop())

    def release(self, slot: int) -> None:
        """Take the slot's pages back."""
        self._free += reversed(self._tables.pop(slot, []))

    def begin(self, slots: Sequence[int], at_BC: torch.Tensor) -> int:
        """Rows are slots; their tokens go to positions `at_BC`. Returns the span (P * PAGE) that attention reads."""
        num_pages = int(at_BC.max()) // PAGE + 1
        tables = [self._tables[s][:num_pages] for s in slots]
        self._table_BP = torch.tensor([t + [SCRATCH] * (num_pages - len(t)) for t in tables])
        self._at_BC = at_BC
        self._write_BC = self._flat(at_BC)
        return num_pages * PAGE

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Give `target` the first `length` positions of `source`."""
        self.extend(target, length)
        num_pages = -(-length // PAGE)
        old, new = self._tables[source][:num_pages], self._tables[target][:num_pages]
        for key in self._pools:
            pool = self._grown(key)
            pool[new] = pool[old]

    # --- what decoder layers call ------------------------------------------------------------------------------------

    def update(
        self, keys_BHCD: torch.Tensor, values_BHCD: torch.Tensor, layer: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new keys and values; return those of all positions up to the span, as (B, H, P * PAGE, D)."""
        keys = self._store("keys", layer, keys_BHCD.transpose(1, 2))
        values = self._store("values", layer, values_BHCD.transpose(1, 2))
        return self._read(keys), self._read(values)

    def has_previous_state(self, layer: int | None = None) -> bool:
        return True

    def update_conv_state(self, new_BDC: torch.Tensor, layer: int, conv_kernel_size: int, **_: Any) -> torch.Tensor:
        """Store the convolution's inputs; return them with the `kernel - 1` before them (zeros before the start)."""
        pool = self._store("conv", layer, new_BDC.transpose(1, 2))
        before_BK = self._at_BC[:, :1] + torch.arange(1 - conv_kernel_size, 0)
        past = pool.flatten(0, 1)[self._flat(before_BK.clamp(min=0))] * (before_BK >= 0).unsqueeze(-1)
        return torch.cat([past.transpose(1, 2), new_BDC], dim=-1)

    def get_seq_length(self, layer: int = 0) -> int:
        return int(self._table_BP.shape[1]) * PAGE

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return self.get_seq_length(), 0

    # --- pages -------------------------------------------------------------------------------------------------------

    def _flat(self, at: torch.Tensor) -> torch.Tensor:
        """Positions of the current rows as indices into a pool with its pages laid end to end."""
        return self._table_BP.gather(1, at // PAGE) * PAGE + at % PAGE

    def _store(self, what: str, layer: int, new_BC: torch.Tensor) -> torch.Tensor:
        if (what, layer) not in self._pools:
            self._pools[what, layer] = new_BC.new_zeros((0, PAGE, *new_BC.shape[2:]))
        pool = self._grown((what, layer))
        pool.flatten(0, 1)[self._write_BC] = new_BC
        return pool

    def _grown(self, key: tuple[str, int]) -> torch.Tensor:
        """The pool, with room for every page that has been given out."""
        pool = self._pools[key]
        if pool.shape[0] < self._num_pages:
            grown = pool.new_zeros((self._num_pages, *pool.shape[1:]))
            grown[: pool.shape[0]] = pool
            pool = self._pools[key] = grown
        return pool

    def _read(self, pool: torch.Tensor) -> torch.Tensor:
        rows, pages = self._table_BP.shape
        found = pool.index_select(0, self._table_BP.flatten())
        return found.view(rows, pages * PAGE, *pool.shape[2:]).transpose(1, 2)
