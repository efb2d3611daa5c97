"""The residual step of nGPT: every implementation against autograd of the plain formula in float64."""

import subprocess
import sys

import pytest
import torch

from nlrl import kernels

SHAPES = [(1, 1, 8), (3, 5, 192), (2, 7, 100), (300, 1280)]


def plain(h, x, a):
    """The formula as the paper writes it."""
    z = h + a * (x / x.norm(dim=-1, keepdim=True) - h)
    return z / z.norm(dim=-1, keepdim=True)


def inputs(shape, dtype=torch.float64, device="cpu"):
    draw = torch.Generator().manual_seed(sum(shape))
    h, x, dy = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(3))
    a = 0.3 * torch.rand(shape[-1], generator=draw, dtype=torch.float64)
    h = h / h.norm(dim=-1, keepdim=True)
    return [tensor.to(device, dtype) for tensor in (h, 5 * x, a, dy)]


def results(function, h, x, a, dy):
    """Output and the three gradients, in float64."""
    h, x, a = (tensor.detach().clone().requires_grad_() for tensor in (h, x, a))
    y = function(h, x, a)
    return [y.detach().double().cpu(), *(g.double().cpu() for g in torch.autograd.grad(y, (h, x, a), dy))]


def error(found, exact):
    return [(f - e).norm().item() for f, e in zip(found, exact, strict=True)]


def assert_as_exact_as_plain(function, shape, dtype, device="cpu"):
    """Its error is at most 1.5 times that of the plain formula in the same dtype; arguments rounded before both."""
    arguments = inputs(shape, dtype, device)
    exact = results(plain, *(tensor.double() for tensor in arguments))
    ours, yardstick = error(results(function, *arguments), exact), error(results(plain, *arguments), exact)
    floor = [torch.finfo(dtype).eps * e.norm().item() * 0.1 for e in exact]
    for name, mine, theirs, least in zip(("y", "dh", "dx", "da"), ours, yardstick, floor, strict=True):
        assert mine <= max(1.5 * theirs, least), f"{name}: {mine} against {theirs}"


@pytest.fixture(params=["reference", "eager"])
def implementation(request):
    return getattr(kernels.unit_lerp, request.param)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_autograd_in_float64(implementation, shape):
    arguments = inputs(shape)
    for found, exact in zip(results(implementation, *arguments), results(plain, *arguments), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_as_exact_as_the_plain_formula(implementation, shape, dtype):
    assert_as_exact_as_plain(implementation, shape, dtype)


def test_half_precision_x_and_full_precision_h_give_full_precision(implementation):
    h, x, a, dy = inputs((4, 64), torch.float32)
    x = x.bfloat16().requires_grad_()
    y = implementation(h, x, a)
    y.backward(dy)
    assert (y.dtype, x.grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(y, plain(h, x.float(), a), rtol=1e-6, atol=1e-6)


def test_result_is_unit_and_depends_on_the_direction_of_x_only():
    h, x, a, dy = inputs((6, 33))
    y, _, dx, _ = results(kernels.unit_lerp, h, x, a, dy)
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(kernels.unit_lerp(h, 7.5 * x, a), y)
    assert ((dx * x).sum(-1).abs() < 1e-12).all()


def test_zero_vectors_give_no_nan(implementation):
    h, x, a, dy = inputs((3, 16), torch.float32)
    h[1], x[1] = 0, 0
    for tensor in results(implementation, h, x, a, dy):
        assert tensor.isfinite().all()


def test_an_empty_batch_works():
    h, x, a, dy = inputs((0, 4, 16), torch.float32)
    y, _, _, da = results(kernels.unit_lerp, h, x, a, dy)
    assert y.shape == (0, 4, 16)
    assert not da.any()


def test_compiled_calls_give_the_same():
    arguments = inputs((5, 24), torch.float32)
    compiled = torch.compile(lambda h, x, a: kernels.unit_lerp(h, x, a), backend="aot_eager", fullgraph=True)
    for found, exact in zip(results(compiled, *arguments), results(kernels.unit_lerp, *arguments), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7)


def test_importing_kernels_does_not_import_triton():
    subprocess.run([sys.executable, "-c", "import nlrl.kernels, sys; assert 'triton' not in sys.modules"], check=True)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.unit_lerp.triton import unit_lerp

    for shape in SHAPES if device == "cuda" else [(1, 1, 8), (3, 5, 192), (2, 7, 100)]:
        for dtype in (torch.float32, torch.bfloat16):
            assert_as_exact_as_plain(unit_lerp, shape, dtype, device)
    h, x, a, dy = inputs((9, 40), torch.float32, device)
    expected = results(kernels.unit_lerp.reference, h, x.bfloat16(), a, dy)
    for found, exact in zip(results(unit_lerp, h, x.bfloat16(), a, dy), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-5)
    h[1], x[1] = 0, 0
    assert all(tensor.isfinite().all() for tensor in results(unit_lerp, h, x, a, dy))
    assert results(unit_lerp, *inputs((0, 4, 16), torch.float32, device))[0].shape == (0, 4, 16)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device_are_exact_and_repeatable():
    check_triton("cuda")
    arguments = inputs((3000, 192), torch.bfloat16, "cuda")
    first, second = (results(kernels.unit_lerp, *arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert kernels.unit_lerp.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    check_triton("cpu")
