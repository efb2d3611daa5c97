"""The recurrence of Mamba-2 for CUDA: launches of `triton_programs`."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.launches import choose
from nlrl.kernels.ssd import triton_programs as programs
from nlrl.kernels.ssd.eager import ssd as eager
from nlrl.kernels.ssd.reference import CHUNK, written

LAUNCH = {"chunk": (64, 64, 4, 2), "scan": (128,), "walk": (1, 4, 1)}
"""Of bfloat16. chunk: tokens of one, at most, columns of a state, of B and of C, that a program holds at once, warps,
stages; scan: columns of `states`, where there are heads enough to fill a device; walk: whether `walk` is used there,
its warps and stages."""
CANDIDATES = {
    "chunk": [(64, 64, 4, 2), (64, 64, 4, 1), (64, 128, 8, 2), (32, 64, 4, 2)],
    "scan": [(128,), (64,), (32,)],
    "walk": [(1, 4, 1), (1, 4, 2), (1, 8, 1), (1, 8, 2), (0, 4, 1)],
}
TOKENS_FLOAT32, COLUMNS_FLOAT32 = 32, 64
"""Registers bound them: a product of float32 needs three pairs of factors."""
SCAN_COLUMNS = 32
"""Of `states` in a small batch, which must have many programs."""
WALKS = 256
"""Heads, over all rows, from which on a program for each of them fills a large device."""
LARGEST_WALK = 8192
"""Numbers of a state that stay in registers."""
STEP_ROWS = 16
"""Rows of a state in a program of `step`."""
LARGEST_HEAD = 128
"""The head dimension is not cut into tiles."""
PROGRAMS = 512
"""Of `shared_gradients`, at least, if there are enough heads: they fill a large device."""


class SSD(torch.autograd.Function):
    """x, B and C in one dtype, everything else in float32."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, position_ids, state, D) -> tuple[Tensor, Tensor]:
        launch, shape = _launch(x, B), x.shape
        x, B, C, dt, position_ids = _rows(x), _rows(B), _rows(C), dt.contiguous(), position_ids.contiguous()
        y, after, states = _forward(x, dt, A, B, C, position_ids, state.contiguous(), D, launch, keeps=True)
        ctx.save_for_backward(x, dt, A, B, C, position_ids, states, D)
        ctx.launch, ctx.chunks = launch, triton.cdiv(shape[1], launch["Q"])
        return y.view(shape), after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor, dafter: Tensor):
        x, dt, A, B, C, position_ids, states, D = ctx.saved_tensors
        (batch, time, heads, _), launch, chunks = dy.shape, ctx.launch, ctx.chunks
        dx, dy = torch.empty(dy.shape, dtype=dy.dtype, device=dy.device), _rows(dy)
        dstates, dstate = _scan(dy, dt, A, C, position_ids, dafter.contiguous(), launch, chunks, reverse=True)
        shared = dt, A, position_ids, launch, chunks
        dC, dc = _shared(dy, x, C, B, states, *shared, reverse=False)
        dB, dc_from = _shared(x, dy, B, C, dstates, *shared, reverse=True)
        ddt, (dA, dD) = torch.empty_like(dt), dt.new_empty((2, batch * chunks, heads))
        with torch.cuda.device_of(x):
            programs.gradients[(batch * chunks * heads,)](
                x, dt, A, B, C, A if D is None else D, position_ids, states, dstates, dy, dc - dc_from, dx, ddt, dA,
                dD, time, chunks, x.stride(0), B.stride(0), C.stride(0), dy.stride(0), skip=D is not None, **launch,
            )  # fmt: skip
        return dx, ddt, dA.sum(0), dB, dC, None, dstate, None if D is None else dD.sum(0)


