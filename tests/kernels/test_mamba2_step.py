"""One token of a Mamba-2 mixer: results, windows and states against the plain formula in float64."""

from typing import NamedTuple

import pytest
import torch

from nlrl import kernels
from nlrl.kernels import counters


class Shape(NamedTuple):
    rows: int
    heads: int
    head_dim: int
    groups: int
    states: int
    norm_groups: int = 1
    taps: int = 4
    bias: bool = True


SHAPES = [Shape(1, 1, 4, 1, 2), Shape(5, 4, 8, 1, 16), Shape(3, 6, 12, 2, 10, 3, 3, False)]
DEVICE_SHAPES = [Shape(64, 8, 64, 1, 128), Shape(7, 80, 64, 1, 128), Shape(130, 24, 48, 2, 64, 2)]


def inputs(shape: Shape, dtype=torch.float64, device="cpu"):
    """All arguments; rows at the beginning of a document, early and late in one, and a padded one."""
    draw = torch.Generator().manual_seed(sum(shape))
    inner, conv = shape.heads * shape.head_dim, shape.heads * shape.head_dim + 2 * shape.groups * shape.states

    def normal(*size):
        return torch.randn(size, generator=draw, dtype=torch.float64)

    wide = torch.promote_types(dtype, torch.float32)
    narrow = [normal(shape.rows, inner + conv + shape.heads), normal(shape.rows, shape.taps - 1, conv)]
    state = normal(shape.rows, shape.heads, shape.head_dim, shape.states)
    taps, bias = normal(conv, shape.taps) / 2, normal(conv)
    A_log, D, dt_bias = normal(shape.heads), normal(shape.heads), normal(shape.heads)
    positions = torch.tensor([9, 0, -1, 1, 2] * shape.rows)[: shape.rows].to(device)
    return {
        "projected": narrow[0].to(device, dtype), "window": narrow[1].to(device, dtype),
        "state": state.to(device, wide),
        "conv_weight": taps.to(device, dtype), "conv_bias": bias.to(device, dtype) if shape.bias else None,
        "A_log": A_log.to(device, wide), "D": D.to(device, wide), "dt_bias": dt_bias.to(device, wide),
        "norm_weight": (1 + normal(inner) / 4).to(device, dtype), "positions": positions, "eps": 1e-5,
        "groups": shape.groups, "norm_groups": shape.norm_groups,
    }  # fmt: skip


def results(function, arguments):
    """y, window and state, in float64, of the rows that are not padding; padding changes nothing."""
    written = {name: arguments[name].clone() for name in ("window", "state")}
    given = arguments | written
    y, real = function(**given), given["positions"] >= 0
    assert y.isfinite().all()
    for name in ("window", "state"):
        assert torch.equal(given[name][~real], arguments[name][~real])
    return [part[real].double() for part in (y, given["window"], given["state"])]


def assert_as_exact(function, shape: Shape, dtype, device="cpu"):
    """Errors are at most 1.5 times those of PyTorch's calls in the same dtype."""
    arguments = inputs(shape, dtype, device)
    wide = {
        name: part.double() if isinstance(part, torch.Tensor) and part.is_floating_point() else part
        for name, part in arguments.items()
    }
    exact = results(kernels.mamba2_step.reference, wide)
    plain, ours = (results(f, arguments) for f in (kernels.mamba2_step.eager, function))
    for name, mine, theirs, truth in zip(("y", "window", "state"), ours, plain, exact, strict=True):
        least = 16 * torch.finfo(torch.float32).eps * (1 + truth.norm())
        error, allowed = (mine - truth).norm(), 1.5 * (theirs - truth).norm() + least
        assert error <= allowed, f"{name} {shape} {dtype}: {error}, {allowed}"


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_step_of_the_longer_ops(shape):
    """A text of three tokens in one call and token by token."""
    arguments = inputs(shape)
    sizes = (shape.heads * shape.head_dim, len(arguments["conv_weight"]), shape.heads)
    texts = torch.randn(shape.rows, 3, sum(sizes), dtype=torch.float64)
    where = torch.arange(3).expand(shape.rows, 3)
    z, mixed, dt = texts.split(sizes, -1)
    mixed, window = kernels.causal_conv1d(mixed, arguments["conv_weight"], arguments["conv_bias"], where)
    shared = shape.groups * shape.states
    x, B, C = torch.nn.functional.silu(mixed).split((sizes[0], shared, shared), -1)
    parts = x.unflatten(-1, (shape.heads, -1)), B.unflatten(-1, (shape.groups, -1)), C.unflatten(-1, (shape.groups, -1))
    dt = torch.nn.functional.softplus(dt + arguments["dt_bias"])
    y, state = kernels.ssd(parts[0], dt, -arguments["A_log"].exp(), *parts[1:], where, None, arguments["D"])
    g = (y.flatten(-2) * torch.nn.functional.silu(z)).unflatten(-1, (shape.norm_groups, -1))
    expected = (g * (g.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).flatten(-2) * arguments["norm_weight"]
    for t in range(3):
        found = kernels.mamba2_step(**arguments | {"projected": texts[:, t], "positions": where[:, t]})
        torch.testing.assert_close(found, expected[:, t], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(arguments["window"][:, -min(3, shape.taps - 1) :], window[:, -min(3, shape.taps - 1) :])
    torch.testing.assert_close(arguments["state"], state)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_plain_formula_in_float64(shape):
    found, exact = (results(f, inputs(shape)) for f in (kernels.mamba2_step, kernels.mamba2_step.reference))
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def check_shared_positions(function, device: str) -> None:
    """A column of positions that rows share is read by its strides; behind it lie those of other tokens."""
    arguments = inputs(SHAPES[1], torch.float32, device)
    arguments["positions"] = torch.arange(40, device=device).expand(SHAPES[1].rows, 40)[:, 0]
    apart = arguments | {"positions": arguments["positions"].contiguous()}
    for found, expected in zip(results(function, arguments), results(function, apart), strict=True):
        assert torch.equal(found, expected)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.mamba2_step import triton as module

    for at_once in (8, module.CHANNELS):
        module.CHANNELS = at_once
        for shape in SHAPES:
            for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
                assert_as_exact(module.mamba2_step, shape, dtype, device)
    assert not any(counter.any() for of_device in counters._counters.values() for counter in of_device)
    check_shared_positions(module.mamba2_step, device)
    wide = inputs(SHAPES[1], device=device)
    torch.testing.assert_close(results(module.mamba2_step, wide), results(kernels.mamba2_step.reference, wide))


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.mamba2_step.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_real_sizes_are_exact_and_repeatable(shape, dtype):
    """Many times over: whoever is last must have seen what the others wrote."""
    assert_as_exact(kernels.mamba2_step, shape, dtype, "cuda")
    arguments = inputs(shape, dtype, "cuda")
    first = results(kernels.mamba2_step, arguments)
    for _ in range(200):
        assert all(torch.equal(a, b) for a, b in zip(results(kernels.mamba2_step, arguments), first, strict=True))


if __name__ == "__main__":
    import bounds

    torch.set_num_threads(1)
    with bounds.checked():
        check_triton("cpu")
