"""What an op must do at the least: bytes that cross the memory bus once, and arithmetic.

Every op's folder has a `costs.py` with `forward(size, **shape)` and, if it has gradients, `backward(size, **shape)`;
size is the bytes of a number in memory. Achieved rates of `nlrl bench kernels` are these over the measured time,
whatever an implementation really moves.
"""

from __future__ import annotations

from importlib import import_module
from typing import Literal, NamedTuple

Mode = Literal["forward", "backward", "both"]


class Cost(NamedTuple):
    """Of one call."""

    bytes: float
    """Read and written."""
    flops: float
    """An exponential counts as one."""


def cost(op: str, mode: Mode, size: int, **shape: int) -> Cost:
    """What one call of an op costs.

    Args:
        op: name of its folder.
        size: bytes of a number of the main tensors.
        shape: the sizes that the op's `costs.py` names.
    """
    module = import_module(f"nlrl.kernels.{op}.costs")
    parts = [getattr(module, name)(size, **shape) for name in (("forward", "backward") if mode == "both" else (mode,))]
    return Cost(sum(part.bytes for part in parts), sum(part.flops for part in parts))
