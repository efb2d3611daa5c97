"""Drawing from hidden states for CUDA, in one launch.

A program takes some rows and some tiles of the vocabulary: it multiplies a tile by tensor cores, and while the logits
are in registers adds noise, forbids tokens, and keeps of each row the best score, its token, and the logarithm of
the sum of exponentials. The last program of a block of rows to be done, by a count in memory, compares
what all of them have found. Programs of the same tile and other rows run side by side, so the matrix comes from memory
once. Of equal scores the lowest token wins and sums are added in the order of tiles, whoever is last.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.counters import counter
from nlrl.kernels.launches import choose
from nlrl.kernels.sample.triton import _LOWEST, _gumbel, _row_keys
from nlrl.kernels.sample_head.reference import sample_head as reference
from nlrl.kernels.sample_head.two_launches import sample_head as two_launches

_NOBODY = tl.constexpr(2**31 - 1)
"""A token that loses against every other of the same score."""


class Tiles(NamedTuple):
    """A launch for so many rows."""

    most_rows: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    per_processor: int
    """Programs that a processor holds at once, by registers and shared memory."""
    maxnreg: int = 0
    """Registers of a thread at most, where the compiler would take so many that only one program fits; or 0."""


TILES = (
    Tiles(16, 16, 128, 4, 4, 2),
    Tiles(32, 32, 128, 4, 4, 2),
    Tiles(64, 64, 128, 4, 4, 2),
    Tiles(2048, 128, 128, 8, 3, 2, 128),
)
"""The first that has room. Up to 64 rows the matrix is read at the speed of memory, so many small loads must be under
way; more rows have products to do, and noise to make for every logit: of two programs a processor one multiplies
while the other draws."""
_FEW = [(16, 128, 4, 4, 2), (16, 64, 4, 5, 4), (16, 128, 4, 5, 2), (16, 64, 4, 6, 3), (16, 128, 8, 4, 2)]
_MANY = [
    (128, 128, 8, 3, 2, 128), (128, 128, 8, 4, 1), (128, 128, 8, 3, 1), (128, 256, 8, 3, 1), (256, 128, 8, 3, 1),
    (128, 64, 8, 3, 2, 128), (128, 64, 4, 3, 2), (64, 128, 4, 4, 2), (64, 64, 4, 4, 3), (256, 64, 8, 3, 1),
]  # fmt: skip
CANDIDATES = {
    "rows/16": _FEW,
    "rows/32": [(32, *rest) for _, *rest in _FEW] + [(64, 128, 4, 4, 2)],
    "rows/2048": _MANY,
}
"""Tiles without `most_rows`, which is the key."""
BLOCK_BYTES = 128
"""Of a row of a tile: 64 numbers of two bytes."""
RESULTS_AT_ONCE = 16
"""Of other programs that a thread of the last one holds; each turn waits for memory once."""
WITHOUT_GPU = 1
"""Processors in the interpreter, so that programs have several tiles."""


@triton.jit
def _product(
    hidden_ptr, matrix_ptr, row, token, width, hidden_row, matrix_row, block_m: tl.constexpr, block_n: tl.constexpr,
    block_k: tl.constexpr, even: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """`(block_m, block_n)`: rows times tokens, in float32."""
    k = tl.arange(0, block_k)
    hidden_ptr += row.to(tl.int64)[:, None] * hidden_row + k[None, :]
    matrix_ptr += token.to(tl.int64)[None, :] * matrix_row + k[:, None]
    total = tl.zeros((block_m, block_n), tl.float32)
    for start in range(0, width, block_k):
        if even:
            h, m = tl.load(hidden_ptr), tl.load(matrix_ptr)
        else:
            h = tl.load(hidden_ptr, mask=(start + k < width)[None, :], other=0.0)
            m = tl.load(matrix_ptr, mask=(start + k < width)[:, None], other=0.0)
        total = tl.dot(h, m, total, input_precision="ieee" if wide else "tf32")
        hidden_ptr += block_k
        matrix_ptr += block_k
    return total


@triton.jit
def _allowed(mask_ptr, row, mask_row, first, vocabulary, block_n: tl.constexpr):
    """Whether each row may draw each token of a tile. A word of 32 bits is loaded once, not once a token."""
    lane = tl.arange(0, block_n)
    word = (row[:, None] + lane[None, :]) * 0
    for i in tl.static_range(block_n // 32):
        real = first + 32 * i + 0 * row < vocabulary  # a mask of one value has another type in the interpreter
        part = tl.load(mask_ptr + row.to(tl.int64) * mask_row + first // 32 + i, mask=real, other=0)
        word = tl.where((lane // 32 == i)[None, :], part[:, None], word)
    return (word >> (lane % 32)[None, :]) & 1 != 0


@triton.jit
def _better(score, token, best, choice):
    return (score > best) | ((score == best) & (token < choice))


@triton.jit
def _finish(
    best_ptr, choice_ptr, sum_ptr, first_ptr, tokens_ptr, logprobs_ptr, row, high, low, temperature, rows, splits,
    vocabulary, masked: tl.constexpr, fast: tl.constexpr, block_m: tl.constexpr, block_s: tl.constexpr,
):  # fmt: skip
    best, choice = tl.full((block_m,), float("-inf"), tl.float32), tl.full((block_m,), _NOBODY, tl.int32)
    peak, total = tl.full((block_m,), _LOWEST, tl.float32), tl.zeros((block_m,), tl.float32)
    for first in range(0, splits, block_s):
        split = first + tl.arange(0, block_s)
        inside = (split < splits)[:, None] & (row < rows)[None, :]
        at = split[:, None] * rows + row[None, :]
        score = tl.load(best_ptr + at, mask=inside, other=float("-inf"), cache_modifier=".cg")
        token = tl.load(choice_ptr + at, mask=inside, other=_NOBODY, cache_modifier=".cg")
        part = tl.load(sum_ptr + at, mask=inside, other=float("-inf"), cache_modifier=".cg")
        top = tl.max(score, 0)
        lowest = tl.min(tl.where(score == top[None, :], token, _NOBODY), 0)
        wins = _better(top, lowest, best, choice)
        best, choice = tl.where(wins, top, best), tl.where(wins, lowest, choice)
        higher = tl.maximum(peak, tl.max(part, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(part - higher[None, :]), 0)
        peak = higher
    choice = tl.minimum(choice, vocabulary - 1)  # of a row of NaN nobody is the best
    logit = best - temperature * _gumbel(high, low, choice, fast)
    if masked:
        nothing = (row < rows) & (best == float("-inf"))
        logit = tl.where(nothing, tl.load(first_ptr + row, mask=nothing, other=0.0, cache_modifier=".cg"), logit)
    tl.store(tokens_ptr + row, choice.to(tl.int64), mask=row < rows)
    tl.store(logprobs_ptr + row, logit - peak - tl.log(total), mask=row < rows)


@triton.jit
def _sample_head(
    hidden_ptr, matrix_ptr, scale_ptr, seeds_ptr, steps_ptr, temperature_ptr, mask_ptr, best_ptr, choice_ptr, sum_ptr,
    first_ptr, count_ptr, tokens_ptr, logprobs_ptr, rows, width, vocabulary, splits, hidden_row, matrix_row, mask_row,
    has_scale: tl.constexpr, masked: tl.constexpr, even: tl.constexpr, wide: tl.constexpr, fast: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, block_s: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(rows, block_m)
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    row = block * block_m + tl.arange(0, block_m)
    known = tl.minimum(row, rows - 1)  # rows and tokens that do not exist read the last one's
    high, low = _row_keys(tl.load(seeds_ptr + known), tl.load(steps_ptr + known))
    temperature = tl.load(temperature_ptr + known)
    best, choice = tl.full((block_m,), float("-inf"), tl.float32), tl.full((block_m,), _NOBODY, tl.int32)
    peak, total = tl.full((block_m,), _LOWEST, tl.float32), tl.zeros((block_m,), tl.float32)
    for tile in range(split, tl.cdiv(vocabulary, block_n), splits):
        token = tile * block_n + tl.arange(0, block_n)
        column = tl.minimum(token, vocabulary - 1)
        logit = _product(hidden_ptr, matrix_ptr, known, column, width, hidden_row, matrix_row, block_m, block_n,
                         block_k, even, wide)  # fmt: skip
        if has_scale:
            logit *= tl.load(scale_ptr + column).to(tl.float32)[None, :]
        logit = tl.where((token < vocabulary)[None, :], logit, float("-inf"))
        higher = tl.maximum(peak, tl.max(logit, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(logit - higher[:, None]), 1)
        peak = higher
        if masked and tile == 0:  # what a row that allows nothing draws
            tl.store(first_ptr + row, tl.sum(tl.where((token == 0)[None, :], logit, 0.0), 1), mask=row < rows)
        if tl.max(temperature, 0) > 0:
            logit += temperature[:, None] * _gumbel(high[:, None], low[:, None], token[None, :], fast)
        if masked:
            may = _allowed(mask_ptr, known, mask_row, tile * block_n, vocabulary, block_n)
            logit = tl.where(may, logit, float("-inf"))
        top = tl.max(logit, 1)
        lowest = tl.min(tl.where(logit == top[:, None], token[None, :], _NOBODY), 1)
        wins = _better(top, lowest, best, choice)
        best, choice = tl.where(wins, top, best), tl.where(wins, lowest, choice)
    at = split * rows + row
    tl.store(best_ptr + at, best, mask=row < rows)
    tl.store(choice_ptr + at, choice, mask=row < rows)
    tl.store(sum_ptr + at, peak + tl.log(total), mask=row < rows)
    tl.debug_barrier()  # all threads have written before one says so
    if tl.atomic_add(count_ptr + block, 1, sem="acq_rel") == splits - 1:
        tl.store(count_ptr + block, 0)  # for the next launch
        _finish(best_ptr, choice_ptr, sum_ptr, first_ptr, tokens_ptr, logprobs_ptr, row, high, low, temperature, rows,
                splits, vocabulary, masked, fast, block_m, block_s)  # fmt: skip


def sample_head(
    hidden: Tensor,
    matrix: Tensor,
    seeds: Tensor,
    steps: Tensor,
    temperature: Tensor,
    bitmask: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.sample_head`, which also does float64. Very many rows are drawn in two launches: their logits are
    a small part of what a product of that size moves."""
    rows, vocabulary = len(hidden), len(matrix)
    if hidden.dtype == torch.float64 or hidden.dtype != matrix.dtype or not rows:
        return reference(hidden, matrix, seeds, steps, temperature, bitmask, scale)
    if rows > TILES[-1].most_rows:
        return two_launches(hidden, matrix, seeds, steps, temperature, bitmask, scale)
    hidden, matrix = (part if part.stride(-1) == 1 else part.contiguous() for part in (hidden, matrix))
    mask = hidden if bitmask is None else bitmask if bitmask.stride(-1) == 1 else bitmask.contiguous()
    factors = matrix if scale is None else scale.contiguous()
    columns = (seeds.contiguous(), steps.expand(rows).contiguous(), temperature.float().contiguous())
    launch, blocks, splits = _launch(hidden, vocabulary)
    best, sums = torch.empty((2, splits, rows), dtype=torch.float32, device=hidden.device)
    choices = torch.empty((splits, rows), dtype=torch.int32, device=hidden.device)
    first, tokens, logprobs = best.new_empty(rows), seeds.new_empty(rows), best.new_empty(rows)
    with torch.cuda.device_of(hidden):
        _sample_head[(blocks * splits,)](
            hidden, matrix, factors, *columns, mask, best, choices, sums, first, counter(blocks, hidden.device), tokens,
            logprobs, rows, hidden.shape[1], vocabulary, splits, hidden.stride(0), matrix.stride(0), mask.stride(0),
            has_scale=scale is not None, masked=bitmask is not None, wide=hidden.dtype == torch.float32,
            fast=hidden.is_cuda, **launch,
        )  # fmt: skip
    return tokens, logprobs


