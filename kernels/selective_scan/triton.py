"""The selective scan for CUDA: launches of `triton_programs`."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.selective_scan import triton_programs as programs
from nlrl.kernels.selective_scan.eager import selective_scan as eager
from nlrl.kernels.selective_scan.reference import wide_dtype

CHUNK = 32
"""Tokens between states that are kept for the backward; even."""
VALUES = 256
"""States a program: 8 a thread. With 16 the backward leaves room for few other warps."""
MOST_STATES = 128
PROGRAMS_PER_PROCESSOR = 32
"""Warps that hide each other's waits: as many as the forward's registers leave room for."""
MOST_REGISTERS_BACKWARDS = 144
"""Of a thread, so that 14 warps fit a processor; without the limit it takes more, for loads far ahead."""
PROCESSORS_ELSEWHERE = 2


class _Plan(NamedTuple):
    """How a scan is cut into programs."""

    rows: int
    time: int
    channels: int
    blocks: int
    """Of channels."""
    spans: int
    span: int
    """Tokens; a multiple of `CHUNK`."""
    tile: dict[str, int]

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows * self.blocks, self.spans

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.time, CHUNK)


def _plan(x: Tensor, states: int) -> _Plan:
    """Spans only where rows and channels leave room for three, as they double the forward's work."""
    rows, time, channels = x.shape
    block_n = triton.next_power_of_2(states)
    block_d = VALUES // block_n
    blocks, chunks = triton.cdiv(channels, block_d), triton.cdiv(time, CHUNK)
    room = min(chunks, _programs(x.device) // (rows * blocks))
    span = triton.cdiv(chunks, room) if room > 2 else chunks
    tile = {"states": states, "block_d": block_d, "block_n": block_n, "num_warps": 1}
    return _Plan(rows, time, channels, blocks, triton.cdiv(chunks, span), span * CHUNK, tile)


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR * PROCESSORS_ELSEWHERE
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _run(
    x, delta, A, B, C, D, position_ids, state, initial, keeps: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """y, the state behind the last token, what chunks meet (noise unless `keeps`), and the step sizes of spans."""
    plan = _plan(x, A.shape[1])
    begin, edges, sums = A if initial is None else initial, state, None
    y, after = torch.empty_like(x), torch.empty_like(state)
    kept = _values(plan.rows, plan.chunks, A) if keeps else after
    sizes = (plan.time, plan.channels, plan.span)
    options = plan.tile | {"has_initial": initial is not None}
    with torch.cuda.device_of(x):
        if plan.spans > 1:
            edges = _values(plan.rows, plan.spans, A)
            sums = A.new_empty((plan.rows, plan.spans, plan.channels))
            programs.ends[plan.grid](x, delta, A, B, position_ids, begin, edges, sums, *sizes, **options)
            programs.combine[plan.grid[:1]](
                A, state, edges, sums, plan.channels, plan.spans, backwards=False, **plan.tile
            )
        programs.forward[plan.grid](
            x, delta, A, B, C, D, position_ids, begin, edges, y, kept, after, *sizes, keeps=keeps, chunk=CHUNK,
            **options,
        )  # fmt: skip
    return y, after, kept, sums


class SelectiveScan(torch.autograd.Function):
    """All tensors contiguous; A, D, state and initial in float32."""

    @staticmethod
    def forward(ctx, x, delta, A, B, C, D, position_ids, state, initial) -> tuple[Tensor, Tensor]:
        y, after, kept, sums = _run(x, delta, A, B, C, D, position_ids, state, initial, keeps=True)
        ctx.save_for_backward(x, delta, A, B, C, D, position_ids, initial, kept, sums)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dstate) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, delta, A, B, C, D, position_ids, initial, kept, sums = ctx.saved_tensors
        plan = _plan(x, A.shape[1])
        dy, edges = dy.contiguous(), dstate.contiguous()
        sizes = (plan.time, plan.channels, plan.span)
        dx, ddelta, before = torch.empty_like(x), torch.empty_like(delta), torch.empty_like(edges)
        dB, dC = (A.new_empty((plan.blocks, *B.shape)) for _ in range(2))
        dA, dD = _values(plan.rows, plan.spans, A), A.new_empty((plan.rows, plan.spans, plan.channels))
        dinitial = None if initial is None else torch.zeros_like(dA)
        values = plan.tile["block_d"] * plan.tile["block_n"]
        scratch = A.new_empty((plan.grid[0] * plan.grid[1], CHUNK // 2, values))
        with torch.cuda.device_of(x):
            if plan.spans > 1:
                edges = _values(plan.rows, plan.spans, A)
                programs.ends_backwards[plan.grid](dy, delta, A, C, position_ids, edges, *sizes, **plan.tile)
                programs.combine[plan.grid[:1]](
                    A, dstate.contiguous(), edges, sums, plan.channels, plan.spans, backwards=True, **plan.tile
                )  # fmt: skip
            programs.backward[plan.grid](
                x, delta, A, B, C, D, position_ids, A if initial is None else initial, kept, dy, edges, scratch, dx,
                ddelta, dB, dC, dA, dD, dA if dinitial is None else dinitial, before, plan.rows, *sizes,
                has_initial=initial is not None, chunk=CHUNK, maxnreg=MOST_REGISTERS_BACKWARDS, **plan.tile,
            )  # fmt: skip
        dinitial = None if dinitial is None else dinitial.sum((0, 1))
        return (
            dx, ddelta, dA.sum((0, 1)), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum((0, 1)), None, before,
            dinitial,
        )  # fmt: skip


def _values(rows: int, count: int, A: Tensor) -> Tensor:
    """Room for `count` states a row."""
    return A.new_empty((rows, count, *A.shape))


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    position_ids: Tensor,
    state: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.selective_scan`. `eager` does what does not fit here: float64, more than 128 states a channel."""
    given = [tensor for tensor in (x, delta, A, B, C, D, state, initial) if tensor is not None]
    if wide_dtype(*given) == torch.float64 or A.shape[1] > MOST_STATES or not x.numel():
        return eager(x, delta, A, B, C, D, position_ids, state, initial)
    if state is None:
        state = x.new_zeros((x.shape[0], *A.shape), dtype=torch.float32)
    A, D, state = (tensor.float().contiguous() for tensor in (A, D, state))
    initial = None if initial is None else initial.float().contiguous()
    x, delta, B, C, positions = (tensor.contiguous() for tensor in (x, delta, B, C, position_ids))
    if not torch.is_grad_enabled():
        return _run(x, delta, A, B, C, D, positions, state, initial, keeps=False)[:2]
    return SelectiveScan.apply(x, delta, A, B, C, D, positions, state, initial)  # pyright: ignore
