"""Differential attention for CUDA: launches of `triton_programs`."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.attention_launch import (
    Tiles,
    block_of,
    candidates,
    ends_of,
    even,
    line_of,
    pointer,
    strides_of,
    tiles_of,
)
from nlrl.kernels.diff_attention import triton_programs as programs
from nlrl.kernels.diff_attention.eager import diff_attention as eager

LARGEST_HEAD = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 64}
"""Of queries and keys; wider tiles do not fit into registers."""
PREPARE_VALUES = 8192
"""Of a tile of `prepare`, at least."""


# Budgets of a Hopper processor, 2 bytes a value: 65,536 registers, so 255 a thread with 8 warps, and 227 KB of shared
# memory. Four warps multiply 64 rows of a tile at once: more warps than that share rows, and each product's factors go
# through shared memory, so a tile has 16 rows a warp. Sums in float32 should then take no more than half the registers.
# forward: the sums of one map, 128 x 128 at d = 64, are 64 registers a thread, at d = 128 they are 128.
# key_gradients: dK1, dK2 and dV of 128 keys are 128 registers at d = 64. At d = 128 they would be 256, so one launch
#   has dK1 and dK2 and another dV, 128 each, and both compute the scores: 20 d FLOPs instead of 16 d.
# query_gradients: dQ1 and dQ2 of 128 queries are 128 registers at d = 128, with 128 KB of queries and dO.
TILES = {
    "forward": {32: Tiles(128, 64, 8, 3), 64: Tiles(128, 64, 8, 3), 128: Tiles(128, 64, 8, 2)},
    "key_gradients": {32: Tiles(32, 128, 8, 3), 64: Tiles(32, 128, 8, 3), 128: Tiles(32, 128, 8, 2)},
    "value_gradients": {128: Tiles(64, 128, 8, 2)},
    "query_gradients": {32: Tiles(64, 64, 4, 2), 64: Tiles(64, 64, 4, 2), 128: Tiles(128, 32, 8, 2)},
}
"""Program -> width of queries -> launch, where values have 2 bytes."""
CANDIDATES = candidates(
    forward_64="128x64:8:3 128x64:8:2 128x128:8:2 64x64:4:3 128x32:8:3",
    forward_128="128x64:8:2 128x32:8:3 128x32:8:2 64x64:4:2 64x32:4:3",
    key_gradients_64="32x128:8:3 32x128:8:2 32x64:4:2 16x64:4:3",
    key_gradients_128="32x128:8:2 32x64:4:2 16x128:8:2",
    value_gradients_128="64x128:8:2 32x128:8:2 32x64:4:2 64x64:4:2",
    query_gradients_64="64x64:4:2 64x32:4:3 128x64:8:2 128x32:8:3",
    query_gradients_128="128x32:8:2 64x32:4:2 64x16:4:2",
)
"""Compiled for a Hopper, their loops spill at most a few registers."""
FLOAT32_TILES = {
    "forward": {32: Tiles(64, 32, 4, 2), 64: Tiles(64, 32, 8, 1)},
    "key_gradients": {32: Tiles(32, 32, 8, 1), 64: Tiles(32, 32, 8, 1)},
    "query_gradients": {32: Tiles(32, 32, 8, 1), 64: Tiles(32, 32, 8, 1)},
}
"""As `TILES`: float32 has twice the bytes, and a product needs three pairs of factors. At d = 128 the gradients would
live in spilled registers, so `eager` takes those."""

KEY_LAUNCHES = {
    False: [("key_gradients", True, True)],
    True: [("key_gradients", True, False), ("value_gradients", False, True)],
}
"""Of wide heads or not -> launches of `key_gradients`: their tiles' name, and whether they write dK and dV."""


class DiffAttention(torch.autograd.Function):
    """Query, key and value in one dtype, lambda and weight in float32."""

    @staticmethod
    def forward(ctx, query, key, value, lambda_, weight, starts, output_scale, eps) -> Tensor:
        keep = any(ctx.needs_input_grad)
        y, *kept = fused_forward(query, key, value, lambda_, weight, starts, output_scale, eps, keep)
        ctx.save_for_backward(query, key, value, lambda_, weight, starts, *kept)
        ctx.numbers = output_scale, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        *given, o, o2, lse = ctx.saved_tensors
        return *fused_backward(dy, *given, *ctx.numbers, o, o2, lse), None, None, None


def fused_forward(query, key, value, lambda_, weight, starts, output_scale: float, eps: float, keep: bool = True):
    """y, and if `keep` what `fused_backward` needs: O and O2, like y, and the logarithms (to base 2) of both maps'
    sums, `(batch, heads, 2, time)`."""
    (batch, time), heads = query.shape[:2], query.shape[2] // 2
    y = torch.empty((batch, time, heads, value.shape[3]), dtype=query.dtype, device=query.device)
    o, o2 = (torch.empty_like(y), torch.empty_like(y)) if keep else (y, y)
    lse = torch.empty((batch, heads, 2, time) if keep else (1,), dtype=torch.float32, device=query.device)
    query, key, value = even(query), even(key), even(value)
    launch = _launch("forward", query, value, starts)
    with torch.cuda.device_of(query):
        programs.forward[(batch * heads, triton.cdiv(time, launch["block_m"]))](
            query, key, value, lambda_, weight, pointer(starts, lambda_), y, o, o2, lse, time, heads,
            *strides_of(query, key, value), query.shape[3] ** -0.5, output_scale, eps, keep=keep, **launch,
        )  # fmt: skip
    return (y, o, o2, lse) if keep else (y,)


