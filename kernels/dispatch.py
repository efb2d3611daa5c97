"""How an op finds its implementation."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

SWITCH = "NLRL_KERNELS"
"""Environment variable: "eager" keeps CUDA devices to PyTorch calls; read at an op's first call."""


class Op:
    """A function of tensors with several implementations; the first argument's device decides."""

    def __init__(
        self,
        reference: Callable,
        eager: Callable,
        triton: str | None = None,
        compiled: Callable | None = None,
        node: Callable[[Callable], Callable] | None = None,
    ):
        """
        Args:
            reference: the plain formula.
            eager: PyTorch calls that reuse memory, with a backward written by hand; runs on every device.
            triton: "module:function" for CUDA devices, imported at the first call there; None where it would not pay.
            compiled: what a compiler gets, as it fuses by itself and cannot look into the others; by default the
                reference.
            node: makes of the function for CUDA devices what a compiler gets for them (`opaque`), where a formula that
                it can read would be slow.
        """
        self.reference = reference
        self.compiled = compiled or reference
        self.eager = eager
        self._triton_path = triton
        self.node = node and node(lambda *args: self._cuda(*args))
        self.__doc__ = reference.__doc__

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._choose(args[0] if args else next(iter(named.values())))(*args, **named)

    def _choose(self, tensor: Tensor) -> Callable:
        if torch.compiler.is_compiling():
            return self.node if self.node is not None and tensor.is_cuda else self.compiled
        return self._cuda if tensor.is_cuda else self.eager

    @cached_property
    def _cuda(self) -> Callable:
        if self._triton_path is None or find_spec("triton") is None or os.environ.get(SWITCH) == "eager":
            return self.eager
        module, name = self._triton_path.split(":")
        return getattr(importlib.import_module(module), name)
