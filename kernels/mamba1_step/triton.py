"""One token of a Mamba-1 mixer for CUDA, in two or three launches: every channel's step size needs all channels'
convolution.

1. `project` convolves a slice of the channels of 16 rows at a time, writes u and the new window, and multiplies u by
   its slice of X. The last program of a tile to be done, by a count in memory, adds the slices up, in their order
   whoever is last, so equal inputs give equal bits, and divides d, B and C by their root mean squares.
2. `step_sizes`, a small matrix product by W, or else a part of 3.
3. `advance` streams: it updates the states, adds D and multiplies by the gate.

With `pdl` a launch begins while the one before it still runs (programmatic dependent launch) and asks for its states,
which are most bytes of all, so the others' time is hidden behind the memory's. Beyond what `costs` counts, the slices
are written and read, 4 (rank + 2 N) bytes a row and slice, and u and the step sizes, 6 bytes a channel each way.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

from nlrl.kernels.counters import counter
from nlrl.kernels.launches import choose
from nlrl.kernels.mamba1_step import triton_programs as programs
from nlrl.kernels.mamba1_step.eager import mamba1_step as eager

LAUNCH = {
    "slices/few": (128, 128, 8, 1), "slices": (128, 128, 8, 1),
    "step_sizes/few": (32, 4), "step_sizes": (64, 4),
    "stream/few": (1, 32, 4, 128, 1, 0), "stream": (8, 32, 4, 128, 1, 0),
}  # fmt: skip
"""Of many rows, and of at most `ROWS` (few). slices: channels of a program of `project`, so many of them at once,
warps, stages; step_sizes: channels, warps; stream: rows and channels of a program of `advance`, warps, registers of a
thread, whether launches overlap (`pdl`), and whether it makes its step sizes itself."""
_SLICES = [(128, 128, 8, 1), (256, 128, 8, 1), (256, 64, 8, 3), (64, 64, 8, 1), (128, 64, 8, 2), (256, 64, 4, 3)]
CANDIDATES = {
    "slices/few": _SLICES[:4],
    "slices": _SLICES,
    "step_sizes/few": [(32, 4), (16, 4), (64, 4)],
    "step_sizes": [(32, 4), (64, 4), (128, 8), (64, 8)],
    "stream/few": [
        (1, 32, 4, 128, 1, 0), (1, 32, 4, 128, 0, 0), (1, 64, 8, 128, 1, 0), (1, 64, 4, 128, 1, 0),
        (1, 128, 8, 128, 1, 0), (16, 16, 4, 168, 1, 1), (16, 8, 4, 168, 1, 1),
    ],
    "stream": [
        (8, 32, 4, 128, 1, 0), (8, 32, 4, 96, 1, 0), (4, 32, 4, 128, 1, 0), (4, 32, 4, 80, 1, 0),
        (4, 64, 4, 128, 1, 0), (2, 64, 4, 80, 1, 0), (2, 128, 4, 96, 1, 0), (1, 128, 4, 64, 1, 0),
        (1, 64, 4, 48, 1, 0), (8, 64, 8, 128, 1, 0), (16, 32, 4, 168, 1, 0), (8, 16, 2, 128, 1, 0),
        (16, 16, 4, 168, 1, 1), (16, 32, 8, 128, 1, 1), (16, 32, 4, 255, 1, 1), (8, 32, 4, 128, 0, 0),
        (16, 16, 4, 168, 0, 1),
    ],
}  # fmt: skip
FIRST_WITH_OVERLAP = 9
"""Compute capability."""
ROWS = 16
"""Of a program: the least that tensor cores take."""
AT_ONCE = 5
"""Slices that are on their way to the program that adds them up."""
MOST_BYTES = 1 << 16
"""Of X in shared memory at once."""
MOST_STATES, MOST_RANK = 64, 256


def _chosen(key: str, rows: int) -> tuple[int, ...]:
    key += "/few" if rows <= ROWS else ""
    return tuple(choose("mamba1_step", key, LAUNCH[key]))


def mamba1_step(
    x: Tensor,
    gate: Tensor,
    window: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_norm: Tensor | None,
    B_norm: Tensor | None,
    C_norm: Tensor | None,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    positions: Tensor,
    eps: float = 1e-6,
    first_window: Tensor | None = None,
    first_state: Tensor | None = None,
) -> Tensor:
    """See `reference.mamba1_step`; `eager` takes float64, large states and ranks, and windows with gaps."""
    (rows, channels, states), rank, taps = state.shape, dt_proj.shape[1], conv_weight.shape[1]
    weights = (conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, dt_bias, A_log, D)
    positions = positions.contiguous()  # a column of what all rows share has a stride of 0
    firsts = [None if first is None else first.contiguous() for first in (first_window, first_state)]
    even = window.is_contiguous() and state.is_contiguous() and x.stride(-1) == gate.stride(-1) == 1 and taps > 1
    even = even and (dt_norm is None) == (B_norm is None) == (C_norm is None)
    if x.dtype == torch.float64 or not even or not rows or states > MOST_STATES or rank > MOST_RANK:
        return eager(x, gate, window, state, *weights, positions, eps, *firsts)
    block_m, block_d, warps, registers, overlaps, own_steps = _chosen("stream", rows)
    sizes = {"rank": rank, "states": states, "pdl": bool(overlaps) and _can_overlap(x.device)}
    after = {"launch_pdl": True} if sizes["pdl"] else {}
    norms = [D if norm is None else norm.contiguous() for norm in (dt_norm, B_norm, C_norm)]
    bias, first_window, first_state = (D if part is None else part for part in (conv_bias, *firsts))
    options = {"has_bias": conv_bias is not None, "has_first": firsts[0] is not None, "normed": dt_norm is not None}
    with torch.cuda.device_of(x):
        u, mixed = _projected(
            x, window, conv_weight, bias, first_window, positions, x_proj, norms, eps, options | sizes
        )
        steps = mixed if own_steps else _step_sizes(mixed, dt_proj, dt_bias, sizes, after)
        y = x.new_empty((rows, channels))
        programs.advance[(triton.cdiv(channels, block_d), triton.cdiv(rows, block_m))](
            u, gate, state, first_state, mixed, steps, dt_proj, dt_bias, A_log, D, positions, y, rows, gate.stride(0),
            channels, block_m=block_m, block_d=block_d, block_r=_block_r(rank), block_n=triton.next_power_of_2(states),
            has_first_state=firsts[1] is not None, own_steps=bool(own_steps), num_warps=warps,
            maxnreg=registers, **sizes, **after,
        )  # fmt: skip
    return y


def _can_overlap(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= FIRST_WITH_OVERLAP


def _block_r(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))


def _projected(
    x, window, weight, bias, first_window, positions, x_proj, norms, eps, options: dict
) -> tuple[Tensor, Tensor]:
    """u, of the shape of x, and d, B and C side by side in float32; shifts the window."""
    (rows, channels), outputs = x.shape, len(x_proj)
    slice_k, block_k, warps, stages = _chosen("slices", rows)
    block_o = max(64, triton.next_power_of_2(outputs))
    block_k = min(block_k, MOST_BYTES // (block_o * max(x.element_size(), x_proj.element_size())))
    slices, tiles = triton.cdiv(channels, slice_k), triton.cdiv(rows, ROWS)
    parts, mixed = (x.new_empty((n, rows, outputs), dtype=torch.float32) for n in (slices, 1))
    u = x.new_empty((rows, channels))
    programs.project[(slices, tiles)](
        x, window, weight, bias, first_window, positions, x_proj, *norms, u, parts, mixed, counter(tiles, x.device),
        rows, x.stride(0), channels, eps, slices=slices, slice_k=slice_k, block_k=block_k, block_m=ROWS,
        block_o=block_o, taps=weight.shape[1], stages=stages, at_once=AT_ONCE,
        num_warps=warps, **options,
    )  # fmt: skip
    return u, mixed


def _step_sizes(mixed: Tensor, dt_proj: Tensor, dt_bias: Tensor, sizes: dict, after: dict) -> Tensor:
    """`(rows, channels)`, float32."""
    (_, rows, _), (channels, rank) = mixed.shape, dt_proj.shape
    block_d, warps = _chosen("step_sizes", rows)
    steps = mixed.new_empty((rows, channels))
    programs.step_sizes[(triton.cdiv(channels, block_d), triton.cdiv(rows, ROWS))](
        mixed, dt_proj, dt_bias, steps, rows, channels, block_m=ROWS, block_d=block_d, block_r=_block_r(rank),
        num_warps=warps, **sizes, **after,
    )  # fmt: skip
    return steps
