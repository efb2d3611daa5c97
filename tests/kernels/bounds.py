"""Whether a program of Triton touches memory that it was not given: a check for the interpreter.

Within `checked`, every launch gets copies of its tensors that lie apart, with poison around them, and every pointer
that a load, store or atomic really uses must lie in the span of one of the tensors given: from its first to its last
element, strides counted. So a tensor whose elements share memory (`expand`) or lie apart must be read by its strides;
what happens to lie behind it does not count. An access outside raises `OutOfBounds`, with the program's name and index.

With `sampled`, launches of any size are tried: a few programs of each, the last ones too, on tensors as they are.
Their results are noise, their pointers are not: products that overflow 32 bits lead outside. Memory that is only
reserved (`torch.empty`) stays untouched but for what those programs read and write.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor

GUARD = 4096
"""Bytes of poison on either side of a tensor's storage."""
POISON = 0xFF
"""Of each byte: NaN in every floating type, -1 in integers."""


class OutOfBounds(Exception):
    """A program reached for memory outside its tensors."""


class _Launch:
    """The spans of one launch's tensors, and what its programs use."""

    def __init__(self, name: str, tensors: list[Tensor]):
        self.name = name
        spans = sorted(_span(tensor) for tensor in tensors if tensor.numel())
        self._starts = np.array([start for start, _ in spans], dtype=np.uint64)
        # Of each span or an earlier one, behind that of none.
        self._ends = np.maximum.accumulate(np.array([0, *(end for _, end in spans)], dtype=np.uint64))

    def require(self, pointers, mask, what: str) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        used = pointers.data[np.broadcast_to(mask, pointers.data.shape)]
        span = np.searchsorted(self._starts, used, side="right")
        outside = used + np.uint64(size) > self._ends[span]
        if outside.any():
            raise OutOfBounds(f"{self.name}: {what}: {int(outside.sum())} of {used.size} outside")


def _span(tensor: Tensor) -> tuple[int, int]:
    """Bytes from the first element to behind the last. Strides are not negative in PyTorch."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _guarded(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """The same bytes, GUARD bytes behind the beginning, with poison on both sides."""
    room = torch.full((storage.nbytes() + 2 * GUARD,), POISON, dtype=torch.uint8)
    room[GUARD : GUARD + storage.nbytes()] = torch.empty(0, dtype=torch.uint8).set_(storage)
    return room.untyped_storage()


def _moved(value, storages: dict[int, torch.UntypedStorage]):
    """A tensor in a guarded copy of its storage; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    storage = value.untyped_storage()
    if storage.data_ptr() not in storages:
        storages[storage.data_ptr()] = _guarded(storage)
    offset = value.storage_offset() + GUARD // value.element_size()
    return torch.empty(0, dtype=value.dtype).set_(storages[storage.data_ptr()], offset, value.shape, value.stride())


def _brought_back(given, moved) -> None:
    for value, copy in zip(given, moved, strict=True):
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            inner = torch.empty(0, dtype=torch.uint8).set_(copy.untyped_storage())[GUARD : GUARD + storage.nbytes()]
            torch.empty(0, dtype=torch.uint8).set_(storage).copy_(inner)


def _few(size: int, sampled: int) -> range | list[int]:
    return range(size) if size <= sampled else sorted({round(i * (size - 1) / (sampled - 1)) for i in range(sampled)})


@contextmanager
def checked(sampled: int = 0, seen: set[str] | None = None) -> Iterator[None]:
    """Within it, launches raise `OutOfBounds`. Needs `TRITON_INTERPRET=1`.

    Args:
        sampled: how many programs of each dimension of a grid run, at least 2; 0: all, on guarded copies.
        seen: gets the names of the programs that ran.
    """
    from triton.runtime import interpreter

    executor, builder = interpreter.GridExecutor, type(interpreter.interpreter_builder)
    launch, whole = _Launch("none", []), executor.__call__

    def begin(self, args, kwargs):
        nonlocal launch
        storages: dict[int, torch.UntypedStorage] = {}
        if not sampled:
            args, kwargs = [_moved(a, storages) for a in args], {k: _moved(a, storages) for k, a in kwargs.items()}
        launch = _Launch(self.fn.__name__, [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)])
        if seen is not None:
            seen.add(self.fn.__name__)
        return args, kwargs

    def end(self, args, args_here, kwargs, kwargs_here):
        if not sampled:
            _brought_back((*args, *kwargs.values()), (*args_here, *kwargs_here.values()))

    def call(self, *args, **kwargs):
        try:
            return whole(self, *args, **kwargs)
        except interpreter.InterpreterError as error:
            raise _reason(error) from None

    def some(*limits):
        of_grid = sys._getframe(1).f_code is whole.__code__
        return _few(limits[0], sampled) if sampled and of_grid else range(*limits)

    def guarded(name: str, place: int, mask: int | None):
        """An access of the interpreter's, with the place of its pointers and mask among the arguments."""
        plain = getattr(builder, name)

        def access(self, *args):
            used = True if mask is None else args[mask].data
            launch.require(args[place], used, f"program {self.grid_idx}: {name.removeprefix('create_')}")
            return plain(self, *args)

        return mock.patch.object(builder, name, access)

    with ExitStack() as stack:
        for patch in (
            mock.patch.object(executor, "_init_args_hst", begin),
            mock.patch.object(executor, "_restore_args_dev", end),
            mock.patch.object(executor, "__call__", call),
            mock.patch.object(interpreter, "range", some, create=True),
            guarded("create_masked_load", 0, 1),
            guarded("create_masked_store", 0, 2),
            guarded("create_atomic_rmw", 1, 3),
            guarded("create_atomic_cas", 0, None),
        ):
            stack.enter_context(patch)
        yield


def _reason(error: BaseException) -> BaseException:
    """What began it: each function of a program wraps the error of the one that it calls."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OutOfBounds):
        found = found.__cause__
    return found or error
