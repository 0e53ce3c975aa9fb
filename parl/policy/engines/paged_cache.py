"""Per-position state of many sequences in shared pages: keys, values, and the inputs of short convolutions.

A slot is one agent's context, a list of pages of PAGE positions. Everything is stored by position, convolution inputs
included, so the state at any prefix is there: a prefix can be copied to another slot, and rows of different lengths
can be fed in one pass. It answers the part of transformers' `Cache` interface that decoder layers call.

B rows of the current pass, C tokens per row (right-padded), P pages per row, H heads (1 for convolutions), D head size.
Heads come first in memory: attention reads one head's positions after the other, and is three times faster when they
lie side by side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

PAGE = 32
SCRATCH = 0
"""The page that padding is written to and that fills up short rows; masks keep it from being attended to."""


WINDOW_BYTES = 256 * 2**20
"""Most memory for gathered copies of pages."""


@dataclass(eq=False)
class _Window:
    """The pages of some rows, gathered: while the same rows decode together, each pass adds one position to it."""

    slots: tuple[int, ...]
    num_pages: int
    num_bytes: int
    tensors: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    """(what, layer) -> (H, B, P * PAGE, D)."""


class PagedCache:
    """State of all slots. `begin` names the rows of a pass; the layers then call `update` and `update_conv_state`."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._device = device
        # transformers' short convolution asks its layer for this; True selects the path through `update_conv_state`
        self.layers = [SimpleNamespace(record_past=True) for _ in range(num_layers)]
        self._pools: dict[
            tuple[str, int], torch.Tensor
        ] = {}  # (what, layer) -> (H, pages, PAGE, D)
        self._tables: dict[int, list[int]] = {}
        self._free: list[int] = []
        self._num_pages = 1
        self._table_BP = self._at_BC = self._write_BC = torch.zeros(0, dtype=torch.long)
        self._windows: OrderedDict[tuple[int, ...], _Window] = OrderedDict()  # the oldest first
        self._writer: dict[
            int, _Window
        ] = {}  # slot -> the window that has all that was written to its pages
        self._window: _Window | None = None

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
        self._written(slot, None)

    def begin(self, slots: Sequence[int], at_BC: torch.Tensor) -> int:
        """Rows are slots; their tokens go to positions `at_BC` (on the CPU). Returns the span (P * PAGE) that attention
        reads."""
        num_pages = int(at_BC.max()) // PAGE + 1
        tables = [self._tables[s][:num_pages] for s in slots]
        self._table_BP = torch.tensor(
            [t + [SCRATCH] * (num_pages - len(t)) for t in tables], device=self._device
        )
        self._at_BC = at_BC.to(self._device)
        self._write_BC = self._flat(self._at_BC)
        self._window = self._find_window(tuple(slots), num_pages) if at_BC.shape[1] == 1 else None
        for slot in slots:
            self._written(slot, self._window)
        return num_pages * PAGE

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Give `target` the first `length` positions of `source`."""
        self.extend(target, length)
        self._written(target, None)
        num_pages = -(-length // PAGE)
        old, new = self._tables[source][:num_pages], self._tables[target][:num_pages]
        for key in self._pools:
            pool = self._grown(key)
            pool[:, new] = pool[:, old]

    # --- what decoder layers call ------------------------------------------------------------------------------------

    def update(
        self, keys_BHCD: torch.Tensor, values_BHCD: torch.Tensor, layer: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new keys and values; return those of all positions up to the span, as (B, H, P * PAGE, D)."""
        return self._read("keys", layer, keys_BHCD), self._read("values", layer, values_BHCD)

    def has_previous_state(self, layer: int | None = None) -> bool:
        return True

    def update_conv_state(
        self, new_BDC: torch.Tensor, layer: int, conv_kernel_size: int, **_: Any
    ) -> torch.Tensor:
        """Store the convolution's inputs; return them with the `kernel - 1` before them (zeros before the start)."""
        pool = self._store("conv", layer, new_BDC.transpose(1, 2).unsqueeze(0))
        before_BK = self._at_BC[:, :1] + torch.arange(1 - conv_kernel_size, 0, device=self._device)
        past = pool[0].flatten(0, 1)[self._flat(before_BK.clamp(min=0))] * (
            before_BK >= 0
        ).unsqueeze(-1)
        return torch.cat([past.transpose(1, 2), new_BDC], dim=-1)

    def get_seq_length(self, layer: int = 0) -> int:
        return int(self._table_BP.shape[1]) * PAGE

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return self.get_seq_length(), 0

    # --- pages -------------------------------------------------------------------------------------------------------

    def _flat(self, at: torch.Tensor) -> torch.Tensor:
        """Positions of the current rows as indices into a pool with its pages laid end to end."""
        return self._table_BP.gather(1, at // PAGE) * PAGE + at % PAGE

    def _store(self, what: str, layer: int, new_HBCD: torch.Tensor) -> torch.Tensor:
        if (what, layer) not in self._pools:
            heads, *_, size = new_HBCD.shape
            self._pools[what, layer] = new_HBCD.new_zeros((heads, 0, PAGE, size))
        pool = self._grown((what, layer))
        pool.flatten(1, 2)[:, self._write_BC] = new_HBCD
        return pool

    def _grown(self, key: tuple[str, int]) -> torch.Tensor:
        """The pool, with room for every page that has been given out."""
        pool = self._pools[key]
        if pool.shape[1] < self._num_pages:
            heads, filled, *page = pool.shape
            grown = pool.new_zeros((heads, self._num_pages, *page))
            grown[:, :filled] = pool
            pool = self._pools[key] = grown
        return pool

    def _read(self, what: str, layer: int, new_BHCD: torch.Tensor) -> torch.Tensor:
        """Store what is new; return all positions of the rows' pages."""
        new_HBCD = new_BHCD.transpose(0, 1)
        pool = self._store(what, layer, new_HBCD)
        kept = self._window.tensors.get((what, layer)) if self._window is not None else None
        if kept is None:
            rows, pages = self._table_BP.shape
            kept = pool.index_select(1, self._table_BP.flatten()).view(
                len(pool), rows, pages * PAGE, -1
            )
            if self._window is not None:
                self._window.tensors[what, layer] = kept
        else:
            kept[:, torch.arange(kept.shape[1], device=self._device), self._at_BC[:, 0]] = new_HBCD[
                :, :, 0
            ]
        return kept.transpose(0, 1)

    def _written(self, slot: int, window: _Window | None) -> None:
        """Note who writes to the slot's pages; a window that it left is out of date."""
        before = self._writer.pop(slot, None)
        if before is not None and before is not window:
            self._drop(before)
        if window is not None:
            self._writer[slot] = window

    def _find_window(self, slots: tuple[int, ...], num_pages: int) -> _Window | None:
        """The window of these rows, if nothing else has written to their pages since; otherwise a new, empty one.

        Without it, each pass copies every page that attention reads: more than half the time of long contexts. None
        when it would be too large (a big model, whose passes are bound by their weights).
        """
        window = self._windows.get(slots)
        if window is None or window.num_pages != num_pages:
            a_page = sum(
                pool.nbytes // max(1, pool.shape[1])
                for (what, _), pool in self._pools.items()
                if what != "conv"
            )
            window = _Window(slots, num_pages, len(slots) * num_pages * a_page)
            if window.num_bytes > WINDOW_BYTES:
                return None
            self._windows[slots] = window
        self._windows.move_to_end(slots)
        while sum(w.num_bytes for w in self._windows.values()) > WINDOW_BYTES:
            self._drop(next(iter(self._windows.values())))
        return window

    def _drop(self, window: _Window) -> None:
        window.tensors.clear()
        if self._windows.get(window.slots) is window:
            del self._windows[window.slots]
