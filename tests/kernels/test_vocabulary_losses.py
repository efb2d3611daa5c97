"""Losses over a vocabulary without their logits: against autograd of the plain formulas in float64."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nlrl import kernels
from nlrl.kernels import vocabulary

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPS = ("linear_cross_entropy", "linear_distillation")
SHAPES = [(1, 4, 3), (9, 8, 37), (20, 16, 100)]
"""Tokens, width, vocabulary."""
MANY_PARTS = [(20, 4, 150), (9, 12, 100), (20, 10, 203)]
"""Larger vocabularies than numbers of tokens, which is when two-byte gradients are made by columns."""
DEVICE_SHAPES = [(300, 256, 2048), (777, 512, 32003), (2500, 128, 50000), (9000, 64, 50001)]


def inputs(name, shape, dtype=torch.float64, device="cpu"):
    """Hidden states, matrix, what is aimed at, weights; one weight is zero."""
    tokens, width, vocab = shape
    draw = torch.Generator().manual_seed(sum(shape))
    hidden, matrix = (torch.randn(size, width, generator=draw, dtype=torch.float64) for size in (tokens, vocab))
    weights = torch.rand(tokens, generator=draw)
    weights[-1] = 0 if tokens > 1 else 1
    if name == "linear_cross_entropy":
        aims = [torch.randint(vocab, (tokens,), generator=draw).to(device)]
    else:
        aims = [torch.randn(size, 6, generator=draw, dtype=torch.float64).to(device, dtype) for size in (tokens, vocab)]
    return [hidden.to(device, dtype), matrix.to(device, dtype), *aims, weights.to(device)]


def results(function, arguments):
    """Loss and gradients, in float64; the loss is used twice as much as it is."""
    hidden, matrix, *rest = arguments
    leaves = [part.detach().clone().requires_grad_() for part in (hidden, matrix)]
    loss = function(*leaves, *rest)
    return [loss.detach().double(), *(part.double() for part in torch.autograd.grad(2 * loss, leaves))]


def widened(arguments):
    return [part.double() if part.is_floating_point() else part for part in arguments]


def assert_as_exact(name, function, shape, dtype, device="cpu", cuts=False):
    """Errors are at most 1.5 times those of PyTorch in the same dtype. The interpreter `cuts` to bfloat16 where devices
    round, and so errs by up to one unit in the last place of every slope."""
    op, arguments = kernels.ops()[name], inputs(name, shape, dtype, device)
    exact, plain = results(op.reference, widened(arguments)), results(op.reference, arguments)
    for what, found, theirs, wanted in zip(
        ("loss", "dh", "dW"), results(function, arguments), plain, exact, strict=True
    ):
        error, allowed = ((part - wanted).norm().item() for part in (found, theirs))
        least = 8 * torch.finfo(torch.float32).eps * wanted.norm().item() + torch.finfo(dtype).eps * (what == "loss")
        least += cuts * torch.finfo(dtype).eps * wanted.norm().item()
        assert error <= 1.5 * allowed + least, f"{name} {what} {shape} {dtype}: {error}, {allowed}"


@pytest.mark.parametrize("at_once", [1, 100, 1 << 26])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPS)
def test_agrees_with_the_plain_formula_in_float64_whatever_is_done_at_once(name, shape, at_once, monkeypatch):
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", at_once)
    op, arguments = kernels.ops()[name], inputs(name, shape)
    for found, exact in zip(results(op, arguments), results(op.reference, arguments), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", OPS)
def test_errors_are_those_of_the_plain_formula(name):
    for dtype in (torch.float32, torch.bfloat16):
        assert_as_exact(name, kernels.ops()[name], SHAPES[2], dtype)


@pytest.mark.parametrize("name", OPS)
def test_autocast_decides_the_dtype_of_products_as_it_does_for_linear_layers(name):
    op, arguments = kernels.ops()[name], inputs(name, SHAPES[1], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (function(*arguments) for function in (op, op.reference))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert not torch.equal(found, op(*arguments))


@pytest.mark.parametrize("shape", MANY_PARTS)
def test_errors_stay_those_of_the_plain_formula_in_many_parts(shape, monkeypatch):
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 1)
    for roundings in (0, 4):  # all by columns; or few parts by tokens, each rounded
        monkeypatch.setattr(vocabulary, "ROUNDINGS", roundings)
        for name in OPS:
            assert_as_exact(name, kernels.ops()[name], shape, torch.bfloat16)


@pytest.mark.parametrize("roundings", [0, 4])
@pytest.mark.parametrize("shape", [(256, 16, 500), (256, 16, 200)])
def test_errors_stay_those_of_the_plain_formula_in_four_parts(shape, roundings, monkeypatch):
    """In memory of the gradient's dtype, or of float32, or by columns."""
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 64 * shape[2])
    monkeypatch.setattr(vocabulary, "ROUNDINGS", roundings)
    for name in OPS:
        assert_as_exact(name, kernels.ops()[name], shape, torch.bfloat16)


