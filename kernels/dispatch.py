"""How an op finds its implementation.

1. An op has providers: `nlrl` (our Triton kernel), `torch` (PyTorch calls with a backward written by hand) and, where
   `peers` knows some, other packages that are installed.
2. On a CPU it is `torch`. On a CUDA device it is what `devices` has recorded as the fastest there, `nlrl` where nothing
   is recorded; calls without gradients may have another fastest one than training. The environment variable
   NLRL_KERNELS=eager forces `torch`.
3. A peer that does less than the op is asked first whether it can do a call (`Peer.fits`); `nlrl` does the others.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlrl.kernels import devices
from nlrl.kernels.peers import PEERS, Peer

SWITCH = "NLRL_KERNELS"
"""Environment variable: "eager" keeps CUDA devices to PyTorch calls; read at an op's first call."""
OURS, TORCH = "nlrl", "torch"


class Choice(NamedTuple):
    """A provider, and why it is that one."""

    provider: str
    why: str


@dataclass(frozen=True)
class OpProviders:
    """What `nlrl.kernels.providers` says of an op."""

    op: str
    device: str
    """Name of a GPU, or "cpu"."""
    available: dict[str, bool]
    """Every provider the op knows of: is it there?"""
    chosen: str
    why: str
    forward: str
    """What calls without gradients get."""

    def __str__(self) -> str:
        absent = [name for name, there in self.available.items() if not there]
        there = ", ".join(name for name, there in self.available.items() if there)
        missing = f"; absent: {', '.join(absent)}" if absent else ""
        chosen = self.chosen if self.forward == self.chosen else f"{self.chosen}, forward {self.forward}"
        return f"{self.op:16} {chosen:14} {self.why} (there: {there}{missing})"


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
            reference: the plain formula; the op has its name.
            eager: PyTorch calls that reuse memory, with a backward written by hand; runs on every device.
            triton: "module:function" for CUDA devices, imported at the first call there; None where it would not pay.
            compiled: what a compiler gets, as it fuses by itself and cannot look into the others; by default the
                reference.
            node: makes of the function for CUDA devices what a compiler gets for them (`opaque`), where a formula that
                it can read would be slow.
        """
        self.name = reference.__name__
        self.reference = reference
        self.compiled = compiled or reference
        self.eager = eager
        self._triton_path = triton
        self.node = node and node(lambda *args: (self._learning if args[0].is_cuda else self.eager)(*args))
        self.__doc__ = reference.__doc__

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._choose(args, named)(*args, **named)

    @property
    def peers(self) -> dict[str, Peer]:
        """Other packages that can take its place, by their name; installed or not."""
        return PEERS.get(self.name, {})

    def available(self) -> dict[str, bool]:
        """Whether each provider is there."""
        ours = {OURS: self._triton_path is not None and find_spec("triton") is not None, TORCH: True}
        return ours | {name: peer.installed for name, peer in self.peers.items()}

    def choice(self, device: str, learns: bool = True) -> Choice:
        """The provider on a device and why.

        Args:
            device: name of a GPU, as CUDA gives it, or "cpu".
            learns: whether gradients are wanted.
        """
        there = self.available()
        if device == "cpu":
            return Choice(TORCH, "kernels are for CUDA devices")
        if os.environ.get(SWITCH) == "eager":
            return Choice(TORCH, f"{SWITCH}=eager")
        default = OURS if there[OURS] else TORCH
        entry = devices.read(device).get("ops", {}).get(self.name, {})
        recorded = entry.get("provider") if learns else entry.get("forward", entry.get("provider"))
        if recorded is None:
            missing = "" if there[OURS] else ", and ours is not there"
            return Choice(default, f"nothing recorded for this device{missing}")
        if not there.get(recorded, False):
            return Choice(default, f"{recorded} was the fastest here, but is not there now")
        return Choice(recorded, "the fastest by the recorded table")

    def provider(self, name: str) -> Callable:
        """The implementation of a provider that is there.

        Raises:
            KeyError: the op knows no such provider.
        """
        if name == TORCH:
            return self.eager
        if name != OURS:
            return self.peers[name].or_else(self.provider(OURS) if self.available()[OURS] else self.eager)
        if self._triton_path is None:
            raise KeyError(f"{self.name} has no provider {OURS}")
        module, function = self._triton_path.split(":")
        return getattr(importlib.import_module(module), function)

    def _choose(self, args: tuple, named: dict[str, Any]) -> Callable:
        tensor = args[0] if args else next(iter(named.values()))
        if torch.compiler.is_compiling():
            return self.node if self.node is not None and tensor.is_cuda else self.compiled
        if not tensor.is_cuda:
            return self.eager
        if self._forward is self._learning or _learns(args) or _learns(named.values()):
            return self._learning
        return self._forward

    def forget_choice(self) -> None:
        """Has the next call on a CUDA device choose anew, as the first one did: the switch may have changed."""
        for settled in ("_learning", "_forward", "chosen"):
            self.__dict__.pop(settled, None)

    @cached_property
    def chosen(self) -> str:
        """Name of the provider that this process's device gets in training; settled at the first call there."""
        return self.choice(devices.current()).provider

    @cached_property
    def _learning(self) -> Callable:
        return self.provider(self.chosen)

    @cached_property
    def _forward(self) -> Callable:
        name = self.choice(devices.current(), learns=False).provider
        return self._learning if name == self.chosen else self.provider(name)


def _learns(values: Iterable[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def describe(op: Op, device: str | None = None) -> OpProviders:
    """What an op would run on a device (default: the GPU of this machine, or its CPU)."""
    device = devices.current() if device is None else device
    return OpProviders(op.name, device, op.available(), *op.choice(device), op.choice(device, learns=False).provider)
