"""Weights on their way to another process: taken off the device once, and not copied by whoever only reads them.

A dict of tensors is pickled as bytes inside the message: written, copied into it, copied out, each time whole. Here the
message refers to plain arrays, which Ray lays into its object store as they are and maps into the memory of every
process that reads them. bfloat16, which numpy does not know, travels as the bytes that it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_Identity = tuple[int, torch.Size, tuple[int, ...]]


class SentTensors(dict[str, Tensor]):
    """Tensors on the CPU by name. Those that come out of a message may be read only: copy what is to be changed."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> SentTensors:
        """Copies, floating-point ones in another type if one is given: rounded where they are, so that no more is
        moved than arrives. One that has several names is copied once."""
        copies: dict[_Identity, Tensor] = {}
        for tensor in tensors.values():
            copies.setdefault(_identity(tensor), _begun(tensor.detach(), dtype))
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            torch.cuda.synchronize()
        return cls({name: copies[_identity(tensor)] for name, tensor in tensors.items()})

    @property
    def nbytes(self) -> int:
        """Of all of them, each once."""
        return sum({_identity(tensor): tensor.nbytes for tensor in self.values()}.values())

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = {_identity(t): t.contiguous().reshape(-1).view(torch.uint8).numpy() for t in self.values()}
        return _received, ([(name, t.dtype, tuple(t.shape), arrays[_identity(t)]) for name, t in self.items()],)


def _identity(tensor: Tensor) -> _Identity:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _begun(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy that is under way, where it comes from a device; there is nothing else to wait for."""
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor, non_blocking=True)


def _received(parts: list[tuple[str, torch.dtype, tuple[int, ...], Any]]) -> SentTensors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about memory that must not be written to
        return SentTensors(
            {name: torch.from_numpy(array).view(dtype).reshape(shape) for name, dtype, shape, array in parts}
        )