def _launch(hidden: Tensor, vocabulary: int) -> tuple[dict[str, int], int, int]:
    """Sizes of tiles, blocks of rows, and programs that share a block's vocabulary: as many as fill the device once,
    and no more than have equally many tiles."""
    rows, width = hidden.shape
    usual = next(tiles for tiles in TILES if rows <= tiles.most_rows)
    tiles = Tiles(usual.most_rows, *choose("sample_head", f"rows/{usual.most_rows}", tuple(usual)[1:]))
    blocks, processors = triton.cdiv(rows, tiles.block_m), _processors(hidden.device)
    block_n = tiles.block_n
    while block_n > 32 and triton.cdiv(vocabulary, block_n) * blocks < processors:
        block_n //= 2
    of_block = triton.cdiv(vocabulary, block_n)
    most = max(1, processors * tiles.per_processor // blocks)
    splits = triton.cdiv(of_block, triton.cdiv(of_block, most))
    block_k = min(BLOCK_BYTES // hidden.element_size(), max(16, triton.next_power_of_2(width)))
    launch = {
        "block_m": tiles.block_m, "block_n": block_n, "block_k": block_k, "even": width % block_k == 0,
        "block_s": RESULTS_AT_ONCE * 32 * tiles.num_warps // tiles.block_m, "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    } | ({"maxnreg": tiles.maxnreg} if tiles.maxnreg else {})  # fmt: skip
    return launch, blocks, splits


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else WITHOUT_GPU
