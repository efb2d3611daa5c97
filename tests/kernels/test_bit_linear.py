"""The one-bit linear map: every implementation against the plain formula in float64."""

import pytest
import torch

from nlrl import kernels
from nlrl.kernels.bit_linear.reference import pack_signs, unpack_signs

SHAPES = [(1, 8, 9), (1, 100, 130), (2, 24, 70), (17, 203, 65), (70, 40, 8)]
"""Rows, inputs, outputs; inputs that are no whole bytes among them."""
DEVICE_SHAPES = [(1, 4096, 4096), (1, 2500, 1111), (16, 2048, 3000), (64, 1000, 512), (200, 2560, 2560)]


def inputs(shape, dtype=torch.float64, device="cpu"):
    """x, bits, alpha, beta, and the matrix they say."""
    rows, k, n = shape
    draw = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(n, k, generator=draw)
    x, alpha, beta = (torch.randn(size, generator=draw, dtype=torch.float64) for size in ((rows, k), (k,), (k,)))
    return [x.to(device, dtype), pack_signs(weight).to(device), alpha.to(device, dtype), (beta / 4).to(device, dtype)]


def assert_as_exact(function, shape, dtype, device="cpu"):
    """Errors are at most 1.5 times those of PyTorch in the same dtype."""
    arguments = inputs(shape, dtype, device)
    x, bits, alpha, beta = arguments
    exact = kernels.bit_linear.reference(x.double(), bits, alpha.double(), beta.double())
    found, plain = function(*arguments), kernels.bit_linear.reference(*arguments)
    assert found.dtype == dtype
    assert found.shape == exact.shape
    least = 4 * torch.finfo(torch.float32).eps * exact.norm()
    assert (found.double() - exact).norm() <= 1.5 * (plain.double() - exact).norm() + least


@pytest.mark.parametrize("shape", SHAPES)
def test_it_multiplies_by_the_matrix_that_the_signs_say(shape):
    x, bits, alpha, beta = inputs(shape)
    matrix = alpha * unpack_signs(bits, x.shape[1], torch.float64) + beta
    torch.testing.assert_close(kernels.bit_linear(x, bits, alpha, beta), x @ matrix.T, rtol=1e-11, atol=1e-11)


def test_signs_come_back_whole_and_a_zero_counts_by_its_sign_bit():
    weight = torch.tensor([[0.0, -0.0, 2.0, -3.0, 1e-30, -1e-30, 1.0, 1.0, -1.0]])
    signs = unpack_signs(pack_signs(weight), 9, torch.float32)
    assert signs.tolist() == [[1, -1, 1, -1, 1, -1, 1, 1, -1]]


def test_gradients_are_those_of_the_formula():
    found, exact = [], []
    for function, into in ((kernels.bit_linear, found), (kernels.bit_linear.reference, exact)):
        x, bits, alpha, beta = inputs((5, 30, 12))
        leaves = [tensor.requires_grad_() for tensor in (x, alpha, beta)]
        y = function(x, bits, alpha, beta)
        into += torch.autograd.grad(y, leaves, torch.arange(60, dtype=torch.float64).view(5, 12))
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_those_of_the_plain_formula(dtype):
    for shape in SHAPES:
        assert_as_exact(kernels.bit_linear, shape, dtype)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.bit_linear.triton import bit_linear

    # The interpreter multiplies the bits of bfloat16.
    for dtype in (torch.float32, torch.float16) if device == "cpu" else (torch.float32, torch.float16, torch.bfloat16):
        for shape in SHAPES:
            assert_as_exact(bit_linear, shape, dtype, device)
    x, bits, alpha, beta = inputs((6, 40, 9), torch.float32, device)
    wide = torch.cat((x, x), 1)[:, :40].view(2, 3, 40)
    torch.testing.assert_close(bit_linear(wide, bits, alpha, beta).view(6, 9), bit_linear(x, bits, alpha, beta))
    assert bit_linear(x[:0], bits, alpha, beta).shape == (0, 9)
    assert bit_linear(x.requires_grad_(), bits, alpha, beta).requires_grad


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.bit_linear.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_real_sizes_are_exact_and_repeatable(shape, dtype):
    assert_as_exact(kernels.bit_linear, shape, dtype, "cuda")
    arguments = inputs(shape, dtype, "cuda")
    assert torch.equal(kernels.bit_linear(*arguments), kernels.bit_linear(*arguments))


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_triton("cpu")
