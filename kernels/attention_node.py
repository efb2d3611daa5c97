"""Attention as one node of a compiled graph, which keeps what its backward needs.

`opaque` runs the forward again in the backward; that of attention is a third of all its time, too much to do twice.

1. Where our programs are what a device gets (`Op.chosen`) and can do the call, the node launches them, and their own
   backward. `composed` gets no documents, which go to ours, so they are ours here too.
2. Otherwise (a CPU, float64, wide heads) it calls what the dispatcher chose; the backward runs that again, and what is
   kept is memory that nobody reads.
3. Where PyTorch's attention was the fastest, a compiler gets plain calls instead: it fuses what is around them.

An op's module `triton` brings `fits` and `prepared` (of the op's arguments: can the programs do it, and how they take
them), `fused_forward(*prepared)`, y and what is kept, and `fused_backward(dy, *prepared, *kept)`, a gradient for each
floating-point argument, in their order.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nlrl.kernels import devices
from nlrl.kernels.dispatch import OURS, TORCH


def attention_node(
    name: str, arguments: str, function: Callable[..., Tensor], outputs: Callable, results: int, kept: int
) -> Callable:
    """A twin of an attention that `torch.compile` treats as one node; its first result is y.

    Args:
        name: of the op.
        arguments: of the op, in its order and TorchScript's notation (`Tensor query, Tensor? starts`).
        function: what the dispatcher chose.
        outputs: makes empty tensors like the results of `fused_forward` from the arguments.
        results: how many those are.
        kept: how many of them, the last ones, the backward takes.
    """
    if hasattr(torch.ops.nlrl, name):  # this folder was imported once more, as a package `kernels`
        return getattr(torch.ops.nlrl, name)
    backward = f"nlrl::{name}_backward"
    torch.library.define(f"nlrl::{name}", f"({arguments}) -> ({', '.join(['Tensor'] * results)})")
    torch.library.define(backward, f"(Tensor dy, {arguments}, Tensor[] kept) -> Tensor[]")

    @torch.library.impl(f"nlrl::{name}", "default")
    def run(*args):
        module = programs(name, *args)
        if module is not None:
            return module.fused_forward(*module.prepared(*args))
        with torch.no_grad():
            y = function(*args)
        return y.to(args[0].dtype).contiguous(), *outputs(*args)[1:]

    @torch.library.impl(backward, "default")
    def differentiate(dy, *args):
        *args, saved = args
        module, wanted = programs(name, *args), [arg for arg in args if _varies(arg)]
        if module is not None:
            found = module.fused_backward(dy, *module.prepared(*args), *saved)
        else:
            found = _again(function, args, dy)
        found = [gradient for gradient in found if gradient is not None]
        return [gradient.to(leaf.dtype).contiguous() for gradient, leaf in zip(found, wanted, strict=True)]

    def gradients(dy, *args):
        return [torch.empty_like(arg, memory_format=torch.contiguous_format) for arg in args[:-1] if _varies(arg)]

    def remember(ctx, inputs, output):
        ctx.others = [None if isinstance(each, Tensor) else (each,) for each in inputs]
        ctx.save_for_backward(*(each for each in inputs if isinstance(each, Tensor)), *output[-kept:])

    def give(ctx, dy, *unused):
        saved = list(ctx.saved_tensors)
        tensors = iter(saved[:-kept])
        args = [next(tensors) if other is None else other[0] for other in ctx.others]
        found = iter(getattr(torch.ops.nlrl, f"{name}_backward")(dy.contiguous(), *args, saved[-kept:]))
        return tuple(next(found) if _varies(arg) else None for arg in args)

    torch.library.register_fake(f"nlrl::{name}", lambda *args: outputs(*args))
    torch.library.register_fake(backward, gradients)
    torch.library.register_autograd(f"nlrl::{name}", give, setup_context=remember)
    return getattr(torch.ops.nlrl, name)


def programs(name: str, *args: Any) -> ModuleType | None:
    """An op's module `triton`, where a node launches its programs for these arguments."""
    if not args[0].is_cuda or _chosen(name) == TORCH:
        return None
    module = importlib.import_module(f"nlrl.kernels.{name}.triton")
    return module if module.fits(*args) else None


def plain_calls(name: str, documents: bool) -> bool:
    """Whether a compiler is to look into PyTorch's attention.

    Args: documents: the call says where each token's begins.
    """
    chosen = OURS if devices.current() == "cpu" else _chosen(name)
    return chosen == TORCH or (chosen != OURS and not documents)


# As torch.compiler.assume_constant_result does, whose import takes seconds.
plain_calls._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _chosen(name: str) -> str:
    return getattr(importlib.import_module("nlrl.kernels"), name).chosen  # it imports this module


def _again(function: Callable[..., Tensor], args: list, dy: Tensor) -> tuple[Tensor, ...]:
    leaves = [arg.detach().requires_grad_() if _varies(arg) else arg for arg in args]
    with torch.enable_grad():
        return torch.autograd.grad(function(*leaves), [leaf for leaf in leaves if _varies(leaf)], dy)


def _varies(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
