"""Differential attention, version 2, for CUDA: launches of `triton_programs`."""

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
from nlrl.kernels.diff_attention_v2 import triton_programs as programs
from nlrl.kernels.diff_attention_v2.eager import diff_attention_v2 as eager

LARGEST_HEAD = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 64}
"""Wider tiles do not fit into registers."""
PREPARE_VALUES = 8192
"""Of a tile of `prepare`, at least."""


TILES = {
    "forward": {64: Tiles(64, 64, 8, 3), 128: Tiles(64, 64, 8, 3)},
    "key_gradients": {64: Tiles(32, 64, 4, 3), 128: Tiles(32, 128, 8, 2)},
    "query_gradients": {64: Tiles(64, 32, 4, 3), 128: Tiles(128, 64, 8, 2)},
}
"""Program -> width of queries -> launch, where values have 2 bytes. Four warps multiply 64 rows of a tile at once: more
warps than that share rows, and each product's factors go through shared memory. Rows are both maps' queries in
`forward`, keys in `key_gradients`, queries in `query_gradients`."""
NEVER = Tiles(0, 0, 0, 0)
TILES["one_pass"] = {64: NEVER, 128: NEVER}
"""Gradients of queries in the launch of those of keys: by default not, as equal inputs then give unequal last bits."""
CANDIDATES = candidates(
    one_pass_64="0x0:0:0 32x128:8:2 32x64:4:2 64x128:8:2",
    one_pass_128="0x0:0:0 32x128:8:2 32x64:8:2",
    forward_64="64x64:8:3 64x64:4:3 64x128:8:3 128x64:8:3 64x64:8:2",
    forward_128="64x64:8:3 64x64:8:2 32x64:4:3 32x64:4:2 64x128:8:2 32x128:4:2",
    key_gradients_64="32x64:4:3 32x64:4:2 64x64:4:2 32x128:8:3 64x128:8:2",
    key_gradients_128="32x128:8:2 32x64:4:2 32x128:8:3 16x64:4:3",
    query_gradients_64="64x32:4:3 64x64:4:3 128x64:8:3 128x32:8:3",
    query_gradients_128="128x64:8:2 128x32:8:3 64x32:4:2 64x32:4:3",
)
"""Compiled for a Hopper, their loops spill no register."""
FLOAT32_TILES = {
    "forward": {64: Tiles(16, 32, 4, 1)},
    "key_gradients": {64: Tiles(32, 32, 8, 1)},
    "query_gradients": {64: Tiles(32, 32, 8, 1)},
}
"""float32 has twice the bytes, and a product needs three pairs of factors."""


