"""Attention behind a prefix for CUDA: launches of `triton_programs`."""

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
from nlrl.kernels.prefix_attention import triton_programs as programs
from nlrl.kernels.prefix_attention.eager import prefix_attention as eager

LARGEST = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 64}
"""Width of queries and values together is at most 1.5 times this; wider tiles do not fit into registers."""
PREPARE_VALUES = 8192
"""Of a tile of `prepare`, at least."""
PROGRAMS = 264
"""Of `prefix_gradients`, at least, if there are so many tiles of queries: two for each processor of a Hopper."""


# For queries of 64 and values of 128 channels in 2 bytes (Hymba), of 65,536 registers and 227 KB of a Hopper processor.
# Four warps multiply 64 rows of a tile at once, so a tile has 16 rows a warp; sums take at most half the registers.
# forward: 128 x 128 float32 of y are 64 registers a thread with 8 warps, scores of 128 x 64 another 32; 16 KB of
#   queries, 24 KB a stage of keys and values.
# key_gradients: dK and dV of 128 keys are 128 x 192 float32, 96 registers, two tiles of 128 x 64 another 64.
# query_gradients: dQ of 128 queries is 32 registers, two tiles of 128 x 64 another 64; 48 KB of queries and dy.
TILES = {
    "forward": {192: Tiles(128, 64, 8, 3), 384: Tiles(128, 64, 8, 2)},
    "key_gradients": {192: Tiles(64, 128, 8, 2), 256: Tiles(32, 128, 8, 2), 384: Tiles(32, 64, 8, 2)},
    "query_gradients": {192: Tiles(64, 64, 4, 2), 384: Tiles(128, 32, 8, 2)},
    "prefix_gradients": {192: Tiles(64, 128, 8, 2), 256: Tiles(32, 128, 8, 2), 384: Tiles(32, 64, 8, 2)},
}
"""Program -> width of queries and values together, at most -> launch, where values have 2 bytes."""
CANDIDATES = candidates(
    forward_192="128x64:8:3 128x64:8:2 64x64:4:3 128x128:8:2 128x32:8:3",
    key_gradients_192="64x128:8:2 32x128:8:3 64x64:4:2 32x64:4:3",
    query_gradients_192="64x64:4:2 64x64:4:3 128x64:8:2 128x64:8:3",
    prefix_gradients_192="64x128:8:2 32x128:8:3 64x64:4:2 32x64:4:3",
)
"""Compiled for a Hopper, their loops spill no register."""
FLOAT32_TILES = {program: Tiles(32, 32, 8, 1) for program in TILES}
"""float32 has twice the bytes, and a product needs three pairs of factors."""


