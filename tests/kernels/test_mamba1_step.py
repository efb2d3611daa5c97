"""One token of a Mamba-1 mixer: results, windows and states against the plain formula in float64."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from nlrl import kernels
from nlrl.kernels import counters, launches


class Shape(NamedTuple):
    rows: int
    channels: int
    states: int
    rank: int
    taps: int = 4
    bias: bool = True
    normed: bool = True
    first: bool = True


SHAPES = [Shape(1, 4, 2, 1), Shape(5, 24, 16, 6, 4, True, True, True), Shape(18, 70, 10, 20, 3, False, False, False)]
DEVICE_SHAPES = [Shape(64, 3200, 16, 100), Shape(7, 384, 16, 12), Shape(130, 520, 24, 33, 2, False, False, False)]


def inputs(shape: Shape, dtype=torch.float64, device="cpu"):
    """All arguments; rows at the beginning of a document, early and late in one, and a padded one."""
    draw = torch.Generator().manual_seed(sum(shape))
    rows, channels, states, rank = shape[:4]
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*size, scale=1.0, dtype=dtype):
        return (scale * torch.randn(size, generator=draw, dtype=torch.float64)).to(device, dtype)

    x, gate = normal(rows, 3 * channels).split((channels, 2 * channels), -1)
    names = ("dt_norm", "B_norm", "C_norm")
    norms = [1 + normal(size, scale=0.25) for size in (rank, states, states)]
    first = normal(shape.taps - 1, channels), normal(channels, states, dtype=wide)
    return {
        "x": x, "gate": gate[:, :channels], "window": normal(rows, shape.taps - 1, channels),
        "state": normal(rows, channels, states, dtype=wide), "conv_weight": normal(channels, shape.taps, scale=0.5),
        "conv_bias": normal(channels) if shape.bias else None,
        "x_proj": normal(rank + 2 * states, channels, scale=channels**-0.5),
        **dict(zip(names, norms if shape.normed else [None] * 3, strict=True)),
        "dt_proj": normal(channels, rank, scale=rank**-0.5), "dt_bias": normal(channels, dtype=wide) - 1,
        "A_log": normal(channels, states, scale=0.5, dtype=wide), "D": normal(channels, dtype=wide),
        "positions": torch.tensor([9, 0, -1, 1, 2] * rows)[:rows].to(device), "eps": 1e-5,
        "first_window": first[0] if shape.first else None, "first_state": first[1] if shape.first else None,
    }  # fmt: skip


def widened(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def results(function, arguments):
    """y, window and state, in float64, of the rows that are not padding; padding changes nothing."""
    given = arguments | {name: arguments[name].clone() for name in ("window", "state")}
    y, real = function(**given), given["positions"] >= 0
    assert y.isfinite().all()
    for name in ("window", "state"):
        assert torch.equal(given[name][~real], arguments[name][~real])
    return [part[real].double() for part in (y, given["window"], given["state"])]


def assert_as_exact(function, shape: Shape, dtype, device="cpu"):
    """Errors are at most 1.5 times those of PyTorch's calls in the same dtype."""
    arguments = inputs(shape, dtype, device)
    exact = results(kernels.mamba1_step.reference, {name: widened(value) for name, value in arguments.items()})
    plain, ours = (results(f, arguments) for f in (kernels.mamba1_step.eager, function))
    for name, mine, theirs, truth in zip(("y", "window", "state"), ours, plain, exact, strict=True):
        least = 16 * torch.finfo(torch.float32).eps * (1 + truth.norm())
        error, allowed = (mine - truth).norm(), 1.5 * (theirs - truth).norm() + least
        assert error <= allowed, f"{name} {shape} {dtype}: {error}, {allowed}"


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_step_of_the_longer_ops(shape):
    """A text of three tokens in one call and token by token."""
    given = inputs(shape)
    x, gate = (torch.randn(shape.rows, 3, shape.channels, dtype=torch.float64) for _ in range(2))
    where = torch.arange(3).expand(shape.rows, 3)
    first_window, first = given["first_window"], given["first_state"]
    u, window = kernels.causal_conv1d(x, given["conv_weight"], given["conv_bias"], where, None, first_window)
    u = F.silu(u)
    dt, B, C = (u @ given["x_proj"].T).split((shape.rank, shape.states, shape.states), -1)
    if shape.normed:
        norms = (given[name] for name in ("dt_norm", "B_norm", "C_norm"))
        dt, B, C = (F.rms_norm(part, w.shape, w, 1e-5) for part, w in zip((dt, B, C), norms, strict=True))
    delta = F.softplus(dt @ given["dt_proj"].T + given["dt_bias"])
    A = -given["A_log"].exp()
    y, state = kernels.selective_scan(u, delta, A, B, C, given["D"], where, None, first)
    expected = y * F.silu(gate)
    for t in range(3):
        found = kernels.mamba1_step(**given | {"x": x[:, t], "gate": gate[:, t], "positions": where[:, t]})
        torch.testing.assert_close(found, expected[:, t], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(given["window"], window)
    torch.testing.assert_close(given["state"], state)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_plain_formula_in_float64(shape):
    found, exact = (results(f, inputs(shape)) for f in (kernels.mamba1_step, kernels.mamba1_step.reference))
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


SMALL = {
    "slices": [(32, 16, 4, 1), (64, 64, 4, 1)],
    "step_sizes": [(16, 4)],
    "stream": [(4, 8, 4, 128, 0, 0), (2, 16, 4, 128, 0, 0), (16, 8, 4, 128, 0, 1)],
}
"""For the interpreter, which is slow."""


def every_launch(others):
    """(key, numbers), of many rows and of few; of long lists the ends and the middle, as each is compiled anew."""
    for key, numbers in others.items():
        yield from ((key, each) for each in (numbers if len(numbers) < 4 else numbers[:: len(numbers) // 3]))


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.mamba1_step import triton as module

    small = SMALL | {f"{key}/few": numbers for key, numbers in SMALL.items()}
    for key, numbers in every_launch(small if device == "cpu" else module.CANDIDATES):
        with launches.trying("mamba1_step", key, numbers):
            for shape in SHAPES:
                for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
                    assert_as_exact(module.mamba1_step, shape, dtype, device)
    assert not counters.counter(1, torch.device(device)).any()
    wide = inputs(SHAPES[1], device=device)
    for ours, theirs in zip(
        *(results(f, wide) for f in (module.mamba1_step, kernels.mamba1_step.reference)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    shared = torch.arange(40, device=device).expand(SHAPES[1].rows, 40)[:, 0]  # a column that all rows share
    column, apart = (
        results(module.mamba1_step, inputs(SHAPES[1], device=device) | {"positions": positions})
        for positions in (shared, shared.contiguous())
    )
    assert all(torch.equal(a, b) for a, b in zip(column, apart, strict=True))


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.mamba1_step.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_real_sizes_are_exact_and_repeatable(shape, pdl, monkeypatch):
    """Many times over: whoever is last must have seen what the others wrote."""
    from nlrl.kernels.mamba1_step import triton as module

    for key in ("stream", "stream/few"):
        monkeypatch.setitem(module.LAUNCH, key, (*module.LAUNCH[key][:4], int(pdl), *module.LAUNCH[key][5:]))
    for dtype in (torch.bfloat16, torch.float32):
        assert_as_exact(module.mamba1_step, shape, dtype, "cuda")
    arguments = inputs(shape, torch.bfloat16, "cuda")
    first = results(module.mamba1_step, arguments)
    for _ in range(200):
        assert all(torch.equal(a, b) for a, b in zip(results(module.mamba1_step, arguments), first, strict=True))


@needs_cuda
@pytest.mark.parametrize("pdl", [False, True])
def test_a_step_can_be_captured_in_a_graph(pdl, monkeypatch):
    from nlrl.kernels.mamba1_step import triton as module

    for key in ("stream", "stream/few"):
        monkeypatch.setitem(module.LAUNCH, key, (*module.LAUNCH[key][:4], int(pdl), *module.LAUNCH[key][5:]))
    given = inputs(DEVICE_SHAPES[1], torch.bfloat16, "cuda")
    start = {name: given[name].clone() for name in ("window", "state")}
    expected = module.mamba1_step(**given | {name: value.clone() for name, value in start.items()})
    module.mamba1_step(**given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module.mamba1_step(**given)
    for name, value in start.items():
        given[name].copy_(value)
    graph.replay()
    assert torch.equal(y, expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # uninitialised memory is filled with NaN
    check_triton("cpu")