class DiffAttentionV2(torch.autograd.Function):
    """Query, key and value in one dtype, gate without gaps."""

    @staticmethod
    def forward(ctx, query, key, value, gate, starts) -> Tensor:
        keep = any(ctx.needs_input_grad)
        y, o2, lse = fused_forward(query, key, value, gate, starts, keep)
        ctx.save_for_backward(query, key, value, gate, starts, y, o2, lse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        return *fused_backward(dy, *ctx.saved_tensors), None


def fused_forward(query, key, value, gate, starts, keep: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """y, and if `keep` O2 and the logarithms (to base 2) of both maps' sums, `(batch, heads, 2, time)`."""
    (batch, time), heads = query.shape[:2], gate.shape[2]
    y = torch.empty((batch, time, heads, query.shape[3]), dtype=query.dtype, device=query.device)
    o2 = torch.empty_like(y) if keep else y
    lse = torch.empty((batch, heads, 2, time) if keep else (1,), dtype=torch.float32, device=query.device)
    query, key, value = even(query), even(key), even(value)
    launch = _launch("forward", query, key, starts)
    with torch.cuda.device_of(query):
        programs.forward[(batch * heads, triton.cdiv(time, launch["block_m"]))](
            query, key, value, gate, pointer(starts, lse), y, o2, lse, time, heads, *strides_of(query, key, value),
            query.shape[3] ** -0.5, keep=keep, **launch,
        )  # fmt: skip
    return y, o2, lse


def fused_backward(dy, query, key, value, gate, starts, y, o2, lse):
    """The gradients of query, key, value and gate."""
    (batch, time, heads, width), dy = dy.shape, dy.contiguous()
    query, key, value = even(query), even(key), even(value)
    dquery, dkey, dvalue = (part.new_empty(part.shape) for part in (query, key, value))
    numbers = lse.new_empty((batch, heads, 4, line_of(time)))
    dgate = torch.empty_like(gate)
    strides, where, scale = strides_of(query, key, value), pointer(starts, lse), width**-0.5
    ends = where if starts is None else ends_of(starts)
    with torch.cuda.device_of(query):
        tile = max(16, PREPARE_VALUES // block_of(width))
        programs.prepare[(batch * heads, triton.cdiv(time, tile))](
            dy, y, o2, gate, lse, numbers, dgate, time, heads, scale, D=width, block_d=block_of(width), tile=tile,
            num_warps=8,
        )  # fmt: skip
        one_pass = _one_pass(query)
        launch = _launch("one_pass" if one_pass else "key_gradients", query, key, starts)
        sums = torch.zeros(query.shape, dtype=torch.float32, device=query.device) if one_pass else dquery
        programs.key_gradients[(batch * key.shape[2], triton.cdiv(time, launch["block_n"]))](
            query, key, value, gate, where, ends, dy, numbers, dkey, dvalue, sums, time, heads, *strides, scale,
            queries=one_pass, **launch,
        )  # fmt: skip
        if one_pass:
            return dquery.copy_(sums), dkey, dvalue, dgate
        launch = _launch("query_gradients", query, key, starts)
        programs.query_gradients[(batch * heads, triton.cdiv(time, launch["block_m"]))](
            query, key, value, gate, where, dy, numbers, dquery, time, heads, *strides, scale, **launch
        )
    return dquery, dkey, dvalue, dgate


def _one_pass(query: Tensor) -> bool:
    """Whether `key_gradients` is to add up dQ too: what the device's table says, where equal bits are not asked for."""
    if query.dtype == torch.float32 or torch.are_deterministic_algorithms_enabled():
        return False
    most = max(64, block_of(query.shape[3]))
    return tiles_of("diff_attention_v2", "one_pass", most, NEVER).block_m > 0


def _launch(program: str, query: Tensor, key: Tensor, starts: Tensor | None) -> dict[str, int]:
    width, block_d = query.shape[3], block_of(query.shape[3])
    most = max(64, block_d)
    if query.dtype == torch.float32:
        tiles = FLOAT32_TILES[program][most]
    else:
        tiles = tiles_of("diff_attention_v2", program, most, TILES[program][most])
    tiles = tiles.within(query.shape[1])
    shape = {"group": query.shape[2] // 2 // key.shape[2], "D": width, "block_d": block_d}
    return tiles._asdict() | shape | {"packed": starts is not None}


def fits(query: Tensor, *rest) -> bool:
    """Whether the programs can do it; `eager` does the rest."""
    return query.numel() > 0 and query.shape[3] <= LARGEST_HEAD.get(query.dtype, 0)


def prepared(query, key, value, gate, starts) -> tuple:
    """The arguments as `fused_forward` takes them."""
    starts = None if starts is None else starts.int().expand(query.shape[:2]).contiguous()
    return query, key.to(query.dtype), value.to(query.dtype), gate.contiguous(), starts


def diff_attention_v2(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, starts: Tensor | None = None) -> Tensor:
    """See `reference.diff_attention_v2`. Key and value count in the dtype of query; `eager` takes float64, and heads
    wider than `LARGEST_HEAD`."""
    if not fits(query):
        return eager(query, key, value, gate, starts)
    return DiffAttentionV2.apply(*prepared(query, key, value, gate, starts))
