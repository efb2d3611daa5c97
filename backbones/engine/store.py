"""The engine's memory: the state of running rows, the states kept at marks, and the pages both share.

A row's state has a fixed part (rings, convolution inputs, recurrent states), which is copied, and pages (keys and
values of full attention), which are shared until somebody writes: only a last, partly filled page is ever copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from nlrl.backbones.decode_state import DecodeState
from nlrl.backbones.engine.pages import Pages
from nlrl.backbones.engine.transfer import upload
from nlrl.backbones.kv_cache import PAGE

MOST_KEPT = 4096
"""States kept at marks, at most."""

T = TypeVar("T", int, np.ndarray)


def pages_for(tokens: T) -> T:
    """tokens: one number or an array of them."""
    return -(-tokens // PAGE)


class Store:
    """Rows, kept states and pages of one weight set."""

    def __init__(self, model, rows: int, length: int, memory: int, device: torch.device):
        """
        Args:
            rows: sequences that run at once, at most; fewer if half of the memory does not hold them.
            length: tokens of a sequence, at most.
            memory: bytes for everything.
        """
        row, page = _row_bytes(model, length), _page_bytes(model)
        self.row_nbytes, self.page_nbytes, self.length = row, page, length
        self.rows = max(1, min(rows, memory // 2 // row)) if row else rows
        kept = min(MOST_KEPT, memory // 4 // row) if row else MOST_KEPT
        self.has_rows = row > 0
        wanted = 2 * self.rows * pages_for(length) if page else 0
        left = memory - (self.rows + kept) * row
        count = 1 + (max(pages_for(length), min(wanted, left // page)) if page else 0)
        self.pages = Pages(count)
        self.has_pages = page > 0
        self.state: DecodeState = model.new_paged_state(self.rows, length, count)
        self.kept: DecodeState | None = model.new_paged_state(max(1, kept), length, 1) if row else None
        self.free_kept = list(range(kept - 1, -1, -1))
        self._table = np.zeros((self.rows, pages_for(length)), np.int64)
        self.held = np.zeros(self.rows, np.int64)
        """Pages of each row."""
        self._dirty = False
        self._page_copies: list[tuple[int, int]] = []
        self.device = device

    def hold(self, row: int, pages: Sequence[int]) -> None:
        """Says which pages a row reads and writes, in order."""
        self._table[row, : len(pages)] = pages
        self._table[row, len(pages) :] = 0
        self.held[row] = len(pages)
        self._dirty = True

    def extend(self, rows: np.ndarray, counts: np.ndarray, pages: Sequence[int]) -> None:
        """Gives each of the rows so many pages more, from a list of all of them."""
        within = np.arange(len(pages)) - np.repeat(counts.cumsum() - counts, counts)
        self._table[np.repeat(rows, counts), np.repeat(self.held[rows], counts) + within] = pages
        self.held[rows] += counts
        self._dirty = True

    def copy_page(self, source: int, target: int) -> None:
        """Done at the next `flush`."""
        self._page_copies.append((source, target))

    def flush(self) -> None:
        """Brings table and pages on the device up to date."""
        if self._page_copies:
            source, target = (self._index(side) for side in zip(*self._page_copies, strict=True))
            for pages in self._paged_parts():
                pages[:, target] = pages[:, source]
            self._page_copies.clear()
        if self._dirty and self.has_pages:
            self.state.table.copy_(upload(self._table, self.device))  # pyright: ignore[reportAttributeAccessIssue]
            self._dirty = False

    def keep(self, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Copies the fixed part of rows to kept states."""
        if self.kept is not None:
            _copy_rows(self.state, self._index(rows), self.kept, self._index(slots))

    def restore(self, slots: Sequence[int], rows: Sequence[int]) -> None:
        """Copies kept states to rows."""
        if self.kept is not None:
            _copy_rows(self.kept, self._index(slots), self.state, self._index(rows))

    def bring_back(self, taken: DecodeState, rows: Tensor) -> None:
        """Copies the fixed part of a state that was `select`ed from rows back into them. rows: `(n,)` long."""
        for (part, axis), (to, _) in zip(_fixed_parts(taken), _fixed_parts(self.state), strict=True):
            to.index_copy_(axis, rows, part)

    def move(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Copies rows to other rows, pages included (their holder moves)."""
        _copy_rows(self.state, self._index(old), self.state, self._index(new))
        for of_rows in (self._table, self.held):
            of_rows[list(new)] = of_rows[list(old)]
            of_rows[list(old)] = 0
        self._dirty = True

    def _index(self, values: Sequence[int]) -> Tensor:
        return upload(values, self.device)

    def _paged_parts(self) -> list[Tensor]:
        axes = self.state.AXES
        parts = [getattr(self.state, name) for name in ("keys", "values", "whole_keys", "whole_values") if name in axes]
        return [part for part in parts if part.shape[0]]


def _fixed_parts(state: DecodeState) -> list[tuple[Tensor, int]]:
    """What is copied with a row, and the row axis."""
    named = [(getattr(state, name), row) for name, (row, _) in state.AXES.items() if name != "table"]
    return [(part, row) for part, row in named if part is not None and row is not None and part.numel()]


def _copy_rows(source: DecodeState, old: Tensor, target: DecodeState, new: Tensor) -> None:
    """The fixed part of rows; within one state no row may be both old and new."""
    for (part, axis), (to, _) in zip(_fixed_parts(source), _fixed_parts(target), strict=True):
        if part.device.type == "cpu":  # a copy in between would cost more than many calls: its memory is new every time
            for row, place in zip(old.tolist(), new.tolist(), strict=True):
                to.select(axis, place).copy_(part.select(axis, row))
        else:
            to.index_copy_(axis, new, part.index_select(axis, old))


def _row_bytes(model, length: int) -> int:
    return sum(part.nbytes for part, _ in _fixed_parts(model.new_paged_state(1, length, 1, device="meta")))


def _page_bytes(model) -> int:
    """Bytes of a page over all layers; 0 for a model that has none."""
    one, two = (model.new_paged_state(1, PAGE, n, device="meta").nbytes for n in (1, 2))
    return two - one
