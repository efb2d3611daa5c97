"""Differential attention as one node of a compiled graph. It keeps what its backward needs: the forward is a third of
all its time, too much to run again."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from nlrl.kernels import devices
from nlrl.kernels.diff_attention.eager import diff_attention as eager

NAME = "diff_attention"
TENSORS = "Tensor query, Tensor key, Tensor value, Tensor lambda_, Tensor weight, Tensor? starts"
ARGUMENTS = f"{TENSORS}, float output_scale, float eps"
KEPT = "Tensor o, Tensor o2, Tensor lse"


def node(function: Callable) -> Callable:
    """Of an implementation with the signature of `reference.diff_attention`."""
    if not hasattr(torch.ops.nlrl, NAME):
        _define(function)
    op = getattr(torch.ops.nlrl, NAME)

    def diff_attention(query, key, value, lambda_, weight, output_scale=1.0, eps=1e-5, starts=None):
        if starts is None and _by_pytorch():
            return eager(query, key, value, lambda_, weight, output_scale, eps)
        return op(query, key, value, lambda_, weight, starts, output_scale, eps)[0]

    return diff_attention


def _define(function: Callable) -> None:
    backward = f"nlrl::{NAME}_backward"
    torch.library.define(f"nlrl::{NAME}", f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")
    gradients_of = "Tensor, Tensor, Tensor, Tensor, Tensor"
    torch.library.define(backward, f"(Tensor dy, {ARGUMENTS}, {KEPT}) -> ({gradients_of})")

    @torch.library.impl(f"nlrl::{NAME}", "default")
    def run(query, key, value, lambda_, weight, starts, output_scale, eps):
        module = fused_module(query, value, lambda_)
        if module is not None:
            given = module.prepared(query, key, value, lambda_, weight, starts)
            return module.fused_forward(*given, output_scale, eps)
        with torch.no_grad():
            y = function(query, key, value, lambda_, weight, output_scale, eps, starts).contiguous()
        return y, *_kept(query, value)

    @torch.library.impl(backward, "default")
    def differentiate(dy, query, key, value, lambda_, weight, starts, output_scale, eps, o, o2, lse):
        leaves, module = (query, key, value, lambda_, weight), fused_module(query, value, lambda_)
        if module is not None:
            given = module.prepared(*leaves, starts)
            found = module.fused_backward(dy, *given, o, o2, lse, output_scale, eps)
        else:
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            with torch.enable_grad():
                found = torch.autograd.grad(function(*leaves, output_scale, eps, starts), leaves, dy)
        return tuple(gradient.to(leaf.dtype).contiguous() for gradient, leaf in zip(found, leaves, strict=True))

    def outputs(query, key, value, lambda_, weight, starts, output_scale, eps):
        return _like(query, value), *_kept(query, value)

    def gradients(dy, query, key, value, lambda_, weight, *rest):
        leaves = query, key, value, lambda_, weight
        return tuple(torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in leaves)

    def remember(ctx, inputs, output):
        *tensors, ctx.output_scale, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    def give(ctx, dy, *unused):
        *tensors, o, o2, lse = ctx.saved_tensors
        numbers = ctx.output_scale, ctx.eps
        found = getattr(torch.ops.nlrl, f"{NAME}_backward")(dy.contiguous(), *tensors, *numbers, o, o2, lse)
        return *found, None, None, None

    torch.library.register_fake(f"nlrl::{NAME}", outputs)
    torch.library.register_fake(backward, gradients)
    torch.library.register_autograd(f"nlrl::{NAME}", give, setup_context=remember)


def fused_module(query: Tensor, value: Tensor, lambda_: Tensor):
    """Our programs, where they are what the dispatcher chose and can do the call."""
    if not query.is_cuda or not _chosen():
        return None
    module = importlib.import_module("nlrl.kernels.diff_attention.triton")
    return module if module.fits(query, value, lambda_) else None


@cache
def _chosen() -> bool:
    op = importlib.import_module("nlrl.kernels").diff_attention  # it imports this module
    return op.choice(devices.current()).provider == "nlrl"


def _by_pytorch() -> bool:
    """Whether PyTorch's attention was the fastest on this device: a compiler fuses what is around that by itself."""
    return devices.current() != "cpu" and not _chosen()


# As torch.compiler.assume_constant_result does, whose import takes seconds.
_by_pytorch._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _like(query: Tensor, value: Tensor) -> Tensor:
    return query.new_empty((*query.shape[:2], query.shape[2] // 2, value.shape[3]))


def _kept(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, heads = query.shape[:3]
    lse = query.new_empty((batch, heads // 2, 2, time), dtype=torch.float32)
    return _like(query, value), _like(query, value), lse
