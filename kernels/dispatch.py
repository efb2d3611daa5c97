"""How an op finds its implementation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec

import torch
from torch import Tensor


class Op:
    """A function of tensors with one implementation a device; the first tensor's device decides."""

    def __init__(self, reference: Callable, triton: str):
        """Args: reference: runs on every device. triton: "module:function", imported at the first call on a CUDA device."""
        self.reference = reference
        self._triton_path = triton
        self.__doc__ = reference.__doc__

    def __call__(self, first: Tensor, *rest):
        return self._choose(first)(first, *rest)

    def _choose(self, tensor: Tensor) -> Callable:
        # A compiler fuses the plain formula by itself, and could not look into the kernel.
        if tensor.is_cuda and not torch.compiler.is_compiling():
            return self._triton
        return self.reference

    @cached_property
    def _triton(self) -> Callable:
        if find_spec("triton") is None:
            return self.reference
        module, name = self._triton_path.split(":")
        return getattr(importlib.import_module(module), name)
