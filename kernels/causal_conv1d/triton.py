"""The depthwise causal convolution for CUDA; formulas in `reference`.

1. A program goes over the tokens of some channels tile by tile and reads each tap where it lies: the call's inputs,
   the window or `initial`. No tensor with both window and inputs is made. Inputs may be a slice of wider rows, as they
   often are. Weights, whose loads are short, are read once a program; taps of a tile but the first are in the level-1
   cache.
2. The first program of a row and channels also writes the new window. A single token has a program of its own.
3. The backward's programs hold inputs, those of the window included, and look at the outputs that saw them: the same
   products give an input's gradient and, summed, the weight's. What is a sum over tokens stays with the thread that has
   the tokens until the program ends, is then written in parts, added up in a fixed order. What `initial` did depends on
   the position alone, so its gradient needs only sums of output gradients for each of the first K-1 positions.
4. What stands in padding changes nothing; its output and its gradients are zeros.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from nlrl.kernels.causal_conv1d.eager import causal_conv1d as eager
from nlrl.kernels.causal_conv1d.eager import head
from nlrl.kernels.causal_conv1d.triton_programs import backward, forward, update
from nlrl.kernels.launches import choose

LAUNCH = {"forward": (16, 128, 8, 4), "backward": (8, 128, 32, 4), "update": (512, 2)}
"""forward, backward: tokens of a tile, channels, tiles of a program at most, warps. update: channels, warps."""
CANDIDATES = {
    "forward": [
        (16, 128, 8, 4), (16, 128, 4, 4), (16, 128, 16, 4), (32, 128, 4, 4), (32, 128, 4, 8), (16, 256, 8, 8),
        (8, 256, 16, 4), (8, 128, 16, 2), (32, 64, 8, 4), (64, 64, 4, 8), (16, 64, 16, 2), (8, 512, 16, 8),
    ],
    "backward": [
        (8, 128, 32, 4), (8, 128, 16, 4), (16, 128, 16, 4), (16, 128, 16, 8), (8, 64, 32, 2), (8, 64, 32, 4),
        (16, 64, 16, 4), (32, 64, 8, 8), (8, 256, 32, 8), (16, 256, 16, 8), (4, 256, 64, 4), (16, 32, 32, 2),
    ],
    "update": [(128, 1), (256, 1), (256, 2), (512, 1), (512, 2), (512, 4), (1024, 4), (1024, 8)],
}  # fmt: skip
FEWEST_PROGRAMS = 1024
"""Programs have fewer tiles where there would be fewer programs than this: eight a processor."""
POSITIONS = 1024
"""Read at once to find a row's last token."""


class CausalConv1d(torch.autograd.Function):
    """x: channels side by side, any other strides; the others contiguous; at least two taps."""

    @staticmethod
    def forward(ctx, x, weight, bias, position_ids, window, initial, silu) -> tuple[Tensor, Tensor]:
        y, after, end = _run(x, weight, bias, position_ids, window, initial, silu)
        ctx.save_for_backward(x, weight, bias, position_ids, window, initial, end)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dafter) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, position_ids, window, initial, end = ctx.saved_tensors
        dx = x.new_empty(x.shape)
        dwindow = None if window is None else torch.empty_like(window)
        if dy is not None and ctx.silu:
            dy = _run(x, weight, bias, position_ids, window, initial, 2, dy.contiguous())[0]
        dy = x.new_zeros(x.shape) if dy is None else dy.contiguous()
        rows, time, channels = x.shape
        taps = weight.shape[1]
        reach = time if window is None else time + taps - 1
        grid, tile = _tiles("backward", rows, reach, channels)
        slots = taps + 1 if initial is None else 2 * taps
        sums = x.new_empty((rows, grid[1], slots, channels), dtype=torch.float32)
        with torch.cuda.device_of(x):
            backward[grid](
                x, weight, position_ids, x if window is None else window, end, dy,
                dy if dafter is None else dafter.contiguous(), dx, dx if dwindow is None else dwindow, sums,
                x.stride(0), x.stride(1), time, channels, taps=taps, has_window=window is not None,
                has_initial=initial is not None, has_dafter=dafter is not None,
                block_k=triton.next_power_of_2(taps), **tile,
            )  # fmt: skip
        sums = sums.sum((0, 1))
        dweight, dinitial = sums[:taps].T, None
        if initial is not None:
            through_weight, dinitial = _through_initial(weight, initial, sums[taps + 1 :])
            dweight = dweight + through_weight
        dbias = None if bias is None else sums[taps].to(bias.dtype)
        return dx, torch.empty_like(weight).copy_(dweight), dbias, None, dwindow, dinitial, None


