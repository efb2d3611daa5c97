"""Ops that a compiler calls and does not look into.

Inductor fuses plain formulas by itself, but it cannot read a scan over time. Such an op is given to it as one node with
a name. Its backward runs the forward again, which costs a fraction of it and keeps nothing between but the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def opaque(name: str, arguments: str, function: Callable[..., tuple[Tensor, Tensor]], outputs: Callable) -> Callable:
    """A twin of `function` that `torch.compile` treats as one node.

    Args:
        name: in the namespace `nlrl`.
        arguments: of the function, in TorchScript's notation, tensors only (`Tensor x, Tensor? state`).
        function: has two tensors as results, and a derivative.
        outputs: makes empty tensors like the results from the arguments.
    """
    if hasattr(torch.ops.nlrl, name):  # this folder was imported once more, as a package `kernels`: transformers tries
        return getattr(torch.ops.nlrl, name)
    backward = f"nlrl::{name}_backward"
    torch.library.define(f"nlrl::{name}", f"({arguments}) -> (Tensor, Tensor)")
    torch.library.define(backward, f"(Tensor d1, Tensor d2, {arguments}) -> Tensor[]")

    @torch.library.impl(f"nlrl::{name}", "default")
    def run(*args):
        with torch.no_grad():
            first, second = function(*args)
        return first.contiguous(), second.contiguous()

    @torch.library.impl(backward, "default")
    def differentiate(d1, d2, *args):
        leaves = [arg.detach().requires_grad_() if _varies(arg) else arg for arg in args]
        wanted = [leaf for leaf in leaves if _varies(leaf)]
        with torch.enable_grad():
            found = torch.autograd.grad(function(*leaves), wanted, (d1, d2), allow_unused=True)
        return [torch.zeros_like(arg) if d is None else d.contiguous() for arg, d in zip(wanted, found, strict=True)]

    def like(d1, d2, *args):
        return [torch.empty_like(arg, memory_format=torch.contiguous_format) for arg in args if _varies(arg)]

    def remember(ctx, inputs, output):
        ctx.given = [arg is not None for arg in inputs]
        ctx.save_for_backward(*(arg for arg in inputs if arg is not None))

    def give(ctx, d1, d2):
        saved = iter(ctx.saved_tensors)
        args = [next(saved) if given else None for given in ctx.given]
        gradients = iter(getattr(torch.ops.nlrl, f"{name}_backward")(d1.contiguous(), d2.contiguous(), *args))
        return tuple(next(gradients) if _varies(arg) else None for arg in args)

    torch.library.register_fake(f"nlrl::{name}", lambda *args: outputs(*args))
    torch.library.register_fake(backward, like)
    torch.library.register_autograd(f"nlrl::{name}", give, setup_context=remember)
    return getattr(torch.ops.nlrl, name)


def _varies(value: Any) -> bool:
    return value is not None and value.is_floating_point()
