"""RMSNorm against autograd of the plain formula in float64."""

import pytest
import torch

from nlrl import kernels

SHAPES = [(1, 1), (3, 5, 70), (17, 33), (2, 300)]


def inputs(shape, dtype=torch.float64, device="cpu", added=False):
    """x, weight, residual, and the gradients that come back."""
    draw = torch.Generator().manual_seed(sum(shape))
    x, residual, dy, ds = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(4))
    weight = 1 + 0.3 * torch.randn(shape[-1], generator=draw, dtype=torch.float64)
    parts = [3 * x, weight, residual if added else None, dy, ds]
    return [part if part is None else part.to(device, dtype) for part in parts]


def results(function, arguments, used=(True, True)):
    """Outputs and gradients in float64; which of the outputs are used."""
    x, weight, residual, dy, ds = (part if part is None else part.detach().clone() for part in arguments)
    leaves = [part.requires_grad_() for part in (x, weight, residual) if part is not None]
    found = function(x, weight, 1e-5, residual)
    outputs = (found,) if residual is None else found
    kept = [(y, d) for y, d, use in zip(outputs, (dy, ds), used, strict=False) if use]
    gradients = torch.autograd.grad([y for y, _ in kept], leaves, [d for _, d in kept], allow_unused=True)
    every = [*outputs, *(x.new_zeros(()) if part is None else part for part in gradients)]
    return [part.detach().double() for part in every]


def assert_as_exact(function, shape, dtype, device="cpu", added=False):
    """Errors are at most 1.5 times those of PyTorch in the same dtype."""
    arguments = inputs(shape, dtype, device, added)
    exact = results(kernels.rms_norm.reference, [part if part is None else part.double() for part in arguments])
    plain, ours = (results(f, arguments) for f in (kernels.rms_norm.reference, function))
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        least = 4 * torch.finfo(torch.float32).eps * (1 + truth.norm()) + torch.finfo(dtype).eps / 4
        assert (mine - truth).norm() <= 1.5 * (theirs - truth).norm() + least, (shape, dtype, added)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_agree_in_float64(shape, added):
    arguments = inputs(shape, added=added)
    found, exact = (results(f, arguments) for f in (kernels.rms_norm, kernels.rms_norm.reference))
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_every_row_has_the_size_of_the_weight():
    x = torch.tensor([[3.0, 4.0], [30.0, -40.0]])
    y = kernels.rms_norm(x, torch.tensor([1.0, 2.0]), 0.0)
    expected = torch.tensor([[0.6, 1.6], [0.6, -1.6]]) * 2**0.5
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_those_of_the_plain_formula(dtype):
    for added in (False, True):
        assert_as_exact(kernels.rms_norm, (64, 96), dtype, added=added)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.rms_norm.triton import rms_norm

    for shape in [*SHAPES, (2, 5000)]:
        for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
            for added in (False, True):
                assert_as_exact(rms_norm, shape, dtype, device, added)
    arguments = inputs((6, 40), torch.float32, device, added=True)
    for used in ((True, False), (False, True)):
        found, plain = (results(f, arguments, used) for f in (rms_norm, kernels.rms_norm.reference))
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs.expand_as(ours), rtol=1e-4, atol=1e-5)
    x, weight, *_ = arguments
    turned = x.t().contiguous().t()
    assert torch.equal(rms_norm(turned, weight), rms_norm(x, weight))
    assert rms_norm(x[:0], weight).shape == (0, 40)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.rms_norm.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_triton("cpu")
