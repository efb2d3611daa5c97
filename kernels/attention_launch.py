"""What launches of attention programs share: tiles, and tensors as programs take them."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from nlrl.kernels import launches

SHORT = (16, 64)
"""Tokens of texts that get smaller tiles, and these tiles' most rows: tensor cores take no less than 16, and four warps
64 at once. A longer text has the whole tile: none is larger than twice that, so it fills more than half of it."""


class Tiles(NamedTuple):
    """A launch of one program: tiles of queries and of keys, and the compiler's two numbers."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def within(self, time: int) -> Tiles:
        """For short texts, in few sizes, as each is compiled anew, which takes seconds in the middle of serving."""
        most = next((size for size in SHORT if time <= size), max(self[:2]))
        return self._replace(block_m=min(self.block_m, most), block_n=min(self.block_n, most))


def tiles_of(op: str, program: str, width: int | str, default: Tiles) -> Tiles:
    """The launch of a program for heads of a width: of the device's table, if it has one."""
    return Tiles(*launches.choose(op, f"{program}/{width}", default))


def candidates(**programs: str) -> dict[str, list[tuple[int, ...]]]:
    """Launches worth a try by key, from `program_width="64x64:8:3 ..."`: queries x keys of a tile, warps, stages."""
    found = {}
    for name, text in programs.items():
        program, width = name.rsplit("_", 1)
        found[f"{program}/{width}"] = [tuple(map(int, each.replace("x", ":").split(":"))) for each in text.split()]
    return found


def ends_of(starts: Tensor) -> Tensor:
    """For every token, behind the last one that sees it; `(batch, time)` int32, from where each token's text starts."""
    token = torch.arange(starts.shape[1], device=starts.device, dtype=starts.dtype).expand_as(starts).contiguous()
    return torch.searchsorted(starts, token, right=True, out_int32=True)


def block_of(width: int) -> int:
    """The columns of a tile that holds so many."""
    return max(16, triton.next_power_of_2(width))


def line_of(time: int) -> int:
    """The room that a number of each query takes: programs load it in whole vectors, for any time."""
    return triton.cdiv(time, 16) * 16


def strides_of(*tensors: Tensor) -> tuple[int, ...]:
    """Of all dimensions but the last of `(batch, time, heads, width)`."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def even(tensor: Tensor) -> Tensor:
    """With neighbours in the last dimension side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def pointer(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A launch takes no None: something that is not read."""
    return other if tensor is None else tensor