class PrefixAttention(torch.autograd.Function):
    """All in one dtype."""

    @staticmethod
    def forward(ctx, query, key, value, prefix_key, prefix_value, starts) -> Tensor:
        y, lse = fused_forward(query, key, value, prefix_key, prefix_value, starts, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(query, key, value, prefix_key, prefix_value, starts, y, lse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        return *fused_backward(dy, *ctx.saved_tensors), None


def fused_forward(query, key, value, prefix_key, prefix_value, starts, keep: bool = True) -> tuple[Tensor, Tensor]:
    """y, and if `keep` the logarithms (to base 2) of the maps' sums, `(batch, heads, time)`."""
    batch, time, heads = query.shape[:3]
    y = torch.empty((batch, time, heads, value.shape[3]), dtype=query.dtype, device=query.device)
    lse = torch.empty((batch, heads, time) if keep else (1,), dtype=torch.float32, device=query.device)
    query, key, value = even(query), even(key), even(value)
    launch = _launch("forward", query, key, value, starts)
    with torch.cuda.device_of(query):
        programs.forward[(batch * heads, triton.cdiv(time, launch["block_m"]))](
            query, key, value, *_prefix(prefix_key, prefix_value, y), pointer(starts, lse), y, lse, time, heads,
            _length(prefix_key), *strides_of(query, key, value), query.shape[3] ** -0.5, keep=keep, **launch,
        )  # fmt: skip
    return y, lse


def fused_backward(dy, query, key, value, prefix_key, prefix_value, starts, y, lse):
    """The gradients of query, key, value, and of the prefix's keys and values."""
    (batch, time, heads), value_dim = dy.shape[:3], value.shape[3]
    query, key, value, dy = even(query), even(key), even(value), dy.contiguous()
    dquery, dkey, dvalue = (query.new_empty(part.shape) for part in (query, key, value))
    numbers = lse.new_empty((batch, heads, 2, line_of(time)))
    prefix, scale = _prefix(prefix_key, prefix_value, y), query.shape[3] ** -0.5
    strides, where = strides_of(query, key, value), pointer(starts, lse)
    ends = where if starts is None else ends_of(starts)
    with torch.cuda.device_of(query):
        block_v = block_of(value_dim)
        tile = max(16, PREPARE_VALUES // block_v)
        programs.prepare[(batch * heads, triton.cdiv(time, tile))](
            dy, y, lse, numbers, time, heads, scale, V=value_dim, block_v=block_v, tile=tile, num_warps=8
        )
        launch = _launch("key_gradients", query, key, value, starts)
        programs.key_gradients[(batch * key.shape[2], triton.cdiv(time, launch["block_n"]))](
            query, key, value, where, ends, dy, numbers, dkey, dvalue, time, heads, *strides, scale, **launch
        )
        launch = _launch("query_gradients", query, key, value, starts)
        programs.query_gradients[(batch * heads, triton.cdiv(time, launch["block_m"]))](
            query, key, value, *prefix, where, dy, numbers, dquery, time, heads, _length(prefix_key), *strides,
            scale, **launch,
        )  # fmt: skip
    return dquery, dkey, dvalue, *_prefix_gradients(query, key, value, prefix_key, prefix_value, dy, numbers)


def _prefix_gradients(query, key, value, prefix_key, prefix_value, dy, numbers):
    """Of the prefix's keys and values; None where there is no prefix."""
    length = _length(prefix_key)
    if not length:
        return tuple(None if part is None else torch.zeros_like(part) for part in (prefix_key, prefix_value))
    batch, time, heads = query.shape[:3]
    launch = _launch("prefix_gradients", query, key, value, None)
    del launch["packed"]
    tiles, kv_heads = triton.cdiv(length, launch["block_n"]), key.shape[2]
    parts = min(triton.cdiv(time, launch["block_m"]), triton.cdiv(PROGRAMS, tiles * kv_heads * batch))
    share = triton.cdiv(triton.cdiv(time, parts), launch["block_m"]) * launch["block_m"]
    wide = {"dtype": torch.float32, "device": query.device}
    dkey, dvalue = (torch.empty((batch * parts, *part.shape), **wide) for part in (prefix_key, prefix_value))
    with torch.cuda.device_of(query):
        programs.prefix_gradients[(kv_heads, tiles, batch * parts)](
            query, *_prefix(prefix_key, prefix_value, dy), dy, numbers, dkey, dvalue, time, heads, length, share,
            parts, *query.stride()[:3], query.shape[3] ** -0.5, **launch,
        )  # fmt: skip
    return dkey.sum(0).to(prefix_key.dtype), dvalue.sum(0).to(prefix_value.dtype)


def _launch(program: str, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None) -> dict[str, int]:
    if query.dtype == torch.float32:
        tiles = FLOAT32_TILES[program]
    else:
        width = block_of(query.shape[3]) + block_of(value.shape[3])
        most = min(each for each in TILES[program] if each >= width)
        tiles = tiles_of("prefix_attention", program, most, TILES[program][most])
    tiles = tiles.within(query.shape[1])
    sizes = {"D": query.shape[3], "block_d": block_of(query.shape[3])}
    sizes |= {"V": value.shape[3], "block_v": block_of(value.shape[3])}
    return tiles._asdict() | sizes | {"group": query.shape[2] // key.shape[2], "packed": starts is not None}


def _prefix(prefix_key: Tensor | None, prefix_value: Tensor | None, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both without gaps, or something that is not read."""
    if prefix_key is None or prefix_value is None:
        return other, other
    return prefix_key.contiguous(), prefix_value.contiguous()


def _length(prefix_key: Tensor | None) -> int:
    return 0 if prefix_key is None else prefix_key.shape[1]


def fits(query: Tensor, key, value: Tensor, *rest) -> bool:
    """Whether the programs can do it; `eager` does the rest."""
    widest = block_of(query.shape[3]) + block_of(value.shape[3])
    return query.numel() > 0 and 2 * widest <= 3 * LARGEST.get(query.dtype, 0)


def prepared(query, key, value, prefix_key, prefix_value, starts) -> tuple:
    """The arguments as `fused_forward` takes them."""
    alike = (part if part is None else part.to(query.dtype) for part in (key, value, prefix_key, prefix_value))
    starts = None if starts is None else starts.int().expand(query.shape[:2]).contiguous()
    return query, *alike, starts


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """See `reference.prefix_attention`. All count in the dtype of query; `eager` takes float64, and widths beyond
    `LARGEST`."""
    if not fits(query, key, value):
        return eager(query, key, value, prefix_key, prefix_value, starts)
    return PrefixAttention.apply(*prepared(query, key, value, prefix_key, prefix_value, starts))
