"""Keys and values of tokens already read.

Three stores share one method, `write`, so that attention does not know which one it talks to:

1. `KVCache` has static shapes: one block of memory, a `DecodeState` written in place.
2. `PagedKVCache` is the same in pages of `PAGE` tokens, which rows may share; a table says which page is whose. The
   engine uses it.
3. `GrowingCache` wraps a Hugging Face `Cache`, which grows by concatenation. `generate` uses it.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nlrl.backbones.decode_state import Axes, DecodeState

if TYPE_CHECKING:
    from transformers import Cache

PAGE = 16
"""Tokens of a page."""
Where = tuple[Tensor, Tensor]


@dataclass
class KVCache(DecodeState):
    """Keys and values of every layer, each `(layers, batch, kv_heads, length, head_dim)`."""

    keys: Tensor
    values: Tensor
    AXES: ClassVar[dict[str, Axes]] = {"keys": (1, 3), "values": (1, 3)}

    @classmethod
    def zeros(cls, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> KVCache:
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    @property
    def length(self) -> int:
        """Number of slots on the key axis."""
        return self.keys.shape[3]

    def where(self, position_ids: Tensor) -> Where:
        """Where `write` puts the tokens at these positions, `(batch, time)`."""
        return torch.arange(position_ids.shape[0], device=position_ids.device)[:, None], position_ids

    def write(self, layer: int, key: Tensor, value: Tensor, where: Where | None) -> tuple[Tensor, Tensor]:
        """Stores new keys and values in place and returns all of the layer's, `(batch, kv_heads, length, head_dim)`.

        Args:
            layer: index of the layer.
            key, value: `(batch, time, kv_heads, head_dim)`.
            where: from `where`.
        """
        assert where is not None
        keys, values = self.keys[layer], self.values[layer]
        keys.transpose(1, 2).index_put_(where, key.to(keys.dtype))
        values.transpose(1, 2).index_put_(where, value.to(values.dtype))
        return keys, values


@dataclass
class PagedKVCache(KVCache):
    """Keys and values in pages, each `(layers, pages, kv_heads, PAGE, head_dim)`. Page 0 belongs to nobody: padding
    goes there."""

    table: Tensor
    """`(batch, pages of a row)` long: the token at position p of a row lives in page `table[row, p // PAGE]`."""
    fresh: bool = False
    """All rows begin in this call, so its own keys and values are all there is to see."""
    AXES: ClassVar[dict[str, Axes]] = {"keys": (None, None), "values": (None, None), "table": (0, None)}

    @classmethod
    def like(cls, one: KVCache, rows: int, pages: int, length: int, device: torch.device) -> PagedKVCache:
        """Empty pages for the layers, heads and dtype of another cache, and a table with room for `length` tokens a
        row."""

        def zeros(part: Tensor) -> Tensor:
            layers, _, heads, _, width = part.shape
            return untouched((layers, pages, heads, PAGE, width), part.dtype, device)

        return cls(zeros(one.keys), zeros(one.values), new_table(rows, length, device))

    @property
    def length(self) -> int:
        return self.table.shape[1] * PAGE

    def view(self, rows: slice, length: int) -> PagedKVCache:
        return replace(self, table=self.table[rows, : -(-length // PAGE)])

    def where(self, position_ids: Tensor) -> Where:
        return page_of(self.table, position_ids), position_ids % PAGE

    def store(self, layer: int, key: Tensor, value: Tensor, where: Where | None) -> None:
        """`write` for whoever reads pages as they lie."""
        assert where is not None
        write_pages(self.keys[layer], key, where)
        write_pages(self.values[layer], value, where)

    def write(self, layer: int, key: Tensor, value: Tensor, where: Where | None) -> tuple[Tensor, Tensor]:
        self.store(layer, key, value, where)
        if self.fresh:
            return key.transpose(1, 2), value.transpose(1, 2)
        return read_pages(self.keys[layer], self.table), read_pages(self.values[layer], self.table)


def untouched(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU the system gives the memory when it is first written: an engine sets aside far more pages than it
    uses most of the time, and need not wait for all of them when it starts."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def new_table(rows: int, length: int, device: torch.device) -> Tensor:
    """A page table in which every row owns nothing."""
    return torch.zeros(rows, -(-length // PAGE), dtype=torch.int64, device=device)


def page_of(table: Tensor, position_ids: Tensor) -> Tensor:
    """The page of every token, `(batch, time)`; page 0 for padding."""
    page = table.gather(1, position_ids.clamp_min(0) // PAGE)
    return page.masked_fill(position_ids < 0, 0)


def write_pages(pages: Tensor, new: Tensor, where: Where) -> None:
    """Stores `(batch, time, kv_heads, width)` in one layer's pages, in place."""
    pages.transpose(1, 2).index_put_(where, new.to(pages.dtype))


def read_pages(pages: Tensor, table: Tensor) -> Tensor:
    """A copy of what rows hold in one layer's pages, `(batch, kv_heads, slots, width)`."""
    return pages.transpose(0, 1)[:, table].flatten(2, 3).transpose(0, 1)


@dataclass
class GrowingCache:
    """A Hugging Face `Cache` behind the same `write`; new tokens always go to its end."""

    cache: Cache

    def write(self, layer: int, key: Tensor, value: Tensor, where: object = None) -> tuple[Tensor, Tensor]:
        return self.cache.update(key.transpose(1, 2), value.transpose(1, 2), layer)
