"""Rotary embedding: every implementation against complex numbers that are turned in float64."""

import pytest
import torch

from nlrl import kernels

SHAPES = [(1, 1, 1, 2), (2, 5, 3, 16), (3, 1, 12, 64), (1, 7, 5, 24)]


def inputs(shape, dtype=torch.float64, angle=torch.float64, device="cpu"):
    """x, a part of a wider projection; cos and sin of every token; the gradient of the result."""
    draw = torch.Generator().manual_seed(sum(shape))
    batch, time, heads, head_dim = shape
    wide, dy = (torch.randn(batch, time, n, head_dim, generator=draw, dtype=torch.float64) for n in (heads + 2, heads))
    turn = 20 * torch.rand(batch, time, 1, head_dim // 2, generator=draw, dtype=torch.float64)
    x = wide.to(device, dtype)[:, :, 1:-1]
    return x, turn.cos().to(device, angle), turn.sin().to(device, angle), dy.to(device, dtype)


def exact(x, cos, sin, interleaved):
    """A pair is a complex number, an angle another; the turn is their product."""
    ordered = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(ordered.contiguous()) * torch.complex(cos, sin))
    return turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)


def results(function, x, cos, sin, dy, interleaved):
    """Output and gradient, in float64."""
    x = x.detach().requires_grad_()
    y = function(x, cos, sin, interleaved)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    return [y.detach().double().cpu(), torch.autograd.grad(y, x, dy)[0].double().cpu()]


def check(function, shape, dtype, interleaved, device="cpu"):
    """Errors of rounding the results, and a few of the products."""
    wide = torch.promote_types(dtype, torch.float32)
    arguments = inputs(shape, dtype, wide, device)
    true = results(exact, *(tensor.double() for tensor in arguments), interleaved)
    for found, expected in zip(results(function, *arguments, interleaved), true, strict=True):
        bound = torch.finfo(dtype).eps / 2 + 4 * torch.finfo(wide).eps
        assert (found - expected).abs().max() <= bound * expected.abs().max()


@pytest.fixture(params=["reference", "eager"])
def implementation(request):
    return getattr(kernels.rotary, request.param)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_pairs_turn_as_complex_numbers_do(implementation, shape, dtype, interleaved):
    check(implementation, shape, dtype, interleaved)


def test_angles_of_one_row_serve_all(implementation):
    x, cos, sin, _ = inputs((3, 4, 2, 8))
    same = [angle[:1].expand(3, -1, -1, -1) for angle in (cos, sin)]
    assert torch.equal(implementation(x, cos[:1], sin[:1]), implementation(x, *same))


def test_lengths_stay():
    x, cos, sin, _ = inputs((2, 3, 4, 16))
    torch.testing.assert_close(kernels.rotary(x, cos, sin).norm(dim=-1), x.norm(dim=-1))


def test_a_compiled_call_gives_the_same():
    arguments = inputs((2, 3, 4, 16), torch.float32, torch.float32)
    compiled = torch.compile(lambda *given: kernels.rotary(*given), backend="aot_eager", fullgraph=True)
    ours, plain = (results(function, *arguments, True) for function in (compiled, kernels.rotary))
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.rotary.triton import rotary

    for shape in [*SHAPES, (300, 40, 6, 32)] if device == "cuda" else SHAPES:
        for interleaved in (False, True):
            check(rotary, shape, torch.float32, interleaved, device)
            check(rotary, shape, torch.float64, interleaved, device)  # goes to `eager`
            if device == "cuda":  # the interpreter cuts to bfloat16 and does not round
                check(rotary, shape, torch.bfloat16, interleaved, device)
    x, cos, sin, _ = inputs((3, 4, 2, 8), torch.float32, torch.float32, device)
    assert torch.equal(rotary(x, cos[:1], sin[:1]), rotary(x, *(angle[:1].expand(3, 4, 1, 4) for angle in (cos, sin))))
    assert rotary(x[:0], cos[:0], sin[:0]).shape == (0, 4, 2, 8)
    across = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(rotary(across, cos, sin), rotary(x, cos, sin))


def test_triton_kernel_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernel_on_the_device():
    check_triton("cuda")
    assert kernels.rotary.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    check_triton("cpu")