@pytest.mark.parametrize("shape", MANY_PARTS)
def test_logits_that_wait_for_their_normaliser_are_not_made_twice(shape, monkeypatch):
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(vocabulary, "ROUNDINGS", 0)
    tokens, width, vocab = shape
    with FlopCounterMode(display=False) as counted:
        results(kernels.linear_cross_entropy, inputs("linear_cross_entropy", shape, torch.bfloat16))
    products = counted.get_total_flops() / (2 * tokens * width * vocab)
    if width >= tokens:
        assert products == 3
    else:
        assert 3 < products < 4.2 - width / tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_that_is_kept_can_be_used_again(dtype):
    hidden, matrix, *rest = inputs("linear_cross_entropy", SHAPES[1], dtype)
    leaves = [hidden.requires_grad_(), matrix.requires_grad_()]
    loss = kernels.linear_cross_entropy(*leaves, *rest)
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves)
    for first, three, last in zip(once, thrice, again, strict=True):
        torch.testing.assert_close(three, 3 * first)
        assert torch.equal(first, last)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


def test_only_what_needs_a_gradient_gets_one():
    hidden, matrix, targets, weights = inputs("linear_cross_entropy", SHAPES[1])
    loss = kernels.linear_cross_entropy(hidden, matrix.requires_grad_(), targets, weights)
    loss.backward()
    assert matrix.grad is not None
    assert not kernels.linear_cross_entropy(hidden, matrix.detach(), targets, weights).requires_grad


def check_columns(function, device: str) -> None:
    """By columns, with the first logits in memory of gradients; and only the gradient of the matrix."""
    before = vocabulary.LOGITS_AT_ONCE, vocabulary.ROUNDINGS
    vocabulary.LOGITS_AT_ONCE, vocabulary.ROUNDINGS = 1, 0
    for shape in MANY_PARTS:
        assert_as_exact("linear_cross_entropy", function, shape, torch.bfloat16, device, cuts=device == "cpu")
    hidden, matrix, *rest = inputs("linear_cross_entropy", shape, torch.bfloat16, device)
    both = torch.autograd.grad(function(hidden.requires_grad_(), matrix.requires_grad_(), *rest), matrix)
    one = torch.autograd.grad(function(hidden.detach(), matrix, *rest), matrix)
    assert torch.equal(both[0], one[0])
    vocabulary.LOGITS_AT_ONCE, vocabulary.ROUNDINGS = before


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.linear_cross_entropy import triton as module
    from nlrl.kernels.linear_distillation.triton import linear_distillation

    before = module.LOGITS_AT_ONCE
    for at_once in (32, before):
        module.LOGITS_AT_ONCE = at_once
        for name, function in zip(OPS, (module.linear_cross_entropy, linear_distillation), strict=True):
            for shape in SHAPES:
                for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
                    assert_as_exact(name, function, shape, dtype, device)
            arguments = inputs(name, SHAPES[1], device=device)
            assert function(*arguments).dtype == torch.float64
            assert function(arguments[0][:0], *arguments[1:]).item() == 0 or name != OPS[0]
    module.LOGITS_AT_ONCE = before
    check_columns(module.linear_cross_entropy, device)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@needs_cuda
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    assert kernels.linear_cross_entropy.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
@pytest.mark.parametrize("name", OPS)
def test_real_sizes_are_exact_and_repeatable(name, shape, dtype):
    op, arguments = kernels.ops()[name], inputs(name, shape, dtype, "cuda")
    assert_as_exact(name, op, shape, dtype, "cuda")
    first, second = results(op, arguments), results(op, arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # uninitialised memory is filled with NaN
    check_triton("cpu")
