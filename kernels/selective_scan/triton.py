"""The selective scan for CUDA: launches of `triton_programs`."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.launches import choose
from nlrl.kernels.selective_scan import triton_backward as backwards_programs
from nlrl.kernels.selective_scan import triton_programs as programs
from nlrl.kernels.selective_scan.eager import selective_scan as eager
from nlrl.kernels.selective_scan.reference import wide_dtype

CHUNK = 32
"""Tokens between states that are kept for the backward; a multiple of 4."""
STATES = 512
"""Of a program, which is one warp, by default."""
LAUNCH = {"forward": (STATES, 255), "backward": (STATES, 255)}
"""States of a program, and registers of a thread. A quarter of a processor has 16,384 registers, so 255 a thread leave
room for two warps there, 168 for three, 128 for four: more programs than fit take a second round."""
CANDIDATES = {
    "forward/16": [(512, 255), (512, 224), (512, 200), (256, 168), (256, 128)],
    "backward": [(512, 255), (512, 168), (256, 168), (256, 128), (256, 112)],
}
WARP = 32
MOST_STATES = 128
PROGRAMS_PER_PROCESSOR = 8
"""Warps that hide each other's waits: as many as there is room for."""
PROCESSORS_ELSEWHERE = 8


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
    tile: dict[str, Any]

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows * self.blocks, self.spans

    @property
    def threads(self) -> int:
        """That share a channel: as few as keep a warp busy."""
        return min(self.tile["block_n"], max(1, WARP // self.tile["block_d"]))

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.time, CHUNK)


def _plan(x: Tensor, states: int, backwards: bool = False) -> _Plan:
    """Spans only where rows and channels leave room for three, as they double the forward's work. Both directions have
    the same spans."""
    rows, time, channels = x.shape
    block_n, direction = triton.next_power_of_2(states), "backward" if backwards else "forward"
    key = direction if backwards else f"{direction}/{block_n}"
    values, registers = choose("selective_scan", key, LAUNCH[direction])
    usual, block_d = STATES // block_n, max(1, values // block_n)
    room = min(triton.cdiv(time, CHUNK), _programs(x.device) // (rows * triton.cdiv(channels, usual)))
    span = triton.cdiv(triton.cdiv(time, CHUNK), room if room > 2 else 1)
    tile = {"states": states, "block_d": block_d, "block_n": block_n, "num_warps": 1, "maxnreg": registers}
    spans = triton.cdiv(triton.cdiv(time, CHUNK), span)
    return _Plan(rows, time, channels, triton.cdiv(channels, block_d), spans, span * CHUNK, tile)


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR * PROCESSORS_ELSEWHERE
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


class Inputs(NamedTuple):
    """What a scan takes: all tensors but gate contiguous; A, D, bias, state and initial in float32."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    position_ids: Tensor
    state: Tensor
    initial: Tensor | None
    gate: Tensor | None
    """As x; the outputs are multiplied by its silu."""
    bias: Tensor | None
    """`(channels,)`; there is one if delta is what softplus is taken of, after it was added."""

    @property
    def options(self) -> dict[str, bool]:
        return {"softplus": self.bias is not None}


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A launch takes no None: something that is not read."""
    return other if tensor is None else tensor


def _run(given: Inputs, keeps: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """y, the state behind the last token, what chunks meet (noise unless `keeps`), and the step sizes of spans."""
    x, delta, A, B, C, D, position_ids, state, initial, gate, bias = given
    plan = _plan(x, A.shape[1])
    begin, edges, sums, bias = _or(initial, A), state, None, _or(bias, A)
    y, after = torch.empty_like(x), torch.empty_like(state)
    kept = _values(plan.rows, plan.chunks, A) if keeps else after
    sizes = (plan.time, plan.channels, plan.span)
    options = plan.tile | given.options | {"has_initial": initial is not None}
    with torch.cuda.device_of(x):
        if plan.spans > 1:
            edges = _values(plan.rows, plan.spans, A)
            sums = A.new_empty((plan.rows, plan.spans, plan.channels))
            programs.ends[plan.grid](x, delta, bias, A, B, position_ids, begin, edges, sums, *sizes, **options)
            programs.combine[plan.grid[:1]](
                A, state, edges, sums, plan.channels, plan.spans, backwards=False, **plan.tile
            )
        programs.forward[plan.grid](
            x, delta, bias, A, B, C, D, _or(gate, x), position_ids, begin, edges, y, kept, after, plan.time,
            plan.channels, _or(gate, x).stride(1), plan.span, keeps=keeps,
            gated=gate is not None, chunk=CHUNK, threads=plan.threads, **options,
        )  # fmt: skip
    return y, after, kept, sums


class SelectiveScan(torch.autograd.Function):
    """Arguments are those of `Inputs`."""

    @staticmethod
    def forward(ctx, *given) -> tuple[Tensor, Tensor]:
        y, after, kept, sums = _run(Inputs(*given), keeps=True)
        ctx.save_for_backward(*given, kept, sums)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dstate) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        *given, kept, sums = ctx.saved_tensors
        return _gradients(Inputs(*given), kept, sums, dy.contiguous(), dstate.contiguous())


def _gradients(given: Inputs, kept: Tensor, sums: Tensor | None, dy: Tensor, dstate: Tensor) -> tuple:
    """Of each of `Inputs`."""
    x, delta, A, B, C, D, position_ids, _, initial, gate, bias = given
    plan, gated, edges = _plan(x, A.shape[1], backwards=True), gate is not None, dstate
    sizes = (plan.time, plan.channels, _or(gate, x).stride(1), plan.span)
    dx, ddelta, before = torch.empty_like(x), torch.empty_like(delta), torch.empty_like(dstate)
    dgate = None if gate is None else torch.empty_like(x, dtype=gate.dtype)
    dB, dC = (A.new_empty((plan.blocks, *B.shape)) for _ in range(2))
    dA, (dD, dbias) = _values(plan.rows, plan.spans, A), A.new_empty((2, plan.rows, plan.spans, plan.channels))
    dinitial = None if initial is None else torch.zeros_like(dA)
    scratch = A.new_empty((plan.grid[0] * plan.grid[1], CHUNK // 2, plan.tile["block_d"] * plan.tile["block_n"]))
    with torch.cuda.device_of(x):
        if plan.spans > 1:
            edges = _values(plan.rows, plan.spans, A)
            backwards_programs.ends[plan.grid](
                dy, delta, _or(bias, A), A, C, _or(gate, x), position_ids, edges, *sizes, gated=gated, **given.options,
                **plan.tile,
            )  # fmt: skip
            programs.combine[plan.grid[:1]](
                A, dstate, edges, sums, plan.channels, plan.spans, backwards=True, **plan.tile
            )
        backwards_programs.backward[plan.grid](
            x, delta, _or(bias, A), A, B, C, D, _or(gate, x), position_ids, _or(initial, A), kept, dy, edges, scratch,
            dx, ddelta, _or(dgate, dx), dB, dC, dA, dD, dbias, _or(dinitial, dA), before, plan.rows, *sizes,
            has_initial=initial is not None, gated=gated, chunk=CHUNK, **given.options, **plan.tile,
        )  # fmt: skip
    return (
        dx, ddelta, dA.sum((0, 1)), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum((0, 1)), None, before,
        None if dinitial is None else dinitial.sum((0, 1)), dgate, None if bias is None else dbias.sum((0, 1)),
    )  # fmt: skip


def _rows(gate: Tensor) -> Tensor:
    """Tokens at even distances, as in a slice of wider rows."""
    even = gate.stride(2) == 1 and gate.stride(0) == gate.shape[1] * gate.stride(1)
    return gate if even else gate.contiguous()


def _values(rows: int, count: int, A: Tensor) -> Tensor:
    """Room for `count` states a row."""
    return A.new_empty((rows, count, *A.shape))


def scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    position_ids: Tensor,
    state: Tensor | None = None,
    initial: Tensor | None = None,
    gate: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.selective_scan` of what fits (`fits`), with what a mixer does around it.

    Args:
        gate: as x; the outputs are multiplied by its silu.
        bias: `(channels,)`; if given, the step sizes are softplus(delta + bias).
    """
    if state is None:
        state = x.new_zeros((x.shape[0], *A.shape), dtype=torch.float32)
    A, D, state = (tensor.float().contiguous() for tensor in (A, D, state))
    initial, bias = (None if tensor is None else tensor.float().contiguous() for tensor in (initial, bias))
    x, delta, B, C, positions = (tensor.contiguous() for tensor in (x, delta, B, C, position_ids))
    gate = None if gate is None else _rows(gate)
    given = Inputs(x, delta, A, B, C, D, positions, state, initial, gate, bias)
    if not torch.is_grad_enabled():
        return _run(given, keeps=False)[:2]
    return SelectiveScan.apply(*given)  # pyright: ignore


def fits(x: Tensor, A: Tensor, *others: Tensor | None) -> bool:
    """Not float64, nor more than 128 states a channel."""
    given = [tensor for tensor in (x, A, *others) if tensor is not None]
    return wide_dtype(*given) != torch.float64 and A.shape[1] <= MOST_STATES and x.numel() > 0


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
    run = scan if fits(x, A, delta, B, C, D, state, initial) else eager
    return run(x, delta, A, B, C, D, position_ids, state, initial)
