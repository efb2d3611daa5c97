"""Keys and values of tokens already read.

Two stores share one method, `write`, so that attention does not know which one it talks to:

1. `KVCache` has static shapes: one block of memory, a `DecodeState` written in place. Samplers and CUDA graphs use it.
2. `GrowingCache` wraps a Hugging Face `Cache`, which grows by concatenation. `generate` uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import Cache

from nlrl.backbones.decode_state import Axes, DecodeState


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

    def write(
        self, layer: int, key: Tensor, value: Tensor, where: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Stores new keys and values in place and returns all of the layer's, `(batch, kv_heads, length, head_dim)`.

        Args:
            layer: index of the layer.
            key, value: `(batch, time, kv_heads, head_dim)`.
            where: (row, slot) of every new token, broadcastable to `(batch, time)`.
        """
        assert where is not None
        keys, values = self.keys[layer], self.values[layer]
        keys.transpose(1, 2).index_put_(where, key.to(keys.dtype))
        values.transpose(1, 2).index_put_(where, value.to(values.dtype))
        return keys, values


@dataclass
class GrowingCache:
    """A Hugging Face `Cache` behind the same `write`; new tokens always go to its end."""

    cache: Cache

    def write(self, layer: int, key: Tensor, value: Tensor, where: object = None) -> tuple[Tensor, Tensor]:
        return self.cache.update(key.transpose(1, 2), value.transpose(1, 2), layer)
