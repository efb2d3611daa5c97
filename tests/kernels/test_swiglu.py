"""The gated activation against autograd of the plain formula."""

import pytest
import torch

from nlrl import kernels


def results(function, up_gate, dy):
    up_gate = up_gate.detach().clone().requires_grad_()
    y = function(up_gate)
    return y.detach(), torch.autograd.grad(y, up_gate, dy)[0]


def inputs(shape, dtype, device="cpu"):
    draw = torch.Generator().manual_seed(sum(shape))
    up_gate = 3 * torch.randn(*shape[:-1], 2 * shape[-1], generator=draw, dtype=torch.float64)
    dy = torch.randn(shape, generator=draw, dtype=torch.float64)
    return up_gate.to(device, dtype), dy.to(device, dtype)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 512), (2, 0, 8), (17, 33)])
def test_value_and_gradient_agree_in_float64(shape):
    arguments = inputs(shape, torch.float64)
    for found, exact in zip(
        results(kernels.swiglu, *arguments), results(kernels.swiglu.reference, *arguments), strict=True
    ):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_those_of_the_plain_formula(dtype):
    check_errors(kernels.swiglu, (64, 96), dtype)


def check_errors(function, shape, dtype, device="cpu"):
    arguments = inputs(shape, dtype, device)
    exact = results(kernels.swiglu.reference, *(tensor.double() for tensor in arguments))
    ours, theirs = (results(f, *arguments) for f in (function, kernels.swiglu.reference))
    for mine, plain, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == dtype
        least = torch.finfo(torch.float32).eps * truth.norm()
        assert (mine.double() - truth).norm() <= 1.5 * (plain.double() - truth).norm() + least


def test_silu_is_on_the_second_half():
    assert kernels.swiglu(torch.tensor([2.0, 0.0])).item() == 0
    assert kernels.swiglu(torch.tensor([0.0, 2.0])).item() == 0
    assert kernels.swiglu(torch.tensor([1.0, 30.0])).item() == pytest.approx(30)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.swiglu.triton import swiglu

    for shape in [(1, 1), (3, 5, 70), (2, 0, 8), (17, 33), (2, 1500)]:
        for dtype in (torch.float32, torch.float64) if device == "cpu" else (torch.float32, torch.bfloat16):
            check_errors(swiglu, shape, dtype, device)
    up_gate, dy = inputs((6, 40), torch.float32, device)
    wide = torch.cat((up_gate, up_gate), -1)[:, :80]
    assert all(torch.equal(a, b) for a, b in zip(results(swiglu, wide, dy), results(swiglu, up_gate, dy), strict=True))


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.swiglu.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    check_triton("cpu")
