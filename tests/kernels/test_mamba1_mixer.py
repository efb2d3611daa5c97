"""A Mamba-1 mixer: outputs, states and all gradients against the plain formula in float64."""

from typing import NamedTuple

import pytest
import torch

from nlrl import kernels


class Shape(NamedTuple):
    batch: int
    time: int
    channels: int
    states: int
    rank: int
    taps: int = 4
    normed: bool = True
    before: bool = True


SHAPES = [Shape(3, 37, 20, 4, 5), Shape(2, 9, 24, 16, 3, 2, False, False)]
DEVICE_SHAPES = [Shape(3, 300, 384, 16, 12), Shape(4, 1000, 200, 16, 100, 4, False, False)]
FIXED = ("position_ids", "eps")


def positions(batch: int, time: int) -> torch.Tensor:
    """A row that goes on with a text, one of several documents with padding behind them, one with padding before."""
    at = torch.arange(time)
    packed = torch.where(at < time // 3, at + 9, (at - time // 3) % max(1, time // 4))
    packed[time - time // 8 - 1 :] = -1
    rows = torch.stack((at + 40, packed, (at - time // 5).clamp_min(-1)))
    return rows[(torch.arange(batch) + 1) % 3]


def inputs(shape: Shape, dtype=torch.float64, device="cpu"):
    """x and gate are slices of one tensor, as in a model."""
    draw = torch.Generator().manual_seed(sum(shape))
    batch, time, channels, states, rank, taps, normed, before = shape
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*size, scale=1.0, dtype=dtype):
        return (scale * torch.randn(size, generator=draw, dtype=torch.float64)).to(device, dtype)

    parts = normal(batch, time, 2 * channels + 3)
    norms = [1 + normal(size, scale=0.25) for size in (rank, states, states)]
    return {
        "x": parts[..., :channels], "gate": parts[..., channels : 2 * channels],
        "conv_weight": normal(channels, taps, scale=0.5), "conv_bias": normal(channels) if normed else None,
        "x_proj": normal(rank + 2 * states, channels, scale=channels**-0.5),
        **dict(zip(("dt_norm", "B_norm", "C_norm"), norms if normed else [None] * 3, strict=True)),
        "dt_proj": normal(channels, rank, scale=rank**-0.5), "dt_bias": normal(channels, dtype=wide) - 2,
        "A_log": normal(channels, states, scale=0.5, dtype=wide), "D": normal(channels, dtype=wide),
        "position_ids": positions(batch, time).to(device), "eps": 1e-5,
        "window": normal(batch, taps - 1, channels) if before else None,
        "state": normal(batch, channels, states, dtype=wide) if before else None,
        "first_window": normal(taps - 1, channels) if before else None,
        "first_state": normal(channels, states, dtype=wide) if before else None,
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
    exact = results(kernels.mamba1_mixer.reference, {name: widened(value) for name, value in arguments.items()})
    yardsticks = [results(f, arguments) for f in (kernels.mamba1_mixer.reference, kernels.mamba1_mixer.eager)]
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
    function = getattr(kernels.mamba1_mixer, implementation)
    found, exact = (results(f, inputs(shape)) for f in (function, kernels.mamba1_mixer.reference))
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_make_the_whole(shape):
    """Called with what the call before left."""
    arguments = inputs(shape)
    expected = kernels.mamba1_mixer(**arguments)
    parts, left = [], {name: arguments[name] for name in ("window", "state")}
    for cut in (slice(0, 1), slice(1, 6), slice(6, None)):
        some = {name: arguments[name][:, cut] for name in ("x", "gate", "position_ids")}
        y, *after = kernels.mamba1_mixer(**arguments | some | left)
        parts.append(y)
        left = dict(zip(left, after, strict=True))
    real = arguments["position_ids"] >= 0
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[0][real])
    torch.testing.assert_close((left["window"], left["state"]), expected[1:])


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.mamba1_mixer.triton import mamba1_mixer
    from nlrl.kernels.selective_scan import triton as scan

    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setattr(scan, "CHUNK", 8)  # the interpreter is slow
        assert_as_exact(mamba1_mixer, SHAPES[0], torch.float32, device)
        assert_as_exact(mamba1_mixer, SHAPES[1], torch.bfloat16, device)
        patch.setattr(scan, "PROGRAMS_PER_PROCESSOR", 0)  # no room for spans side by side
        assert_as_exact(mamba1_mixer, SHAPES[1]._replace(normed=True, before=True), torch.float32, device)
    wide = inputs(SHAPES[1], device=device)
    for ours, theirs in zip(mamba1_mixer(**wide), kernels.mamba1_mixer.reference(**wide), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.mamba1_mixer.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_real_sizes_are_exact_and_repeatable(shape, dtype):
    assert_as_exact(kernels.mamba1_mixer, shape, dtype, "cuda")
    first, second = (results(kernels.mamba1_mixer, inputs(shape, dtype, "cuda")) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in ("y", "state", "dgate", "dA_log", "ddt_bias"))


if __name__ == "__main__":
    import bounds

    torch.set_num_threads(1)
    with bounds.checked():
        check_triton("cpu")
