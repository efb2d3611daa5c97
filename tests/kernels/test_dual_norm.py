"""The mean of two normalised tensors against autograd of the plain formula in float64."""

import pytest
import torch

from nlrl import kernels

SHAPES = [(1, 1), (3, 5, 70), (17, 33), (2, 300)]


def inputs(shape, dtype=torch.float64, device="cpu"):
    """a, b, both weights, and the gradient that comes back."""
    draw = torch.Generator().manual_seed(sum(shape))
    a, b, dy = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(3))
    weights = 1 + 0.3 * torch.randn(2, shape[-1], generator=draw, dtype=torch.float64)
    return [part.to(device, dtype) for part in (3 * a, 0.2 * b - 1, *weights, dy)]


def results(function, arguments):
    """y and the gradients of both tensors and both weights, in float64."""
    *leaves, dy = (part.detach().clone() for part in arguments)
    y = function(*(leaf.requires_grad_() for leaf in leaves), 1e-5)
    assert y.dtype == dy.dtype
    return [part.detach().double() for part in (y, *torch.autograd.grad(y, leaves, dy))]


def assert_as_exact(function, shape, dtype, device="cpu"):
    """Errors are at most 1.5 times those of PyTorch in the same dtype."""
    arguments = inputs(shape, dtype, device)
    exact = results(kernels.dual_norm.reference, [part.double() for part in arguments])
    plain, ours = (results(f, arguments) for f in (kernels.dual_norm.reference, function))
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        least = 4 * torch.finfo(torch.float32).eps * (1 + truth.norm()) + torch.finfo(dtype).eps / 4
        assert (mine - truth).norm() <= 1.5 * (theirs - truth).norm() + least, (shape, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_agree_in_float64(shape):
    arguments = inputs(shape)
    found, exact = (results(f, arguments) for f in (kernels.dual_norm, kernels.dual_norm.reference))
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_both_sides_count_alike_however_large_they_are():
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[-800.0, 600.0]])
    y = kernels.dual_norm(a, b, torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(y, torch.tensor([[-0.1, 1.0]]) * 2**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_those_of_the_plain_formula(dtype):
    assert_as_exact(kernels.dual_norm, (64, 96), dtype)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.dual_norm.triton import dual_norm

    for shape in [*SHAPES, (2, 5000)]:
        for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
            assert_as_exact(dual_norm, shape, dtype, device)
    a, b, *weights, _ = inputs((6, 40), torch.float32, device)
    assert torch.equal(dual_norm(a.t().contiguous().t(), b, *weights), dual_norm(a, b, *weights))
    assert dual_norm(a[:0], b[:0], *weights).shape == (0, 40)
    assert_as_exact(dual_norm, (3, 7), torch.float64, device)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.dual_norm.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_triton("cpu")
