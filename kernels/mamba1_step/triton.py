"""One token of a Mamba-1 mixer for CUDA, in two launches: every channel's step size needs all channels' convolution.

1. `_project` makes d, B and C of 16 rows at a time: a program convolves a slice of the channels and multiplies it by
   its slice of X into some of the outputs. The last program of a tile to be done, by a count in memory, adds the
   slices up, in their order whoever is last, so equal inputs give equal bits.
2. `_advance` owns some channels of 16 rows: it convolves them once more, as the window that it shifts is in registers
   anyway, divides d, B and C by their root mean squares, multiplies d by its slice of W on tensor cores, updates the
   state, adds D and multiplies by the gate.

Beyond what `costs` counts, the slices are written and read, 4 (rank + 2 N) bytes a row and slice, and windows and X are
read from the level-2 cache again. With `pdl` the second launch loads its states while the first one still runs
(programmatic dependent launch).
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from nlrl.kernels.launches import choose
from nlrl.kernels.mamba1_step.eager import mamba1_step as eager
from nlrl.kernels.selective_scan.triton_programs import softplus_of

LAUNCH = {"project": (128, 64, 32, 4), "advance": (32, 4, 0)}
"""project: channels of a program, so many of them at once, its outputs, warps; advance: channels of a program, warps,
and whether it may begin while the first launch runs (`pdl`)."""
CANDIDATES = {
    "project": [(128, 64, 32, 4), (256, 64, 16, 4), (64, 64, 32, 4)],
    "advance": [(d, warps, pdl) for pdl in (0, 1) for d, warps in ((32, 4), (16, 4), (8, 4), (64, 8))],
}
ROWS = 16
"""Of a program: the least that tensor cores take."""
MOST_STATES, MOST_RANK = 64, 256
_counters: dict[torch.device, Tensor] = {}


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def _convolved(
    x_ptr, window_ptr, weight_ptr, bias_ptr, first_ptr, row, position, real, c, x_row, channels,
    taps: tl.constexpr, has_bias: tl.constexpr, has_first: tl.constexpr, shifts: tl.constexpr,
):  # fmt: skip
    # silu of the convolution of some channels of some rows, rounded as a chain of ops would; and, if it shifts, the
    # new window is written: each value is in registers before its place is written.
    kind: tl.constexpr = x_ptr.dtype.element_ty
    inside = real[:, None] & (c < channels)[None, :]
    newest = tl.load(x_ptr + row[:, None] * x_row + c[None, :], mask=inside, other=0.0)
    weight = tl.load(weight_ptr + c * taps + taps - 1, mask=c < channels, other=0.0).to(tl.float32)
    total = newest.to(tl.float32) * weight[None, :]
    if has_bias:
        total += tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    for i in tl.static_range(taps - 1):
        at = window_ptr + (row[:, None] * (taps - 1) + i) * channels + c[None, :]
        old = tl.load(at, mask=inside, other=0.0).to(kind)
        if shifts and i > 0:
            tl.store(at - channels, old.to(window_ptr.dtype.element_ty), mask=inside)
        seen = (position >= taps - 1 - i)[:, None]
        value = tl.where(seen, old.to(tl.float32), 0.0)
        if has_first:
            before = first_ptr + (position + i)[:, None] * channels + c[None, :]
            wanted = inside & (position < taps - 1 - i)[:, None]
            value += tl.load(before, mask=wanted, other=0.0).to(kind).to(tl.float32)
        weight = tl.load(weight_ptr + c * taps + i, mask=c < channels, other=0.0).to(tl.float32)
        total += value * weight[None, :]
    if shifts:
        at = window_ptr + (row[:, None] * (taps - 1) + taps - 2) * channels + c[None, :]
        tl.store(at, newest.to(window_ptr.dtype.element_ty), mask=inside)
    return _silu(total.to(kind).to(tl.float32)).to(kind)


@triton.jit
def _rows_of(position_ptr, tile, rows, block: tl.constexpr):
    row = tile * block + tl.arange(0, block)
    position = tl.load(position_ptr + row, mask=row < rows, other=-1).to(tl.int32)
    return row.to(tl.int64), position, position >= 0


@triton.jit(do_not_specialize=["rows"])
def _project(
    x_ptr, window_ptr, weight_ptr, bias_ptr, first_ptr, position_ptr, X_ptr, parts_ptr, mixed_ptr, count_ptr,
    rows, x_row, channels, outputs: tl.constexpr, slices: tl.constexpr, slice_k: tl.constexpr, block_k: tl.constexpr,
    block_o: tl.constexpr, block_m: tl.constexpr, taps: tl.constexpr, has_bias: tl.constexpr, has_first: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    if pdl:
        tl_cuda.gdc_launch_dependents()
    row, position, real = _rows_of(position_ptr, tl.program_id(2), rows, block_m)
    o = tl.program_id(1) * block_o + tl.arange(0, block_o)
    total = tl.zeros((block_m, block_o), tl.float32)
    for start in range(0, slice_k, block_k):
        c = tl.program_id(0) * slice_k + start + tl.arange(0, block_k)
        u = _convolved(
            x_ptr, window_ptr, weight_ptr, bias_ptr, first_ptr, row, position, real, c, x_row, channels, taps, has_bias,
            has_first, False,
        )  # fmt: skip
        X = tl.load(X_ptr + o[None, :] * channels + c[:, None], mask=(o < outputs)[None, :] & (c < channels)[:, None],
                    other=0.0)  # fmt: skip
        total += tl.dot(u, X.to(u.dtype), input_precision="ieee")
    inside = (row < rows)[:, None] & (o < outputs)[None, :]
    at = row[:, None] * outputs + o[None, :]
    tl.store(parts_ptr + tl.program_id(0).to(tl.int64) * rows * outputs + at, total, mask=inside)
    tl.debug_barrier()  # all threads have written before one says so
    count = count_ptr + tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    if tl.atomic_add(count, 1, sem="acq_rel") == slices - 1:
        tl.store(count, 0)  # for the next launch
        total = tl.zeros((block_m, block_o), tl.float32)
        part = parts_ptr + at
        for _ in range(slices):
            total += tl.load(part, mask=inside, other=0.0, cache_modifier=".cg")
            part += rows * outputs
        tl.store(mixed_ptr + at, total, mask=inside)


@triton.jit
def _normed(
    mixed_ptr, scale_ptr, row, real, first, eps, outputs: tl.constexpr, size: tl.constexpr, block: tl.constexpr,
    normed: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, block)
    inside = real[:, None] & (i < size)[None, :]
    value = tl.load(mixed_ptr + row[:, None] * outputs + (first + i)[None, :], mask=inside, other=0.0)
    if normed:
        scale = tl.load(scale_ptr + i, mask=i < size, other=0.0).to(tl.float32)
        value = value * tl.rsqrt(tl.sum(value * value, 1) / size + eps)[:, None] * scale[None, :]
    return value


@triton.jit(do_not_specialize=["rows"])
def _advance(
    x_ptr, gate_ptr, window_ptr, state_ptr, weight_ptr, bias_ptr, first_ptr, first_state_ptr, mixed_ptr, dt_norm_ptr,
    B_norm_ptr, C_norm_ptr, W_ptr, dt_bias_ptr, A_log_ptr, D_ptr, position_ptr, y_ptr, rows, x_row, gate_row, channels,
    eps, outputs: tl.constexpr, rank: tl.constexpr, states: tl.constexpr, block_m: tl.constexpr, block_d: tl.constexpr,
    block_r: tl.constexpr, block_n: tl.constexpr, taps: tl.constexpr, has_bias: tl.constexpr, has_first: tl.constexpr,
    has_first_state: tl.constexpr, normed: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    row, position, real = _rows_of(position_ptr, tl.program_id(1), rows, block_m)
    c = tl.program_id(0) * block_d + tl.arange(0, block_d)
    n, r = tl.arange(0, block_n), tl.arange(0, block_r)
    held = (c < channels)[None, :, None] & (n < states)[None, None, :]
    at = c[None, :, None] * states + n[None, None, :]
    where = state_ptr + row[:, None, None] * channels * states + at
    state = tl.load(where, mask=held & (position > 0)[:, None, None], other=0.0).to(tl.float32)
    if has_first_state:
        begins = held & (position == 0)[:, None, None]
        state += tl.load(first_state_ptr + at, mask=begins, other=0.0).to(tl.float32)
    A = -tl.exp(tl.load(A_log_ptr + at, mask=held, other=0.0).to(tl.float32)) * 1.4426950408889634
    W = tl.load(W_ptr + c[None, :] * rank + r[:, None], mask=(c < channels)[None, :] & (r < rank)[:, None], other=0.0)
    if pdl:
        tl_cuda.gdc_wait()
    d = _normed(mixed_ptr, dt_norm_ptr, row, real, 0, eps, outputs, rank, block_r, normed)
    B = _normed(mixed_ptr, B_norm_ptr, row, real, rank, eps, outputs, states, block_n, normed)
    C = _normed(mixed_ptr, C_norm_ptr, row, real, rank + states, eps, outputs, states, block_n, normed)
    delta = tl.dot(d.to(W.dtype), W, input_precision="ieee")
    delta += tl.load(dt_bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    delta = softplus_of(delta)
    u = _convolved(
        x_ptr, window_ptr, weight_ptr, bias_ptr, first_ptr, row, position, real, c, x_row, channels, taps, has_bias,
        has_first, True,
    ).to(tl.float32)  # fmt: skip
    state = tl.exp2(delta[:, :, None] * A) * state + (delta * u)[:, :, None] * B[:, None, :]
    tl.store(where, state.to(state_ptr.dtype.element_ty), mask=held & real[:, None, None])
    D = tl.load(D_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    y = tl.sum(state * C[:, None, :], 2) + D[None, :] * u
    inside = real[:, None] & (c < channels)[None, :]
    gate = tl.load(gate_ptr + row[:, None] * gate_row + c[None, :], mask=inside, other=0.0).to(tl.float32)
    inside = (row < rows)[:, None] & (c < channels)[None, :]
    tl.store(y_ptr + row[:, None] * channels + c[None, :], (y * _silu(gate)).to(y_ptr.dtype.element_ty), mask=inside)


def _counter(count: int, device: torch.device) -> Tensor:
    """Zeros, which every launch leaves as zeros."""
    found = _counters.get(device)
    if found is None or len(found) < count:
        size = max(1024, triton.next_power_of_2(count))
        found = _counters[device] = torch.zeros(size, dtype=torch.int32, device=device)
    return found


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
    firsts = [None if first is None else first.contiguous() for first in (first_window, first_state)]
    even = window.is_contiguous() and state.is_contiguous() and x.stride(-1) == gate.stride(-1) == 1 and taps > 1
    even = even and (dt_norm is None) == (B_norm is None) == (C_norm is None)
    if x.dtype == torch.float64 or not even or not rows or states > MOST_STATES or rank > MOST_RANK:
        return eager(x, gate, window, state, *weights, positions, eps, *firsts)
    slice_k, block_k, block_o, warps = choose("mamba1_step", "project", LAUNCH["project"])
    block_d, step_warps, overlaps = choose("mamba1_step", "advance", LAUNCH["advance"])
    outputs, pdl = rank + 2 * states, bool(overlaps) and x.is_cuda
    slices, tiles, columns = triton.cdiv(channels, slice_k), triton.cdiv(rows, ROWS), triton.cdiv(outputs, block_o)
    parts, mixed = (x.new_empty((n, rows, outputs), dtype=torch.float32) for n in (slices, 1))
    y = x.new_empty((rows, channels))
    bias, first_window, first_state = (D if part is None else part for part in (conv_bias, *firsts))
    norms = [D if norm is None else norm.contiguous() for norm in (dt_norm, B_norm, C_norm)]
    shared = {
        "outputs": outputs, "block_m": ROWS, "taps": taps, "has_bias": conv_bias is not None,
        "has_first": firsts[0] is not None, "pdl": pdl,
    }  # fmt: skip
    with torch.cuda.device_of(x):
        _project[(slices, columns, tiles)](
            x, window, conv_weight, bias, first_window, positions, x_proj, parts, mixed,
            _counter(columns * tiles, x.device), rows, x.stride(0), channels, slices=slices, slice_k=slice_k,
            block_k=block_k, block_o=block_o, num_warps=warps, **shared,
        )  # fmt: skip
        _advance[(triton.cdiv(channels, block_d), tiles)](
            x, gate, window, state, conv_weight, bias, first_window, first_state, mixed, *norms,
            dt_proj, dt_bias, A_log, D, positions, y, rows, x.stride(0), gate.stride(0), channels, eps, rank=rank,
            states=states, block_d=block_d, block_r=max(16, triton.next_power_of_2(rank)),
            block_n=triton.next_power_of_2(states), has_first_state=firsts[1] is not None, normed=dt_norm is not None,
            num_warps=step_warps, **shared, **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return y
