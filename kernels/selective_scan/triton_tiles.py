"""Which threads hold which states.

A compiler lays a tensor `(channels, N)` out as it lies in memory: four threads share a channel, and each holds four of
them. Sums over states then go through several threads, and what a channel brings once a token (x, step size, gate), and
its output, change places through shared memory, with a barrier each, on the only path there is: a token waits for the
one before. Joined from parts that one thread loads, the tensor stays with as few threads as fill a warp, and so does
everything that is computed from it.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pieces(pointer, c, part, channels, states: tl.constexpr, first: tl.constexpr, count: tl.constexpr,
            step: tl.constexpr):  # fmt: skip
    """Values first, first + step, ..., count of them, of each part of each channel, `(block_d, parts, 2, ..., 2)`."""
    if count == 1:
        n = part[None, :] + first
        return tl.load(pointer + c[:, None] * states + n, mask=(c < channels)[:, None] & (n < states), other=0.0)
    else:
        half: tl.constexpr = count // 2
        low = _pieces(pointer, c, part, channels, states, first, half, step * 2)
        high = _pieces(pointer, c, part, channels, states, first + step, half, step * 2)
        return tl.join(low, high)


@triton.jit
def in_few_threads(pointer, c, channels, states: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
                   threads: tl.constexpr):  # fmt: skip
    """A tensor `(channels, N)` of which so many threads hold a channel."""
    count: tl.constexpr = block_n // threads
    part = tl.arange(0, threads) * count
    return tl.reshape(_pieces(pointer, c, part, channels, states, 0, count, 1), (block_d, block_n))
