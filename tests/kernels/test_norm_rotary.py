"""Turn, norm and scale of queries and keys against autograd of the plain formula in float64."""

import pytest
import torch

from nlrl import kernels

SHAPES = [(1, 1, 1, 2), (2, 7, 3, 8), (1, 5, 6, 24), (2, 11, 5, 64)]


def inputs(shape, dtype=torch.float64, device="cpu"):
    """x (a part of a wider tensor, as in a model), cos, sin, scale, dy."""
    batch, time, heads, width = shape
    draw = torch.Generator().manual_seed(sum(shape))
    wider = 4 * torch.randn(batch, time, heads + 2, width, generator=draw, dtype=torch.float64)
    angle = 6 * torch.rand(1, time, 1, width // 2, generator=draw, dtype=torch.float64)
    scale, dy = (torch.randn(size, generator=draw, dtype=torch.float64) for size in ((heads, width), shape))
    wide = torch.promote_types(dtype, torch.float32)
    turns = [part.to(device, wide) for part in (angle.cos(), angle.sin(), scale)]
    return [wider.to(device, dtype)[:, :, :heads], *turns, dy.to(device, dtype)]


def results(function, arguments, interleaved):
    x, cos, sin, scale, dy = arguments
    leaves = [part.detach().requires_grad_() for part in (x, scale)]
    y = function(leaves[0], cos, sin, leaves[1], 1e-24, interleaved)
    assert y.dtype == x.dtype
    return [y.detach().double(), *(part.double() for part in torch.autograd.grad(y, leaves, dy))]


def assert_as_exact(function, shape, dtype, interleaved, device="cpu"):
    """Errors are at most 1.5 times those of PyTorch in the same dtype."""
    arguments = inputs(shape, dtype, device)
    exact = results(kernels.norm_rotary.reference, [part.double() for part in arguments], interleaved)
    plain, ours = (results(f, arguments, interleaved) for f in (kernels.norm_rotary.eager, function))
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        least = 8 * torch.finfo(torch.float32).eps * (1 + truth.norm()) + torch.finfo(dtype).eps / 4
        assert (mine - truth).norm() <= 1.5 * (theirs - truth).norm() + least, (shape, dtype, interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_agree_in_float64(shape, interleaved):
    arguments = inputs(shape)
    found, exact = (results(f, arguments, interleaved) for f in (kernels.norm_rotary, kernels.norm_rotary.reference))
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_heads_are_as_long_as_the_root_of_their_width_whatever_they_were():
    x, cos, sin, scale, _ = inputs(SHAPES[2])
    y = kernels.norm_rotary(x, cos, sin, torch.ones_like(scale))
    torch.testing.assert_close(y.norm(dim=-1), torch.full(y.shape[:-1], 24.0**0.5, dtype=torch.float64))
    assert kernels.norm_rotary(0 * x, cos, sin, scale).isfinite().all()


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.norm_rotary.triton import norm_rotary

    for shape in SHAPES:
        for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
            for interleaved in (False, True):
                assert_as_exact(norm_rotary, shape, dtype, interleaved, device)
    arguments = inputs(SHAPES[1], device=device)
    assert norm_rotary(*arguments[:4]).dtype == torch.float64
    assert norm_rotary(arguments[0][:0].float(), *(part.float() for part in arguments[1:4])).shape == (0, 7, 3, 8)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.norm_rotary.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_triton("cpu")
