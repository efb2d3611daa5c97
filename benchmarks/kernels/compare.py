"""Whether an implementation is right: results and gradients beside those of the reference in float64.

PyTorch in the same dtype is the yardstick: ours may be wrong by 1.5 times its error, as in the tests, others by more.
PyTorch is the reference itself and, if it is right, the eager implementation, which rounds between its steps as
hardware for the dtype does. Inputs are rounded to the dtype before all of them.

The norm of an error over few numbers, such as the gradient of a bias of 20 channels, is itself random: of two
implementations that are as exact as each other, one comes out 1.5 times worse every now and then. So who fails on the
first inputs is judged once more by the errors of `DRAWS` fresh ones together, their squares summed name by name, for
itself and for the yardstick. What is wrong is wrong in all of them, and chance averages out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nlrl.benchmarks.kernels.cases import Case, Draw
from nlrl.benchmarks.kernels.peers import BenchPeer, Inputs, Shape

OURS_ALLOWED, OTHERS_ALLOWED = 1.5, 16.0
"""Times the error of PyTorch in the same dtype."""
LEAST_SHARE, LEAST_EPSILONS = 0.1, 16
"""An error below this share of the dtype's resolution, or so many of float32's, is none: the yardstick may be zero.
Others are allowed that much more, and so is a single number, which has no neighbours that average its rounding."""
SINGLE = 10
DRAWS = 8
"""Inputs, the first ones included, by which a failure is judged."""
AGREEMENT = {torch.bfloat16: 3e-2, torch.float32: 1e-3}
"""Largest relative difference from the eager implementation at the sizes that are timed."""


class Verdict(NamedTuple):
    """Of an implementation at one shape, or several."""

    right: bool
    worst: str
    """What is the furthest off, in words."""


def gradients_of(
    y: dict[str, Tensor], inputs: Inputs, leaves: list[str], through: tuple[str, ...] | None = None
) -> dict[str, Tensor]:
    """Of a weighted sum of all outputs, or those named; the weights depend on shapes alone."""
    wanted = y if through is None else through
    outputs = {name: value for name, value in y.items() if value.requires_grad and name in wanted}
    weights = [_weights(value) for value in outputs.values()]
    found = torch.autograd.grad(list(outputs.values()), [inputs[n] for n in leaves], weights, allow_unused=True)
    return {name: found_ for name, found_ in zip(leaves, found, strict=True) if found_ is not None}


def _weights(value: Tensor) -> Tensor:
    """In the memory order of the output, and of its dtype."""
    draw = torch.Generator(value.device).manual_seed(value.numel() % 65521)
    numbers = torch.randn(value.shape, generator=draw, device=value.device, dtype=torch.float32)
    return torch.empty_like(value).copy_(numbers.bfloat16())


def copies(inputs: Inputs, leaves: tuple[str, ...] | list[str] = ()) -> Inputs:
    """Of all tensors, so that an op may change them; leaves require a gradient. Memory order stays."""
    made = {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    for name in leaves:
        made[name].requires_grad_()
    return made


def widened(inputs: Inputs) -> Inputs:
    """In float64 what is of floating point; copies in a narrower dtype stay what they are."""

    def wide(name: str, value):
        is_float = isinstance(value, Tensor) and value.is_floating_point() and name not in ("rounded", "temperature")
        return value.double() if is_float else value

    return {name: wide(name, value) for name, value in inputs.items()}


def results(
    case: Case, function: Callable, inputs: Inputs, gradients: bool = True, peer: BenchPeer | None = None,
    through: tuple[str, ...] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Outputs, and as `d<name>` the gradients of the leaves, which all outputs have a part in, or those named."""
    prepared = inputs if peer is None else peer.prepare(inputs)
    wanted = leaves_of(case, prepared) if gradients and case.leaves else []
    prepared = copies(prepared, wanted)
    with torch.set_grad_enabled(bool(wanted)):
        result = function(**prepared)
        outputs = case.outputs(result, inputs | prepared)
    found = {name: value.detach() for name, value in outputs.items()}
    if wanted:
        given = gradients_of(outputs, prepared, wanted, through)
        given = given if peer is None else peer.joined(given)
        found |= {f"d{name}": value for name, value in given.items()}
    return found


