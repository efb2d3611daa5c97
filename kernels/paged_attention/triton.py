"""Attention of one new token a row for CUDA, one launch: a program reads keys and values of one value head of one row,
once.

1. All query heads that read a value head are the rows of one matrix product, filled up to 16. Where several key heads
   share a value head, each has its product, with the query heads of the others set to zero; their sum has every score.
2. A long row is divided over several programs (flash decoding). How many are launched depends on shapes alone, so that
   a CUDA graph holds for rows of every length; those without tokens leave at once. The last of a row's programs to be
   done, by a count in memory, merges what all have found.
3. The new token never makes a round through memory: the first program of a row starts its softmax with it.
4. What is read lies in pages (here) or in rings (`ring_attention`); a prefix that all rows share comes before it, and
   from the second row on out of the cache.
"""

# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from nlrl.kernels.attention_launch import even, pointer
from nlrl.kernels.counters import counter
from nlrl.kernels.paged_attention.reference import PAGE, HeadGroups
from nlrl.kernels.paged_attention.reference import paged_attention as reference
from nlrl.kernels.paged_attention.triton_programs import attend_one

PROGRAMS_PER_PROCESSOR = 4
"""Wanted: enough to hide memory latency."""
SHORT_PART, LONG_PART = 128, 1024
"""Tokens that are worth a program while processors are idle, and while all are busy."""
MOST_PARTS = 32
BLOCK_BYTES = 16384
"""Of keys or values a program holds at a time."""
MERGED_NUMBERS = 8192
"""Of parts that the last program of a row holds at a time; each turn waits for memory once."""


class Extras(NamedTuple):
    """What a call may bring besides."""

    prefix_key: Tensor | None = None
    prefix_value: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None


class Ring(NamedTuple):
    """For keys and values in rings, not in pages."""

    reach: int
    writes: bool


def paged_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    positions: Tensor,
    scale: float | None = None,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """See `reference.paged_attention`, which also does float64. Vectors of keys and values must be contiguous."""
    extras = Extras(prefix_key, prefix_value, cos, sin)
    if keys.dtype == torch.float64 or not query.shape[0]:
        return reference(query, key, value, keys, values, table, positions, scale, *extras)
    groups = HeadGroups.of(query, keys, values)
    return attend(groups, query, key, value, keys, values, even(table), positions, scale, extras)


def attend(
    groups: HeadGroups,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    keys: Tensor,
    values: Tensor,
    table: Tensor | None,
    positions: Tensor,
    scale: float | None,
    extras: Extras,
    ring: Ring | None = None,
) -> Tensor:
    """Launches the program for pages with a table, or for rings."""
    if keys.stride(-1) != 1 or values.stride(-1) != 1 or keys.dtype != values.dtype:
        raise ValueError("keys and values must have one dtype and contiguous vectors")
    (rows, heads, key_dim), value_dim = query.shape, values.shape[-1]
    prefix = 0 if extras.prefix_key is None else extras.prefix_key.shape[1]
    capacity = prefix + (keys.shape[2] if table is None else PAGE * table.shape[1])
    parts, shortest = _division(rows * groups.v_heads, capacity, _programs(query.device))
    out = query.new_empty((rows, heads, value_dim))
    y = query.new_empty((rows, heads, parts, value_dim), dtype=torch.float32) if parts > 1 else out
    weight = query.new_empty((rows, heads, parts), dtype=torch.float32) if parts > 1 else out
    given = key is not None and value is not None
    query = even(query)
    key, value = (even(key), even(value)) if given else (query, query)
    first = [even(pointer(part, out)) for part in extras[:2]]
    cos, sin = (pointer(part, out) if part is None else _rows_of(part, rows) for part in extras[2:])
    launch = _launch(groups, key_dim, value_dim, keys.element_size(), parts)
    with torch.cuda.device_of(query):
        attend_one[(rows, groups.v_heads, parts)](
            query, key, value, keys, values, *first, pointer(table, positions), positions.contiguous(), cos, sin, y,
            weight, counter(rows * groups.v_heads, query.device) if parts > 1 else positions, out,
            *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *keys.stride()[:3], *values.stride()[:3],
            *first[0].stride()[:2], *first[1].stride()[:2], 0 if table is None else table.stride(0), cos.stride(0),
            key_dim**-0.5 if scale is None else scale, shortest, keys.shape[2], 0 if ring is None else ring.reach,
            prefix, key_dim, value_dim, groups.query_heads, groups.key_heads, ring is not None, given,
            given if ring is None else ring.writes, prefix > 0, extras.cos is not None, parts, **launch,
        )  # fmt: skip
    return out


def _rows_of(angles: Tensor, rows: int) -> Tensor:
    """`(rows, key_dim / 2)` float32."""
    return even(angles.float().expand(rows, 1, 1, -1)[:, 0, 0])


def _division(programs: int, capacity: int, wanted: int) -> tuple[int, int]:
    """Parts a row is launched with and the fewest tokens of one, for rows of up to `capacity` tokens."""
    shortest = SHORT_PART if 2 * programs <= wanted else LONG_PART
    idle, long = min(wanted // programs, triton.cdiv(capacity, SHORT_PART)), capacity // LONG_PART
    return max(1, min(MOST_PARTS, max(idle, long))), shortest


@cache
def _programs(device: torch.device) -> int:
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return PROGRAMS_PER_PROCESSOR * processors


def _launch(groups: HeadGroups, key_dim: int, value_dim: int, size: int, parts: int) -> dict[str, int]:
    key_block, value_block = (max(16, triton.next_power_of_2(dim)) for dim in (key_dim, value_dim))
    block = BLOCK_BYTES // (size * max(key_block * groups.key_heads, value_block))
    if size == 4:  # products without tensor cores hold their arguments in registers
        block //= 2
    tile = max(16, triton.next_power_of_2(groups.query_heads * groups.key_heads))
    return {
        "tile": tile,
        "key_block": key_block,
        "value_block": value_block,
        "block": min(64, max(16, block)),
        "block_parts": triton.next_power_of_2(parts),
        "parts_at_once": max(1, min(triton.next_power_of_2(parts), MERGED_NUMBERS // (tile * value_block))),
        "num_warps": 4,
        "num_stages": 3,
    }