def fused_backward(dy, query, key, value, lambda_, weight, starts, output_scale: float, eps: float, o, o2, lse):
    """The gradients of query, key, value, lambda_ and weight."""
    (batch, time, heads), width = dy.shape[:3], query.shape[3]
    query, key, value = even(query), even(key), even(value)
    do, numbers, dweight, dlambda = _prepare(dy.contiguous(), o, o2, lse, lambda_, weight, width, output_scale, eps)
    dquery, dkey, dvalue = (query.new_empty(part.shape) for part in (query, key, value))
    strides, where = strides_of(query, key, value), pointer(starts, lambda_)
    ends = where if starts is None else ends_of(starts)
    with torch.cuda.device_of(query):
        for name, keys, values in KEY_LAUNCHES[query.dtype != torch.float32 and width > 64]:
            launch = _launch(name, query, value, starts)
            programs.key_gradients[(batch * value.shape[2], triton.cdiv(time, launch["block_n"]))](
                query, key, value, lambda_, where, ends, do, numbers, dkey, dvalue, time, heads,
                *strides, width**-0.5, keys=keys, values=values, **launch,
            )  # fmt: skip
        launch = _launch("query_gradients", query, value, starts)
        programs.query_gradients[(batch * heads, triton.cdiv(time, launch["block_m"]))](
            query, key, value, lambda_, where, do, numbers, dquery, time, heads,
            *strides, width**-0.5, **launch,
        )  # fmt: skip
    return dquery, dkey, dvalue, dlambda, dweight


def _prepare(dy, o, o2, lse, lambda_, weight, width: int, output_scale: float, eps: float) -> tuple[Tensor, ...]:
    """dO; what the gradients' programs need of each query, `(batch, heads, 4, line)`; dw and dlambda, their parts added
    in a fixed order."""
    (batch, time, heads), block_d = dy.shape[:3], block_of(width)
    tile = max(16, PREPARE_VALUES // (2 * block_d))
    grid = batch * heads, triton.cdiv(time, tile)
    do, numbers = torch.empty_like(o), lse.new_empty((batch, heads, 4, line_of(time)))
    dweight, dlambda = weight.new_empty((grid[0] * grid[1], 2 * width)), lambda_.new_empty(grid)
    with torch.cuda.device_of(o):
        programs.prepare[grid](
            dy, o, o2, lambda_, weight, lse, do, numbers, dweight, dlambda, time, heads, output_scale, eps,
            width**-0.5, D=width, block_d=block_d, tile=tile, num_warps=8,
        )  # fmt: skip
    return do, numbers, dweight.sum(0), dlambda.sum()


def _launch(program: str, query: Tensor, value: Tensor, starts: Tensor | None) -> dict[str, int]:
    width, block_d = query.shape[3], block_of(query.shape[3])
    most = max(32, block_d)
    if query.dtype == torch.float32:
        tiles = FLOAT32_TILES[program][most]
    else:
        tiles = tiles_of("diff_attention", program, most, TILES[program][most])
    tiles = tiles.within(query.shape[1])
    shape = {"group": query.shape[2] // 2 // value.shape[2], "D": width, "block_d": block_d}
    return tiles._asdict() | shape | {"packed": starts is not None}


def fits(query: Tensor, key, value: Tensor, lambda_: Tensor, *rest) -> bool:
    """Whether the programs can do it; `eager` does the rest."""
    width, exact = query.shape[3], lambda_.dtype == torch.float64
    return not exact and query.numel() > 0 and width <= LARGEST_HEAD.get(query.dtype, 0) and value.shape[3] == 2 * width


def prepared(query, key, value, lambda_, weight, output_scale, eps, starts) -> tuple:
    """The arguments as `fused_forward` takes them."""
    key, value, lambda_, weight = key.to(query.dtype), value.to(query.dtype), lambda_.float(), weight.float()
    starts = None if starts is None else starts.int().expand(query.shape[:2]).contiguous()
    return query, key, value, lambda_, weight.contiguous(), starts, output_scale, eps


def diff_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lambda_: Tensor,
    weight: Tensor,
    output_scale: float = 1.0,
    eps: float = 1e-5,
    starts: Tensor | None = None,
) -> Tensor:
    """See `reference.diff_attention`. Key and value count in the dtype of query; `eager` takes float64, and heads
    wider than `LARGEST_HEAD`."""
    if not fits(query, key, value, lambda_):
        return eager(query, key, value, lambda_, weight, output_scale, eps, starts)
    return DiffAttention.apply(*prepared(query, key, value, lambda_, weight, output_scale, eps, starts))
