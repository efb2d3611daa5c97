"""Where the tensors of decode states are, in the structures that the native steps take."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlrl.backbones.engine.cpu.library import Cache, HymbaParts, Part


class Held(NamedTuple):
    """A state's tensors."""

    parts: tuple[Any, ...]
    """What the native function takes between the layers and the call."""
    length: int
    """Text positions that need rotary angles; 0 for none."""


def keys_and_values(state) -> Held:
    """Of a `KVCache`, paged or not."""
    cache = _cache(state.keys, state.values, getattr(state, "table", None))
    return Held((cache,), cache.length)


def windows_and_states(state) -> Held:
    """Of a `BiMambaState`."""
    rows = ctypes.c_int64(state.windows.shape[1])
    return Held((_part("windows", state.windows), _part("states", state.states), rows), 0)


def hymba_state(state) -> Held:
    """Of a `HymbaState`, paged or not."""
    whole = _cache(state.whole_keys, state.whole_values, getattr(state, "table", None))
    ring = _cache(state.ring_keys, state.ring_values, None)
    conv, ssm = _part("conv", state.conv), _part("ssm", state.ssm)
    meta = [_pointer(part) for part in (state.meta_keys, state.meta_values, state.meta_conv, state.meta_ssm)]
    parts = HymbaParts(whole, ring, conv, ssm, *meta, state.ring_keys.shape[1])
    return Held((parts,), max(whole.length, state.length))


def _cache(keys: Tensor, values: Tensor, table: Tensor | None) -> Cache:
    for name, part in (("keys", keys), ("values", values)):
        _check(name, part)
        if part.stride(3) != part.shape[4] or part.stride(4) != 1:
            raise ValueError(f"a head's tokens of the state's {name} must be in one piece")
    strides = (*keys.stride()[:3], *values.stride()[:3])
    blocks, page = keys.shape[1], keys.shape[3]
    if table is None:
        return Cache(keys.data_ptr(), values.data_ptr(), *strides, 0, 0, blocks, page, blocks, page)
    if table.dtype != torch.int64 or table.stride(1) != 1:
        raise ValueError("the state's table must be int64 with rows in one piece")
    room = (table.stride(0), blocks, page, table.shape[0], table.shape[1] * page)
    return Cache(keys.data_ptr(), values.data_ptr(), *strides, table.data_ptr(), *room)


def _part(name: str, part: Tensor) -> Part:
    _check(name, part)
    if part.numel() and not part[0, 0].is_contiguous():
        raise ValueError(f"a row of the state's {name} must be in one piece")
    return Part(part.data_ptr(), part.stride(0), part.stride(1))


def _pointer(part: Tensor | None) -> int | None:
    if part is None:
        return None
    _check("prefix", part)
    if not part.is_contiguous():
        raise ValueError("the state's prefix must be in one piece")
    return part.data_ptr()


def _check(name: str, part: Tensor) -> None:
    if part.dtype != torch.float32 or part.device.type != "cpu":
        raise ValueError(f"the state's {name} must be float32 on the CPU, not {part.dtype} on {part.device}")
