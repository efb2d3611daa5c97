"""Weights in the order and form that the native step reads.

1. A matrix is cut into panels of `2 * lanes` columns (outputs), `panel[input][column]`, the last one padded with zeros.
2. What multiplies inputs or outputs of a matrix is multiplied into it: weights of norms, attention's scale, nGPT's
   scales. Norms are then one number a row, applied to the product.
3. `up` and `gate` lie beside each other in groups of `lanes` columns, so that a register tile holds both.
4. Tensors stand in the order of the C structures' fields (`decoder.h`, `bimamba.h`, `hymba.h`), None for null.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.backbones.engine.cpu.states import Held
from nlrl.backbones.rotary import angles, frequencies

Layer = tuple[Tensor | None, ...]


@dataclass
class Packed:
    """All that a step needs of a model."""

    step: str
    """Name of the native function."""
    sizes: dict[str, Any]
    """Fields of `library.Sizes`."""
    embedding: Tensor
    lm_head: Tensor
    layers: list[Layer]
    held: Callable[[Any], Held]
    """Where a state's tensors are, as the native function takes them."""
    turns: Callable[[int], Tensor] | None = None
    """number of positions -> `turn_table`; None without rotary embedding."""
    places: tuple[int, ...] = ()
    """Numbers that go with the layers."""


def panels(weight: Tensor, lanes: int) -> Tensor:
    """A `(outputs, inputs)` matrix as `(panels, inputs, 2 * lanes)`."""
    width = 2 * lanes
    padded = F.pad(weight.float(), (0, 0, 0, -weight.shape[0] % width))
    return padded.unflatten(0, (-1, width)).transpose(1, 2).contiguous()


def beside(up_gate: Tensor, lanes: int) -> Tensor:
    """Rows of `up` and `gate`, stacked, in alternating groups of `lanes`; each padded with zeros."""
    halves = up_gate.unflatten(0, (2, -1))
    halves = F.pad(halves, (0, 0, 0, -halves.shape[1] % lanes))
    return halves.unflatten(1, (-1, lanes)).transpose(0, 1).flatten(0, 2)


def turn_table(turn: Callable[..., Tensor], rope: dict, dim: int, count: int, interleaved: bool) -> Tensor:
    """What a rotary embedding does to pairs (a, b), float32 `(count, 4, dim / 2)`: position p turns them into
    `(t0 a + t1 b, t2 a + t3 b)`. Found by turning unit vectors, so any embedding that is linear in pairs will do.

    Args: turn: (x, cos, sin) -> the turned x.
    """
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(dim // 2), slice(dim // 2, None))
    basis = torch.zeros(2, count, 1, dim)
    basis[0, ..., first] = basis[1, ..., second] = 1
    cos, sin = angles(torch.arange(count)[None], frequencies(dim, rope, basis))
    a, b = turn(basis, cos, sin)[:, :, 0]
    return torch.stack((a[:, first], b[:, first], a[:, second], b[:, second]), 1).contiguous()


def scaled_queries(weight: Tensor, queries: int, head_dim: int) -> Tensor:
    """A copy whose first `queries` rows, which make queries, are multiplied by attention's scale."""
    weight = weight.clone()
    weight[:queries] *= head_dim**-0.5
    return weight


def gated(layer, lanes: int) -> tuple[Tensor, Tensor]:
    """The two matrices of a layer's feed-forward part, its norm in the first."""
    up_gate = layer.mlp.up_gate.weight * layer.mlp_norm.weight
    return panels(beside(up_gate, lanes), lanes), panels(layer.mlp.down.weight, lanes)


def table(weight: Tensor) -> Tensor:
    """A tensor as it is, in one piece."""
    return weight.float().contiguous()
