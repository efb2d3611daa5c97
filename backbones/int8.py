"""Matrices as 8-bit integers with one scale a row: half the bytes of float16 on disk, full precision in memory.

1. Only weights of `nn.Linear` and `nn.Embedding` are stored so; vectors, convolutions, recurrence parameters (whose
   exponentials are what counts) and everything else keep a floating type.
2. `W[i, j] = scale[i] * q[i, j]`, q from -127 to 127 and scale[i] the row's largest magnitude / 127: symmetric, so a
   zero stays a zero, and the error of a weight is at most half a scale.
3. A stored matrix `name` has its scales, float32 `(rows,)`, in the tensor `name.scale` beside it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from nlrl.errors import NLRLError

SCALE = ".scale"
_LARGEST = 127


def matrix_names(model: nn.Module) -> set[str]:
    """The tensors of a model's state dict that may be stored as integers."""
    return {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.dim() == 2
    }


def quantised(matrices: dict[str, Tensor]) -> dict[str, Tensor]:
    """The integers of every matrix under its name, and its scales.

    Raises:
        NLRLError: a matrix is not finite.
    """
    stored: dict[str, Tensor] = {}
    for name, matrix in matrices.items():
        stored[name], stored[name + SCALE] = _integers(name, matrix)
    return stored


def _integers(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    matrix = matrix.detach().to("cpu", torch.float32)
    if not matrix.isfinite().all():
        raise NLRLError(f"tensor {name} has values that are not finite: it cannot be saved")
    scale = matrix.abs().amax(1) / _LARGEST
    # A row of zeros, or of numbers so small that their scale is none, is stored as zeros.
    scale = scale.where(scale >= torch.finfo(torch.float32).tiny, torch.ones_like(scale))
    return (matrix / scale[:, None]).round().to(torch.int8), scale


def dequantised(tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The tensors with every int8 matrix as float32; its scales are gone. source only serves the messages.

    Raises:
        NLRLError: scales are missing, belong to nothing, or have another shape, type or sign than they should.
    """
    integers = {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    if not integers:
        return tensors
    _check_scales(tensors, integers, source)
    plain = {name: tensor for name, tensor in tensors.items() if not _is_scale(name, integers)}
    return {
        name: tensor.float() * tensors[name + SCALE].float()[:, None] if name in integers else tensor
        for name, tensor in plain.items()
    }


def _is_scale(name: str, integers: Container[str]) -> bool:
    return name.endswith(SCALE) and name.removesuffix(SCALE) in integers


def _check_scales(tensors: dict[str, Tensor], integers: Iterable[str], source: Path) -> None:
    for name in sorted(integers):
        scale = tensors.get(name + SCALE)
        if scale is None:
            raise NLRLError(f"{source} lacks tensor {name}{SCALE}: {name} is int8 and means nothing without its scales")
        rows = tuple(tensors[name].shape[:1])
        if tuple(scale.shape) != rows or tensors[name].dim() != 2:
            found = tuple(scale.shape)
            raise NLRLError(
                f"{source}: tensor {name}{SCALE} has shape {found}, but {name} of shape {tuple(tensors[name].shape)} "
                f"needs one scale a row, {rows}"
            )
        if not (scale.is_floating_point() and scale.isfinite().all() and (scale > 0).all()):
            raise NLRLError(f"{source}: tensor {name}{SCALE} should hold finite positive numbers")
