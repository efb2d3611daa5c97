"""The recurrence of Mamba-2 for CUDA: launches of `triton_programs`."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.launches import choose
from nlrl.kernels.ssd import triton_programs as programs
from nlrl.kernels.ssd.eager import ssd as eager
from nlrl.kernels.ssd.reference import CHUNK, written

LAUNCH = {"chunk": (64, 64, 4, 2), "scan": (128,), "head": (1, 4, 2, 1)}
"""Of bfloat16. chunk: tokens of one, at most, columns of a state, of B and of C, that a program holds at once, warps,
stages; scan: columns of `states`, where there are heads enough to fill a device; head: whether `walk` is used there,
its warps and stages, and whether factors of its outputs are exact: y is rounded to bfloat16 anyway, and with its
factors rounded too its error grows by less than the root of 2."""
CANDIDATES = {
    "chunk": [(64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 1), (64, 128, 8, 2), (32, 64, 4, 2)],
    "scan": [(128,), (64,), (32,)],
    "head": [(1, 4, 2, 1), (1, 4, 1, 1), (1, 4, 2, 0), (1, 4, 1, 0), (1, 8, 1, 1), (0, 4, 1, 1)],
}
TOKENS_FLOAT32, COLUMNS_FLOAT32 = 32, 64
"""Registers bound them: a product of float32 needs three pairs of factors."""
SCAN_COLUMNS = 32
"""Of `states` in a small batch, which must have many programs."""
WALKS = 256
"""Heads, over all rows, from which on a program for each of them fills a large device."""
LARGEST_WALK = 8192
"""Numbers of a state that stay in registers."""
DECAYS = 16
"""Heads of a program of `decays`."""
STEP_ROWS = 16
"""Rows of a state in a program of `step`."""
LARGEST_HEAD = 128
"""The head dimension is not cut into tiles."""
PROGRAMS = 512
"""Of `shared_gradients`, at least, if there are enough heads: they fill a large device."""


class SSD(torch.autograd.Function):
    """x, B and C in one dtype, everything else in float32. What `_decays` gives is made again for the backward."""

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
        decays = _decays(dt, A, position_ids, launch)
        dstates, dstate = _scan(dy, C, decays, time, dafter.contiguous(), launch, chunks, reverse=True)
        shared = dt, decays, launch, chunks
        dC, dc = _shared(dy, x, C, B, states, *shared, reverse=False)
        dB, dc_from = _shared(x, dy, B, C, dstates, *shared, reverse=True)
        ddt, (dA, dD) = torch.empty_like(dt), dt.new_empty((2, batch * chunks, heads))
        with torch.cuda.device_of(x):
            programs.gradients[(batch * chunks * heads,)](
                x, A, B, C, A if D is None else D, position_ids, *decays, states, dstates, dy, dc - dc_from, dx, ddt,
                dA, dD, decays[0][0].numel(), time, chunks, x.stride(0), B.stride(0), C.stride(0), dy.stride(0),
                skip=D is not None, **launch,
            )  # fmt: skip
        return dx, ddt, dA.sum(0), dB, dC, None, dstate, None if D is None else dD.sum(0)


def _forward(x, dt, A, B, C, position_ids, state, D, launch: dict, keeps: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y `(tokens, heads * head_dim)`, the last state, and those before each chunk, if they are made at all."""
    (batch, time), heads = position_ids.shape, state.shape[1]
    chunks, y = triton.cdiv(time, launch["Q"]), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    decays = _decays(dt, A, position_ids, launch)
    sizes = decays[0][0].numel(), time, chunks, x.stride(0), B.stride(0), C.stride(0)
    if _walks(x, state):
        states = state.new_empty((batch, chunks, *state.shape[1:])) if keeps else None
        after, options = torch.empty_like(state), launch | _walk_launch(launch["N"])
        with torch.cuda.device_of(x):
            programs.walk[(batch * heads,)](
                x, B, C, A if D is None else D, *decays, state, after if states is None else states, after, y, *sizes,
                keeps=keeps, skip=D is not None, **options,
            )  # fmt: skip
        return y, after, states
    states, after = _scan(x, B, decays, time, state, launch, chunks, reverse=False)
    with torch.cuda.device_of(x):
        programs.outputs[(batch * chunks * heads,)](
            x, B, C, A if D is None else D, *decays, states, y, *sizes, skip=D is not None, **launch,
        )  # fmt: skip
    return y, after, states


def _decays(dt: Tensor, A: Tensor, position_ids: Tensor, launch: dict) -> tuple[Tensor, ...]:
    """c, dt, decays into and out of each token, these times dt, `(5, batch, heads, chunks * Q)`; decays through each
    chunk; and the number of each token's document within its chunk."""
    (batch, time, heads), Q = dt.shape, launch["Q"]
    chunks = triton.cdiv(time, Q)
    parts = dt.new_empty((5, batch, heads, chunks * Q)), dt.new_empty((batch, heads, chunks))
    parts = *parts, dt.new_empty((batch, chunks * Q))
    with torch.cuda.device_of(dt):
        programs.decays[(batch * chunks * triton.cdiv(heads, DECAYS),)](
            dt, A, position_ids, *parts, parts[0][0].numel(), time, chunks, heads=heads, Q=Q, block_h=DECAYS,
            num_warps=4,
        )  # fmt: skip
    return parts


