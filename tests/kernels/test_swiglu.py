"""The gated activation against autograd of the plain formula."""

import pytest
import torch

from nlrl import kernels


def results(function, up_gate, dy):
    up_gate = up_gate.detach().clone().requires_grad_()
    y = function(up_gate)
    return y.detach(), torch.autograd.grad(y, up_gate, dy)[0]


def inputs(shape, dtype):
    draw = torch.Generator().manual_seed(sum(shape))
    up_gate = 3 * torch.randn(*shape[:-1], 2 * shape[-1], generator=draw, dtype=torch.float64)
    return up_gate.to(dtype), torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 512), (2, 0, 8), (17, 33)])
def test_value_and_gradient_agree_in_float64(shape):
    arguments = inputs(shape, torch.float64)
    for found, exact in zip(
        results(kernels.swiglu, *arguments), results(kernels.swiglu.reference, *arguments), strict=True
    ):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_those_of_the_plain_formula(dtype):
    arguments = inputs((64, 96), dtype)
    exact = results(kernels.swiglu.reference, *(tensor.double() for tensor in arguments))
    ours, theirs = (results(function, *arguments) for function in (kernels.swiglu, kernels.swiglu.reference))
    for mine, plain, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - truth).norm() <= 1.5 * (plain.double() - truth).norm()


def test_silu_is_on_the_second_half():
    assert kernels.swiglu(torch.tensor([2.0, 0.0])).item() == 0
    assert kernels.swiglu(torch.tensor([0.0, 2.0])).item() == 0
    assert kernels.swiglu(torch.tensor([1.0, 30.0])).item() == pytest.approx(30)
