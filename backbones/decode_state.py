"""What a model keeps of the tokens it has read, so that the next one costs one token.

1. A state belongs to a batch of rows. Its parts are tensors (keys, values, convolution inputs, recurrent states); each
   names its row axis, and its slot axis where it has one slot for every position.
2. The token at position p of a row lives in slot p. So positions alone say where a call writes and what it may read,
   and a state that has room for `length` tokens needs no clearing between sequences: position 0 begins anew.
3. Parts without a row axis (a pinned prefix) are the same for all rows and shared, never copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="DecodeState")
Axes = tuple[int | None, int | None]


class DecodeState:
    """Base of the states; subclasses are dataclasses that list their tensors in `AXES`."""

    AXES: ClassVar[dict[str, Axes]]
    """field -> (row axis or None, slot axis or None)."""

    @property
    def length(self) -> int:
        """How many tokens a row has room for."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(part for part, _ in self._parts()).device

    @property
    def nbytes(self) -> int:
        """Bytes of all parts; memory that views share is counted in each."""
        return sum(part.nbytes for part, _ in self._parts())

    def select(self: S, rows: Tensor) -> S:
        """A copy that holds the given rows, in order, repeats allowed. rows: `(n,)` long."""
        return self._changed(lambda part, row, slot: part.index_select(row, rows))

    def view(self: S, rows: slice, length: int) -> S:
        """The given rows and the first `length` slots, sharing memory."""

        def narrow(part: Tensor, row: int, slot: int | None) -> Tensor:
            part = part[(slice(None),) * row + (rows,)]
            return part if slot is None else part.narrow(slot, 0, length)

        return self._changed(narrow)

    def copy_(self: S, source: S) -> None:
        """Takes over another state of at most as many rows and slots; what is beyond stays."""
        for name, (row, slot) in self.AXES.items():
            part, new = getattr(self, name), getattr(source, name)
            if part is None or row is None:
                continue
            for axis in (row, slot):
                part = part if axis is None else part.narrow(axis, 0, new.shape[axis])
            part.copy_(new)

    def _parts(self) -> list[tuple[Tensor, Axes]]:
        parts = [(getattr(self, name), axes) for name, axes in self.AXES.items()]
        return [(part, axes) for part, axes in parts if part is not None]

    def _changed(self: S, change: Callable[[Tensor, int, int | None], Tensor]) -> S:
        changed: dict[str, Any] = {}
        for name, (row, slot) in self.AXES.items():
            part = getattr(self, name)
            if part is not None and row is not None:
                changed[name] = change(part, row, slot)
        return replace(self, **changed)  # pyright: ignore[reportArgumentType]
