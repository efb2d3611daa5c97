"""Adam and weight normalisation in one: every implementation against the two done one after the other in float64."""

import pytest
import torch

from nlrl import kernels
from nlrl.kernels import launches

SETTINGS = dict(learning_rate=0.02, betas=(0.9, 0.95), eps=1e-8)
SHAPES = [(1, 8), (5, 48), (200, 33), (64, 192), (12, 300)]


def inputs(shape, axis: int, dtype=torch.float64, device="cpu"):
    """Weight, three gradients, moments after some steps."""
    draw = torch.Generator().manual_seed(sum(shape))
    weight, m, *gradients = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(5))
    weight /= weight.norm(dim=axis, keepdim=True)
    state = [weight, 0.1 * m, 0.1 * m.square() + 0.05 * torch.rand(shape, generator=draw, dtype=torch.float64)]
    return [x.to(device, dtype) for x in state], [0.3 * x.to(device, dtype) for x in gradients]


def results(function, state, gradients, axis: int, first: int = 5, **more):
    """Weight and moments after the steps, in float64."""
    weight, m, v = (x.clone() for x in state)
    for number, gradient in enumerate(gradients, first):
        step = torch.tensor(float(number), device=weight.device)
        function(weight, gradient, m, v, step, axis=axis, **SETTINGS, **more)
    return [x.double().cpu() for x in (weight, m, v)]


def one_after_the_other(weight, gradient, m, v, step, axis, learning_rate, betas, eps):
    """`torch.optim.Adam`'s formula, then a division by lengths."""
    m.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
    v.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    time = step.item()
    denominator = v.sqrt() / (1 - betas[1] ** time) ** 0.5 + eps
    weight.addcdiv_(m, denominator, value=-learning_rate / (1 - betas[0] ** time))
    weight /= weight.norm(dim=axis, keepdim=True)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_both_steps_in_float64(shape, axis):
    arguments = inputs(shape, axis)
    expected = results(one_after_the_other, *arguments, axis)
    for found, exact in zip(results(kernels.adam_normalise.reference, *arguments, axis), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-13, atol=1e-14)


def assert_as_exact_as_plain(function, shape, axis, device="cpu"):
    """In float32: error at most 1.5 times that of the two steps one after the other; vectors unit."""
    arguments = inputs(shape, axis, torch.float32, device)
    exact = results(one_after_the_other, *([x.double().cpu() for x in part] for part in arguments), axis)
    found, yardstick = (results(f, *arguments, axis) for f in (function, one_after_the_other))
    for name, mine, theirs, best in zip(("weight", "exp_avg", "exp_avg_sq"), found, yardstick, exact, strict=True):
        floor = 0.5 * torch.finfo(torch.float32).eps * best.norm()
        assert (mine - best).norm() <= max(1.5 * (theirs - best).norm(), floor), name
    assert (found[0].norm(dim=axis) - 1).abs().max() < 3e-7 * max(1, shape[axis] / 1000)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_as_exact_as_the_two_steps(shape, axis):
    assert_as_exact_as_plain(kernels.adam_normalise.reference, shape, axis)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_first_step_from_nothing_goes_by_the_learning_rate(axis):
    """Adam's first step is `learning_rate` in every coordinate, whatever the gradient's size."""
    (weight, m, v), gradients = inputs((6, 9), axis)
    expected = weight - SETTINGS["learning_rate"] * gradients[0].sign()
    found = results(kernels.adam_normalise, (weight, 0 * m, 0 * v), gradients[:1], axis, first=1)[0]
    torch.testing.assert_close(found, expected / expected.norm(dim=axis, keepdim=True), rtol=1e-6, atol=1e-6)


def test_a_rounded_copy_is_the_new_weight_in_its_own_dtype():
    state, gradients = inputs((7, 20), 1, torch.float32)
    copy = torch.full((7, 20), torch.nan, dtype=torch.bfloat16)
    weight = results(kernels.adam_normalise, state, gradients, 1, rounded=copy)[0]
    assert torch.equal(copy, weight.bfloat16())


def test_a_vector_that_vanishes_gives_no_nan():
    state = [torch.zeros(3, 8) for _ in range(3)]
    for found in results(kernels.adam_normalise, state, [torch.zeros(3, 8)], 1):
        assert not found.any()


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.adam_normalise import triton as module

    for shape in [*SHAPES, (37, 1280), (1280, 37)] if device == "cuda" else SHAPES:
        for axis in (0, 1):
            assert_as_exact_as_plain(module.adam_normalise, shape, axis, device)
    state, gradients = inputs((9, 40), 0, torch.float32, device)
    copy = torch.full((9, 40), torch.nan, dtype=torch.bfloat16, device=device)
    weight = results(module.adam_normalise, state, gradients, 0, rounded=copy)[0]
    inexact = 0.0 if device == "cuda" else 2**-7  # the interpreter cuts bits off where devices round
    torch.testing.assert_close(copy.cpu(), weight.bfloat16(), rtol=inexact, atol=0)
    for shape, axis in (((2, 40000), 1), ((5000, 2), 0)):  # too long for registers
        assert_as_exact_as_plain(module.adam_normalise, shape, axis, device)
    for keeps in (0, 1):  # several parts of a column, the last one shorter
        with launches.trying("adam_normalise", "columns", (8, 32, 2, keeps)):
            assert_as_exact_as_plain(module.adam_normalise, (150, 21), 0, device)
    turned = [[x.t().contiguous().t() for x in part] for part in inputs((6, 11), 1, torch.float32, device)]
    straight = results(module.adam_normalise, *inputs((6, 11), 1, torch.float32, device), 1)
    for found, expected in zip(results(module.adam_normalise, *turned, 1), straight, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_triton_kernel_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernel_on_the_device():
    check_triton("cuda")
    assert kernels.adam_normalise.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    check_triton("cpu")
