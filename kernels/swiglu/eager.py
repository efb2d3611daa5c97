"""The gated activation with few passes over memory; formulas in `reference`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(up_gate: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    return _SwiGLU.apply(up_gate)


class _SwiGLU(torch.autograd.Function):
    """Keeps its input alone, and writes both gradients into one tensor; autograd would keep silu(gate) and join two."""

    @staticmethod
    def forward(ctx, up_gate: Tensor) -> Tensor:
        ctx.save_for_backward(up_gate)
        up, gate = up_gate.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        up_gate = ctx.saved_tensors[0]
        up, gate = up_gate.chunk(2, -1)
        gradient = torch.empty_like(up_gate)
        dup, dgate = gradient.chunk(2, -1)
        torch.mul(dy, F.silu(gate), out=dup)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=dgate)
        return gradient
