"""Sampling for CUDA: a program reads the logits of one row, once, and keeps nothing else in memory.

The normaliser is summed as the logits come in, scaled by the highest so far (Milakov, Gimelshein 2018, arXiv
1805.02867). Every lane remembers the best of its tokens; lanes are compared once, at the end.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import libdevice

from nlrl.kernels.sample.reference import FINAL_1, FINAL_2, GAMMA, MIX_1, MIX_2, TOKEN
from nlrl.kernels.sample.reference import sample as reference

LOGITS_AT_ONCE = 4096
_GAMMA, _MIX_1, _MIX_2 = tl.constexpr(GAMMA), tl.constexpr(MIX_1), tl.constexpr(MIX_2)
_TOKEN, _FINAL_1, _FINAL_2 = tl.constexpr(TOKEN), tl.constexpr(FINAL_1), tl.constexpr(FINAL_2)
_LOWEST = tl.constexpr(-3.0e38)
"""Below every logit, yet finite: the first rescaling must not be infinity minus infinity."""


@triton.jit
def _row_keys(seed, step):
    """See `reference`; words without sign wrap and shift as they should."""
    x = seed.to(tl.uint64) + (step.to(tl.uint64) + 1) * _GAMMA
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    x = x ^ (x >> 31)
    return (x >> 32).to(tl.uint32), x.to(tl.uint32)


@triton.jit
def _gumbel(high, low, token, fast: tl.constexpr):
    # The noise of `reference`. fast: by the approximate logarithm of NVIDIA's processors, to 4e-6; its error does not
    # shrink with the result, so near 1, where the largest noise comes from, a series takes its place.
    x = token.to(tl.uint32) * _TOKEN ^ high
    x = (x ^ (x >> 16)) * _FINAL_1 + low
    x = (x ^ (x >> 16)) * _FINAL_1
    x = (x ^ (x >> 13)) * _FINAL_2
    x = (x ^ (x >> 16)) & 0x7FFFFF
    uniform = (x.to(tl.float32) + 0.5) * 0.00000011920928955078125
    if fast:
        rest = ((0x7FFFFF - x).to(tl.float32) + 0.5) * 0.00000011920928955078125
        series = rest * (1 + rest * (0.5 + rest * (0.33333333 + rest * (0.25 + rest * 0.2))))
        y = tl.where(rest < 0.0625, series, -0.69314718 * libdevice.fast_log2f(uniform))
        return -0.69314718 * libdevice.fast_log2f(y)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _sample(
    logits_ptr, seeds_ptr, steps_ptr, temperature_ptr, mask_ptr, tokens_ptr, logprobs_ptr, vocabulary, logits_row,
    mask_row, masked: tl.constexpr, block: tl.constexpr, fast: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    high, low = _row_keys(tl.load(seeds_ptr + row), tl.load(steps_ptr + row))
    temperature = tl.load(temperature_ptr + row)
    lane = tl.arange(0, block)
    peak = tl.full((), _LOWEST, tl.float32)
    total = tl.zeros((block,), tl.float32)
    best = tl.full((block,), float("-inf"), tl.float32)
    choice = tl.zeros((block,), tl.int32)
    for first in range(0, vocabulary, block):
        token = first + lane
        real = token < vocabulary
        logit = tl.load(logits_ptr + row * logits_row + token, mask=real, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(logit, 0))
        total = total * tl.exp(peak - higher) + tl.exp(logit - higher)
        peak = higher
        score = logit
        if temperature > 0:
            score += temperature * _gumbel(high, low, token, fast)
        if masked:
            word = tl.load(mask_ptr + row * mask_row + token // 32, mask=real, other=0)
            score = tl.where((word >> (token % 32)) & 1 != 0, score, float("-inf"))
        better = score > best
        best = tl.where(better, score, best)
        choice = tl.where(better, token, choice)
    chosen = tl.min(tl.where(best == tl.max(best, 0), choice, vocabulary - 1), 0)
    logit = tl.load(logits_ptr + row * logits_row + chosen).to(tl.float32)
    tl.store(tokens_ptr + row, chosen.to(tl.int64))
    tl.store(logprobs_ptr + row, logit - peak - tl.log(tl.sum(total, 0)))


def sample(
    logits: Tensor, seeds: Tensor, steps: Tensor, temperature: Tensor, bitmask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `reference.sample`, which also does float64."""
    if logits.dtype == torch.float64:
        return reference(logits, seeds, steps, temperature, bitmask)
    (rows, vocabulary), masked = logits.shape, bitmask is not None
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    mask = logits if bitmask is None else bitmask if bitmask.stride(-1) == 1 else bitmask.contiguous()
    columns = (seeds.contiguous(), steps.expand(rows).contiguous(), temperature.float().contiguous())
    tokens, logprobs = seeds.new_empty(rows), logits.new_empty(rows, dtype=torch.float32)
    block = min(LOGITS_AT_ONCE, triton.next_power_of_2(vocabulary))
    if rows:
        with torch.cuda.device_of(logits):
            _sample[(rows,)](
                logits, *columns, mask, tokens, logprobs, vocabulary, logits.stride(0), mask.stride(0), masked, block,
                logits.is_cuda, num_warps=max(4, block // 256),
            )  # fmt: skip
    return tokens, logprobs