def _run(x, weight, bias, position_ids, window, initial, silu, dy=None) -> tuple[Tensor, Tensor, Tensor]:
    """y, the new window and how many places each row has up to its last token, int32; given dy, the gradient of what
    silu is taken of, and noise."""
    rows, time, channels = x.shape
    taps = weight.shape[1]
    y, after = x.new_empty(x.shape), x.new_empty((rows, taps - 1, channels))
    end = position_ids.new_empty((rows,), dtype=torch.int32)
    given = [weight, x if bias is None else bias, position_ids, *(x if t is None else t for t in (window, initial))]
    known = {
        "taps": taps, "has_bias": bias is not None, "has_window": window is not None,
        "has_initial": initial is not None, "silu": silu, "block_k": triton.next_power_of_2(taps),
    }  # fmt: skip
    with torch.cuda.device_of(x):
        if time == 1 and dy is None:
            block, warps = choose("causal_conv1d", "update", LAUNCH["update"])
            grid = (triton.cdiv(channels, block), rows)
            update[grid](x, *given, y, after, end, x.stride(0), channels, **known, block_c=block, num_warps=warps)
        else:
            grid, tile = _tiles("forward", rows, time, channels)
            forward[grid](
                x, *given, x if dy is None else dy, y, after, end, x.stride(0), x.stride(1), time, channels, **known,
                positions=POSITIONS, **tile,
            )  # fmt: skip
    return y, after, end


def _tiles(key: str, rows: int, time: int, channels: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid, and what its programs do."""
    block_t, block_c, steps, warps = choose("causal_conv1d", key, LAUNCH[key])
    block_t, block_c = min(block_t, triton.next_power_of_2(time)), min(block_c, triton.next_power_of_2(channels))
    columns, tiles = rows * triton.cdiv(channels, block_c), triton.cdiv(time, block_t)
    steps = max(1, min(steps, columns * tiles // FEWEST_PROGRAMS))
    grid = (columns, triton.cdiv(tiles, steps))
    return grid, {"steps": steps, "block_t": block_t, "block_c": block_c, "num_warps": warps}


def _through_initial(weight: Tensor, initial: Tensor, dhead: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight, in float32, and of initial from those of what it adds to the first K-1 positions."""
    with torch.enable_grad():
        leaves = [tensor.detach().float().requires_grad_() for tensor in (weight, initial)]
        dweight, dinitial = torch.autograd.grad(head(*leaves), leaves, dhead)
    return dweight, dinitial.to(initial.dtype)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position_ids: Tensor,
    window: Tensor | None = None,
    initial: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_conv1d`; and, if asked for, silu of its outputs, which the backward makes again. `eager`
    does what does not fit here: float64, a single tap."""
    given = [tensor.dtype for tensor in (x, weight, bias, window, initial) if tensor is not None]
    if torch.float64 in given or weight.shape[1] == 1 or not x.numel():
        y, after = eager(x, weight, bias, position_ids, window, initial)
        return F.silu(y) if silu else y, after
    x = x if x.stride(2) == 1 else x.contiguous()
    weight, position_ids = weight.contiguous(), position_ids.contiguous()
    bias, initial = (None if tensor is None else tensor.contiguous() for tensor in (bias, initial))
    window = None if window is None else window.to(x.dtype).contiguous()
    if not torch.is_grad_enabled():
        return _run(x, weight, bias, position_ids, window, initial, int(silu))[:2]
    return CausalConv1d.apply(x, weight, bias, position_ids, window, initial, int(silu))  # pyright: ignore