def _walks(x: Tensor, state: Tensor) -> bool:
    """Whether one program for each head does it all: there are enough of them, and a state fits into registers."""
    batch, heads, head_dim, states = state.shape
    small = _block(head_dim) * _block(states) <= LARGEST_WALK and x.dtype == torch.bfloat16
    return small and batch * heads >= WALKS and bool(_numbers("head")[0])


def _walk_launch(states: int) -> dict[str, int]:
    _, warps, stages, exact = _numbers("head")
    return {"block_n": _block(states), "num_warps": warps, "num_stages": stages, "exact": bool(exact)}


def _scan(x, B, decays, time: int, first, launch: dict, chunks: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """The states before each chunk (the gradients of those after it), and the last one."""
    states, last = first.new_empty((first.shape[0], chunks, *first.shape[1:])), torch.empty_like(first)
    many, columns = first.shape[0] * first.shape[1] >= WALKS and x.dtype == torch.bfloat16, SCAN_COLUMNS
    if many:
        [columns] = _numbers("scan")
    launch = launch | {"block_n": min(columns, _block(launch["N"]))}
    with torch.cuda.device_of(x):
        programs.states[(first.shape[0] * first.shape[1] * triton.cdiv(launch["N"], launch["block_n"]),)](
            x, B, *decays, first, states, last, decays[0][0].numel(), time, chunks, x.stride(0), B.stride(0),
            reverse=reverse, **launch,
        )  # fmt: skip
    return states, last


def _shared(a, b, own, other, states, dt, decays, launch: dict, chunks: int, reverse: bool):
    """The gradient of C or B, `(batch, time, groups, state_size)`, and what it gives to c, `(batch, time, heads)`."""
    (batch, time, heads), groups = dt.shape, dt.shape[2] // launch["per_group"]
    tiles = triton.cdiv(launch["N"], launch["block_n"])
    splits = _splits(batch * chunks * groups * tiles, launch["per_group"])
    gradient = dt.new_empty((splits, batch, time, groups, launch["N"]))
    dc = dt.new_empty((tiles, batch, time, heads))
    with torch.cuda.device_of(dt):
        programs.shared_gradients[(batch * chunks * groups * splits * tiles,)](
            a, b, own, other, *decays, states, gradient, dc, decays[0][0].numel(), time, chunks, batch * time,
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
    if narrow and min(2 * block_p, block_n) < 128:
        # Beside 64 tokens a second group of four warps takes half of the columns. Triton 3.6 has it start within a row
        # of a swizzled tile that is no wider than 64: if that tile is the last in shared memory, hardware that takes
        # whole rows reads past the end. Suspected of an illegal access on an H100; four warps never do it.
        warps = 4
    return {
        "heads": heads, "per_group": heads // B.shape[2], "P": head_dim, "N": state_size,
        "Q": min(tokens, _block(time)), "block_p": block_p, "block_n": block_n,
        "num_warps": warps if block_p <= 64 else 8, "num_stages": stages,
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
    blocks = _block(x.shape[3]), _block(B.shape[3])
    if dtype == torch.bfloat16 and blocks != (x.shape[3], B.shape[3]) and x.shape[1] > 1:
        return _padded(blocks, x, dt, A, B, C, position_ids, state, D, chunk, overwrite)
    scan = x.to(dtype), dt.float(), A.float().contiguous(), B.to(dtype), C.to(dtype), position_ids
    before = x.new_zeros((x.shape[0], *x.shape[2:], B.shape[3]), dtype=torch.float32) if state is None else state
    D = None if D is None else D.float().contiguous()
    if x.shape[1] == 1 and not _needs_gradient(*scan, before, D):
        y, after = _one(*scan, before, D, overwrite and state is not None)
        return y.to(x.dtype), after
    if _needs_gradient(*scan, before, D):
        y, after = SSD.apply(*scan, before.float(), D)
    else:
        y, after = _without_gradient(*scan, before.float(), D)
    return y.to(x.dtype), written(state, after) if overwrite else after


def _padded(
    blocks: tuple[int, int], x, dt, A, B, C, position_ids, state, D, chunk: int, overwrite: bool
) -> tuple[Tensor, Tensor]:
    """With channels and states of zeros up to whole tiles, which change nothing and are taken off again.

    Heads of 24 with states of 40 in bfloat16 ended in an illegal access on an H100 (Triton 3.6); in float32 they did
    not, nor did sizes that fill their tiles. No pointer of ours leaves its tensor, as the tests see to.
    """
    head_dim, states = x.shape[3], B.shape[3]
    more = blocks[0] - head_dim, blocks[1] - states
    x, B, C = F.pad(x, (0, more[0])), F.pad(B, (0, more[1])), F.pad(C, (0, more[1]))
    larger = None if state is None else F.pad(state, (0, more[1], 0, more[0]))
    y, after = ssd(x, dt, A, B, C, position_ids, larger, D, chunk)
    y, after = y[..., :head_dim].contiguous(), after[..., :head_dim, :states].contiguous()
    return y, written(state, after) if overwrite else after


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