def leaves_of(case: Case, prepared: Inputs) -> list[str]:
    """Of the prepared arguments: the op's own, or, where those were cut up, all floating ones."""
    if all(name in prepared for name in case.leaves):
        return list(case.leaves)
    return [name for name, value in prepared.items() if isinstance(value, Tensor) and value.is_floating_point()]


def check(
    case: Case, reference: Callable, function: Callable, shape: Shape, dtype: torch.dtype, device: str,
    allowed: float = OURS_ALLOWED, peer: BenchPeer | None = None, eager: Callable | None = None,
) -> Verdict:  # fmt: skip
    """Holds an implementation to the reference at one shape, gradients included where the op has them."""
    squares: Squares = {}
    for seed in range(DRAWS):
        one = _squares(case, reference, function, shape, Draw(dtype, device, seed), peer, eager)
        squares = {name: squares.get(name, 0) + each for name, each in one.items()}
        if seed == 0 and (verdict := judged(squares, dtype, allowed)).right:
            return verdict
        if not all(each.isfinite().all() for each in one.values()):
            break
    return judged(squares, dtype, allowed)


Squares = dict[str, Tensor]
"""By name: the sums of squares of the error, of the yardstick's error and of the truth, and how many numbers there are.
An error is infinite if a result is not finite, and not a number if there is none."""


def _squares(case: Case, reference: Callable, function: Callable, shape: Shape, draw: Draw, peer, eager) -> Squares:
    """Of one draw of inputs."""
    inputs = case.make(draw, **shape)
    gradients = bool(case.leaves) and shape.get("time") != 1
    through = None if peer is None else peer.through
    exact = results(case, reference, widened(inputs), gradients, through=through)
    yardsticks = [results(case, reference, inputs, gradients, through=through)]
    if eager is not None:
        rounded = results(case, eager, inputs, gradients, through=through)
        if judged(squares_of(rounded, yardsticks, exact), draw.dtype, OTHERS_ALLOWED).right:
            yardsticks.append(rounded)
    return squares_of(results(case, function, inputs, gradients, peer, through), yardsticks, exact)


def squares_of(found: dict[str, Tensor], yardsticks: list[dict[str, Tensor]], exact: dict[str, Tensor]) -> Squares:
    """The yardstick is the one that is further off."""
    squares = {}
    for name, truth in exact.items():
        error = torch.nan if name not in found else (found[name].double() - truth).norm().square().item()
        if name in found and not found[name].isfinite().all():
            error = torch.inf
        plain = max((yardstick[name].double() - truth).norm().square().item() for yardstick in yardsticks)
        sums = (error, plain, truth.norm().square().item(), truth.numel())
        squares[name] = torch.tensor(sums, dtype=torch.float64)
    return squares


def judged(squares: Squares, dtype: torch.dtype, allowed: float) -> Verdict:
    """Compares norms of errors, name by name."""
    share = LEAST_SHARE * allowed / OURS_ALLOWED
    least = max(share * torch.finfo(dtype).eps, LEAST_EPSILONS * torch.finfo(torch.float32).eps)
    worst, text = 0.0, "nothing to compare"
    for name, sums in squares.items():
        error, plain, norm = sums[:3].sqrt().tolist()
        if error != error:
            return Verdict(False, f"{name} is missing")
        if error == torch.inf:
            return Verdict(False, f"{name} is not finite")
        floor = least * (SINGLE if sums[3] == 1 else 1) * norm
        bound = max(allowed * plain, floor, 1e-30)
        if error / bound >= worst:
            worst, text = error / bound, f"{name}: error {error:.2e}, allowed {bound:.2e}"
    return Verdict(worst <= 1, text)


def agrees(found: dict[str, Tensor], eager: dict[str, Tensor], dtype: torch.dtype) -> Verdict:
    """At a size that is timed, where float64 would not fit: beside the eager implementation."""
    worst, text = 0.0, "nothing to compare"
    for name, value in eager.items():
        if name in found and value.numel() > 1:  # a single number may be a sum that comes to almost nothing
            apart = ((found[name].float() - value.float()).norm() / value.float().norm().clamp_min(1e-30)).item()
            if not apart <= worst:
                worst, text = apart, f"{name}: {apart:.2e} from eager"
    return Verdict(worst <= AGREEMENT[dtype], text)
