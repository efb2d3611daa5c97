"""A Mamba-2 mixer: outputs, states and all gradients against the plain formula in float64."""

from typing import NamedTuple

import pytest
import torch

from nlrl import kernels


class Shape(NamedTuple):
    batch: int
    time: int
    heads: int
    head_dim: int
    groups: int
    states: int
    norm_groups: int = 1
    taps: int = 4
    bias: bool = True
    before: bool = True


SHAPES = [Shape(3, 37, 4, 5, 2, 3, 2), Shape(2, 9, 2, 16, 1, 16, 1, 2, False, False)]
DEVICE_SHAPES = [Shape(3, 300, 8, 48, 1, 64), Shape(4, 500, 80, 64, 1, 128, 2, 4, False, False)]


def positions(batch: int, time: int) -> torch.Tensor:
    """A row that goes on with a text, one of several documents with padding behind them, one with padding before."""
    at = torch.arange(time)
    packed = torch.where(at < time // 3, at + 9, (at - time // 3) % max(1, time // 4))
    packed[time - time // 8 - 1 :] = -1
    rows = torch.stack((at + 40, packed, (at - time // 5).clamp_min(-1)))
    return rows[(torch.arange(batch) + 1) % 3]


def inputs(shape: Shape, dtype=torch.float64, device="cpu"):
    draw = torch.Generator().manual_seed(sum(shape))
    batch, time, heads, head_dim, groups, states, norm_groups, taps, bias, before = shape
    wide, inner = torch.promote_types(dtype, torch.float32), heads * head_dim
    conv = inner + 2 * groups * states

    def normal(*size, scale=1.0, dtype=dtype):
        return (scale * torch.randn(size, generator=draw, dtype=torch.float64)).to(device, dtype)

    return {
        "projected": normal(batch, time, inner + conv + heads), "conv_weight": normal(conv, taps, scale=0.5),
        "conv_bias": normal(conv) if bias else None, "A_log": normal(heads, dtype=wide),
        "D": normal(heads, dtype=wide), "dt_bias": normal(heads, dtype=wide) - 2,
        "norm_weight": 1 + normal(inner, scale=0.25), "position_ids": positions(batch, time).to(device), "eps": 1e-5,
        "groups": groups, "norm_groups": norm_groups, "window": normal(batch, taps - 1, conv) if before else None,
        "state": normal(batch, heads, head_dim, states, dtype=wide) if before else None,
    }  # fmt: skip


def results(function, arguments):
    """By name, in float64: outputs at tokens, window, state, and the gradients of all that has one."""
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    y, window, state = function(**arguments | leaves)
    assert y.isfinite().all()
    real = (arguments["position_ids"] >= 0)[..., None]
    outputs = {"y": y.masked_fill(~real, 0), "window": window, "state": state}
    draw = torch.Generator().manual_seed(3)
    weights = [torch.randn(part.shape, generator=draw).to(part) for part in outputs.values()]
    gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), weights)
    assert all(gradient.dtype == leaf.dtype for gradient, leaf in zip(gradients, leaves.values(), strict=True))
    outputs |= {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: value.detach().double() for name, value in outputs.items()}


def widened(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_as_exact(function, shape: Shape, dtype, device="cpu"):
    """Errors are at most 1.5 times those of PyTorch's calls in the same dtype."""
    arguments = inputs(shape, dtype, device)
    exact = results(kernels.mamba2_mixer.reference, {name: widened(value) for name, value in arguments.items()})
    yardsticks = [results(f, arguments) for f in (kernels.mamba2_mixer.reference, kernels.mamba2_mixer.eager)]
    factor = 3 if device == "cpu" and dtype == torch.bfloat16 else 1.5  # the interpreter cuts off instead of rounding
    torch.use_deterministic_algorithms(True, warn_only=True)  # uninitialised memory is filled with NaN
    found = results(function, arguments)
    torch.use_deterministic_algorithms(False)
    for name, truth in exact.items():
        error, plain = (found[name] - truth).norm(), max((one[name] - truth).norm() for one in yardsticks)
        few = 2 if truth.numel() < 16 else 1  # rounding does not average out
        allowed = few * factor * plain + 16 * torch.finfo(torch.float32).eps * (1 + truth.norm())
        assert error <= allowed, f"{name} {shape} {dtype}: {error}, {allowed} of {truth.norm()}"


@pytest.mark.parametrize("implementation", ["eager", "compiled"])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_plain_formula_in_float64(shape, implementation):
    function = getattr(kernels.mamba2_mixer, implementation)
    found, exact = (results(f, inputs(shape)) for f in (function, kernels.mamba2_mixer.reference))
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_make_the_whole(shape):
    """Called with what the call before left."""
    arguments = inputs(shape)
    expected = kernels.mamba2_mixer(**arguments)
    parts, left = [], {name: arguments[name] for name in ("window", "state")}
    for cut in (slice(0, 1), slice(1, 6), slice(6, None)):
        some = {name: arguments[name][:, cut] for name in ("projected", "position_ids")}
        y, *after = kernels.mamba2_mixer(**arguments | some | left)
        parts.append(y)
        left = dict(zip(left, after, strict=True))
    real = arguments["position_ids"] >= 0
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[0][real])
    torch.testing.assert_close((left["window"], left["state"]), expected[1:])


@torch.no_grad()
def test_window_and_state_are_written_over():
    arguments = inputs(SHAPES[0])
    expected = kernels.mamba2_mixer(**arguments)
    y, window, state = kernels.mamba2_mixer(**arguments, overwrite=True)
    assert window is arguments["window"]
    assert state is arguments["state"]
    for found, wanted in zip((y, window, state), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.mamba2_mixer.triton import mamba2_mixer

    for shape in SHAPES:
        for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
            assert_as_exact(mamba2_mixer, shape, dtype, device)
    wide = inputs(SHAPES[1], device=device)
    for ours, theirs in zip(mamba2_mixer(**wide), kernels.mamba2_mixer.reference(**wide), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.mamba2_mixer.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_real_sizes_are_exact_and_repeatable(shape, dtype):
    assert_as_exact(kernels.mamba2_mixer, shape, dtype, "cuda")
    first, second = (results(kernels.mamba2_mixer, inputs(shape, dtype, "cuda")) for _ in range(2))
    assert all(
        torch.equal(first[name], second[name]) for name in ("y", "state", "dprojected", "dA_log", "dnorm_weight")
    )


if __name__ == "__main__":
    import bounds

    torch.set_num_threads(1)
    with bounds.checked():
        check_triton("cpu")