def _forward(x, dt, A, B, C, position_ids, state, D, launch: dict, keeps: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y `(tokens, heads * head_dim)`, the last state, and those before each chunk, if they are made at all."""
    (batch, time), heads = position_ids.shape, state.shape[1]
    chunks, y = triton.cdiv(time, launch["Q"]), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = time, chunks, x.stride(0), B.stride(0), C.stride(0)
    if _walks(x, state):
        states = state.new_empty((batch, chunks, *state.shape[1:])) if keeps else None
        after, options = torch.empty_like(state), launch | _walk_launch(launch["N"])
        with torch.cuda.device_of(x):
            programs.walk[(batch * heads,)](
                x, dt, A, B, C, A if D is None else D, position_ids, state, after if states is None else states, after,
                y, *sizes, keeps=keeps, skip=D is not None, **options,
            )  # fmt: skip
        return y, after, states
    states, after = _scan(x, dt, A, B, position_ids, state, launch, chunks, reverse=False)
    with torch.cuda.device_of(x):
        programs.outputs[(batch * chunks * heads,)](
            x, dt, A, B, C, A if D is None else D, position_ids, states, y, *sizes, skip=D is not None, **launch,
        )  # fmt: skip
    return y, after, states


def _walks(x: Tensor, state: Tensor) -> bool:
    """Whether one program for each head does it all: there are enough of them, and a state fits into registers."""
    batch, heads, head_dim, states = state.shape
    small = _block(head_dim) * _block(states) <= LARGEST_WALK and x.dtype == torch.bfloat16
    return small and batch * heads >= WALKS and bool(_numbers("walk")[0])


def _walk_launch(states: int) -> dict[str, int]:
    _, warps, stages = _numbers("walk")
    return {"block_n": _block(states), "num_warps": warps, "num_stages": stages}


def _scan(x, dt, A, B, position_ids, first, launch: dict, chunks: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """The states before each chunk (the gradients of those after it), and the last one."""
    states, last = first.new_empty((first.shape[0], chunks, *first.shape[1:])), torch.empty_like(first)
    many, columns = first.shape[0] * first.shape[1] >= WALKS and x.dtype == torch.bfloat16, SCAN_COLUMNS
    if many:
        [columns] = _numbers("scan")
    launch = launch | {"block_n": min(columns, _block(launch["N"]))}
    with torch.cuda.device_of(x):
        programs.states[(first.shape[0] * first.shape[1] * triton.cdiv(launch["N"], launch["block_n"]),)](
            x, dt, A, B, position_ids, first, states, last, position_ids.shape[1], chunks, x.stride(0), B.stride(0),
            reverse=reverse, **launch,
        )  # fmt: skip
    return states, last


def _shared(a, b, own, other, states, dt, A, position_ids, launch: dict, chunks: int, reverse: bool):
    """The gradient of C or B, `(batch, time, groups, state_size)`, and what it gives to c, `(batch, time, heads)`."""
    (batch, time, heads), groups = dt.shape, dt.shape[2] // launch["per_group"]
    tiles = triton.cdiv(launch["N"], launch["block_n"])
    splits = _splits(batch * chunks * groups * tiles, launch["per_group"])
    gradient = dt.new_empty((splits, batch, time, groups, launch["N"]))
    dc = dt.new_empty((tiles, batch, time, heads))
    with torch.cuda.device_of(dt):
        programs.shared_gradients[(batch * chunks * groups * splits * tiles,)](
            a, b, dt, A, own, other, position_ids, states, gradient, dc, time, chunks, batch * time,
            a.stride(0), b.stride(0), own.stride(0), other.stride(0), reverse=reverse, splits=splits, **launch,
        )  # fmt: skip
    return _added(gradient).to(own.dtype), _added(dc)


def _added(parts: Tensor) -> Tensor:
    return parts.sum(0) if len(parts) > 1 else parts[0]


def _rows(values: Tensor) -> Tensor:
    """One row a token, without a copy where strides allow: arguments are often parts of one projection."""
    values = values.reshape(values.shape[0] * values.shape[1], -1)
    return values if values.stride(1) == 1 else values.contiguous()


def _launch(x: Tensor, B: Tensor) -> dict[str, int]:
    (time, heads, head_dim), state_size = x.shape[1:], B.shape[3]
    narrow = x.dtype == torch.bfloat16
    tokens, columns, warps, stages = _numbers("chunk") if narrow else (TOKENS_FLOAT32, COLUMNS_FLOAT32, 8, 2)
    block_p, block_n = _block(head_dim), min(columns, _block(state_size))
    if block_p > 32 and block_n == 32:
        block_n = 64  # 32 columns beside more channels gave wrong gradients on an H200 with Triton 3.6
    return {
        "heads": heads, "per_group": heads // B.shape[2], "P": head_dim, "N": state_size,
        "Q": min(tokens, _block(time)), "block_p": block_p, "block_n": block_n,
        "num_warps": warps if head_dim <= 64 else 8, "num_stages": stages,
    }  # fmt: skip


def _numbers(key: str) -> Sequence[int]:
    return choose("ssd", key, LAUNCH[key])


def _block(size: int) -> int:
    """Tensor cores take no less than 16."""
    return max(16, triton.next_power_of_2(size))


def _splits(count: int, per_group: int) -> int:
    """Into how many programs each of `count` is divided: the least divisor of a group's heads that makes enough."""
    divisors = [n for n in range(1, per_group + 1) if per_group % n == 0]
    return next((n for n in divisors if count * n >= PROGRAMS), per_group)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    position_ids: Tensor,
    state: Tensor | None = None,
    D: Tensor | None = None,
    chunk: int = CHUNK,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `reference.ssd`. Chunks have a length of their own here; `eager` takes float64 and heads of more than 128
    dimensions."""
    wide = torch.promote_types(x.dtype, dt.dtype) == torch.float64
    if wide or not x.numel() or x.shape[3] > LARGEST_HEAD:
        return eager(x, dt, A, B, C, position_ids, state, D, chunk, overwrite)
    dtype = torch.bfloat16 if x.dtype == B.dtype == C.dtype == torch.bfloat16 else torch.float32
    scan = x.to(dtype), dt.float(), A.float(), B.to(dtype), C.to(dtype), position_ids
    before = x.new_zeros((x.shape[0], *x.shape[2:], B.shape[3]), dtype=torch.float32) if state is None else state
    D = None if D is None else D.float()
    if x.shape[1] == 1 and not _needs_gradient(*scan, before, D):
        y, after = _one(*scan, before, D, overwrite and state is not None)
        return y.to(x.dtype), after
    if _needs_gradient(*scan, before, D):
        y, after = SSD.apply(*scan, before.float(), D)
    else:
        y, after = _without_gradient(*scan, before.float(), D)
    return y.to(x.dtype), written(state, after) if overwrite else after


def _without_gradient(x, dt, A, B, C, position_ids, before: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    given = _rows(x), dt.contiguous(), A, _rows(B), _rows(C), position_ids.contiguous(), before.contiguous(), D
    y, after, _states = _forward(*given, _launch(x, B), keeps=False)
    return y.view(x.shape), after


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _one(x, dt, A, B, C, position_ids, before: Tensor, D: Tensor | None, overwrite: bool) -> tuple[Tensor, Tensor]:
    shape, launch = x.shape, _launch(x, B)
    launch = {name: launch[name] for name in ("heads", "per_group", "P", "N")} | {"block_n": _block(launch["N"])}
    given, before = before, before.contiguous()
    after = before if overwrite else torch.empty_like(before, dtype=torch.float32)
    x, B, C, dt, y = _rows(x), _rows(B), _rows(C), dt.contiguous(), torch.empty(shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        programs.step[(shape[0] * shape[2] * triton.cdiv(shape[3], STEP_ROWS),)](
            x, dt, A, B, C, A if D is None else D, position_ids.contiguous(), before, after, y,
            x.stride(0), B.stride(0), C.stride(0), skip=D is not None, tile=STEP_ROWS, **launch, num_warps=4,
        )  # fmt: skip
    return y, given.copy_(after) if overwrite and after is not given else after
