"""Attention of several new tokens a row over older text for CUDA, one launch.

1. The rows of a tile are tokens, and of each token the query heads that share a key head: few new tokens fill a tile
   too, and a tile's keys are read once for all of these heads.
2. A program reads the prefix, older text from its pages or ring, and the new tokens up to its own. How much older text
   a row has, and how many new tokens, it reads on the device: nobody waits for numbers, and no other text is touched.
3. Programs that read the same older text run at the same time, so that all but one have it out of the cache.
4. Masks are applied in the first tile of older text, at the edge of a window and on the diagonal; never between them.
"""

# pyright: reportMissingImports=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

from nlrl.kernels.attention_launch import Tiles, block_of, candidates, even, pointer, strides_of, tiles_of
from nlrl.kernels.extend_attention.eager import extend_attention as eager
from nlrl.kernels.extend_attention.reference import check
from nlrl.kernels.extend_attention.triton_programs import extend

LARGEST = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 64}
"""Width of queries and values together is at most 1.5 times this; wider tiles do not fit into registers."""
# Sums of 128 x 128 float32 are 64 registers a thread with 8 warps, scores of 128 x 64 another 32. Three stages, so that
# pages are looked up ahead of their keys: with two, every tile waits for its page numbers.
TILES = {192: Tiles(128, 64, 8, 3), 256: Tiles(128, 64, 8, 3), 384: Tiles(128, 32, 8, 3)}
"""Width of queries and values together, at most -> launch, where values have 2 bytes."""
CANDIDATES = candidates(
    forward_192="128x64:8:3 128x64:8:2 64x64:4:3 128x32:8:3 64x32:4:3",
    forward_256="128x64:8:3 128x64:8:2 128x32:8:3 64x32:4:2",
    forward_384="128x32:8:3 128x64:8:2 64x32:4:3",
)
"""Compiled for a Hopper, none spills a register."""
FLOAT32_TILES = Tiles(32, 32, 8, 1)
"""float32 has twice the bytes, and a product needs three pairs of factors."""
FEW = (Tiles(16, 64, 4, 3), Tiles(64, 32, 4, 3))
"""For calls with no more rows than such a tile: tensor cores take 16 at least, and four warps 64 at once."""


def extend_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    start: Tensor,
    table: Tensor | None = None,
    reach: int | None = None,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
) -> Tensor:
    """See `reference.extend_attention`; `eager` takes float64, and widths beyond `LARGEST`. Vectors of keys and values
    must be contiguous."""
    extras = table, reach, prefix_key, prefix_value
    if not fits(query, keys, values):
        return eager(query, key, value, keys, values, positions, start, *extras)
    check(query, key, value, keys, values, table)
    if keys.stride(-1) != 1 or values.stride(-1) != 1 or keys.dtype != values.dtype:
        raise ValueError("keys and values must have one dtype and contiguous vectors")
    (batch, time, heads), kv_heads = query.shape[:3], key.shape[2]
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    query, key, value = (even(part.to(keys.dtype)) for part in (query, key, value))
    first = [pointer(part if part is None else part.to(keys.dtype).contiguous(), out) for part in extras[2:]]
    where = pointer(table if table is None else even(table), positions)
    group, key_heads = heads // kv_heads, kv_heads // value.shape[2]
    launch = _launch(query, value, time * group)
    with torch.cuda.device_of(query):
        extend[(triton.cdiv(time * group, launch["block_m"]), batch * kv_heads)](
            query, key, value, keys, values, *first, positions.contiguous(), start.contiguous(), where, out,
            time, where.stride(0), keys.shape[2], 0 if reach is None else reach,
            0 if prefix_key is None else prefix_key.shape[1], *strides_of(query, key, value), *keys.stride()[:3],
            *values.stride()[:3], query.shape[3] ** -0.5, kv_heads=kv_heads, group=group, key_heads=key_heads,
            paged=table is not None, near=reach is not None, behind=prefix_key is not None, **launch,
        )  # fmt: skip
    return out


def fits(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the program can do it; `eager` does the rest."""
    width = block_of(query.shape[3]) + block_of(values.shape[3])
    return query.numel() > 0 and 2 * width <= 3 * LARGEST.get(keys.dtype, 0)


def _launch(query: Tensor, value: Tensor, rows: int) -> dict[str, int]:
    """Args: rows: of all tiles of a key head, one for each token and head."""
    sizes = {"D": query.shape[3], "block_d": block_of(query.shape[3])}
    sizes |= {"V": value.shape[3], "block_v": block_of(value.shape[3])}
    if query.dtype == torch.float32:
        tiles = FLOAT32_TILES
    else:
        most = min(each for each in TILES if each >= sizes["block_d"] + sizes["block_v"])
        tiles = tiles_of("extend_attention", "forward", most, TILES[most])
        tiles = next((few for few in FEW if rows <= few.block_m), tiles)
    return tiles._asdict() | sizes
