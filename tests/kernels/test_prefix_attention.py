"""Attention behind a prefix: every implementation against autograd of the plain formula in float64."""

import importlib
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from nlrl import kernels

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NAMES = ("y", "dquery", "dkey", "dvalue", "dprefix_key", "dprefix_value")


class Shape(NamedTuple):
    batch: int
    time: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    prefix: int
    window: int = 0
    """Keys before a token that it sees; 0: all."""
    documents: bool = False


SHAPES = [
    Shape(1, 1, 1, 1, 8, 8, 3), Shape(2, 37, 2, 2, 16, 32, 5, 7), Shape(2, 50, 4, 2, 24, 24, 0, 11, True),
    Shape(1, 71, 3, 1, 32, 16, 20), Shape(2, 40, 2, 1, 16, 16, 4, 0, True),
]  # fmt: skip
DEVICE_SHAPES = [
    Shape(2, 1000, 4, 2, 32, 64, 128, 100), Shape(1, 2048, 25, 5, 64, 128, 128, 1024), Shape(2, 777, 8, 2, 64, 128, 64),
    Shape(2, 1337, 6, 2, 64, 64, 0, 200, True), Shape(1, 300, 2, 2, 128, 128, 17, 90, True),
]  # fmt: skip


def inputs(shape: Shape, dtype=torch.float64, device="cpu") -> list[torch.Tensor]:
    """Query, key, value, the prefix's keys and values, and dy."""
    draw = torch.Generator().manual_seed(sum(shape[:7]))

    def normal(*size):
        return torch.randn(size, generator=draw, dtype=torch.float64).to(device, dtype)

    rows = shape.batch, shape.time
    parts = [
        normal(*rows, shape.heads, shape.key_dim), normal(*rows, shape.kv_heads, shape.key_dim),
        normal(*rows, shape.kv_heads, shape.value_dim), normal(shape.kv_heads, shape.prefix, shape.key_dim),
        normal(shape.kv_heads, shape.prefix, shape.value_dim),
    ]  # fmt: skip
    return [*parts, normal(*rows, shape.heads, shape.value_dim)]


def starts_of(shape: Shape, device="cpu") -> torch.Tensor | None:
    """The first token that each sees: of its document, or of its window."""
    if not shape.window and not shape.documents:
        return None
    token = torch.arange(shape.time)
    rows = []
    for row in range(shape.batch):
        lengths = ([shape.time // 3, 1, 2, shape.time], [5, 28, 1, 1, 40, shape.time])[row % 2]
        borders = torch.tensor([0, *lengths]).cumsum(0)
        first = (
            borders[torch.searchsorted(borders, token, right=True) - 1] if shape.documents else torch.zeros_like(token)
        )
        rows.append(torch.maximum(first, token - shape.window) if shape.window else first)
    return torch.stack(rows).to(device)


def plain(query, key, value, prefix_key, prefix_value, starts):
    """The formula one head of one row at a time, with the keys that a token sees listed."""
    group, rows = query.shape[2] // key.shape[2], []
    for b in range(query.shape[0]):
        tokens = []
        for i in range(query.shape[1]):
            first = 0 if starts is None else int(starts[b, i])
            heads = []
            for h in range(query.shape[2]):
                own = slice(first, i + 1)
                k = torch.cat((prefix_key[h // group], key[b, own, h // group]))
                v = torch.cat((prefix_value[h // group], value[b, own, h // group]))
                heads.append((k @ query[b, i, h] * query.shape[-1] ** -0.5).softmax(0) @ v)
            tokens.append(torch.stack(heads))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def results(function, arguments, shape: Shape, starts) -> list[torch.Tensor]:
    """Output and all gradients, in float64; a prefix of no keys is left out."""
    *leaves, dy = (tensor.detach().clone() for tensor in arguments)
    leaves = [leaf.requires_grad_() for leaf in leaves[: 5 if shape.prefix or function is plain else 3]]
    y = function(*leaves, *[None] * (5 - len(leaves)), starts)
    assert y.dtype == arguments[0].dtype
    found = torch.autograd.grad(y, leaves[: 5 if shape.prefix else 3], dy)
    return [y.detach().double(), *(gradient.double() for gradient in found)]


@contextmanager
def poisoned():
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_as_exact(function, shape: Shape, dtype, device="cpu"):
    """Its error is at most 1.5 times that of PyTorch's calls in the same dtype; arguments rounded before both."""
    arguments, starts = inputs(shape, dtype, device), starts_of(shape, device)
    exact = results(kernels.prefix_attention.reference, [tensor.double() for tensor in arguments], shape, starts)
    yardstick = results(kernels.prefix_attention.eager, arguments, shape, starts)
    with poisoned():
        ours = results(function, arguments, shape, starts)
    for name, found, theirs, wanted in zip(NAMES, ours, yardstick, exact, strict=False):
        error, allowed = ((part - wanted).norm().item() for part in (found, theirs))
        least = torch.finfo(dtype).eps * (1 + 2 * wanted.norm().item()) + 1e-6
        assert error <= max(1.5 * allowed, least), f"{name} {shape} {dtype}: {error}, {allowed}"


@pytest.mark.parametrize("name", ["reference", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_definition_in_float64(name, shape):
    arguments, starts = inputs(shape), starts_of(shape)
    found = results(getattr(kernels.prefix_attention, name), arguments, shape, starts)
    for ours, theirs in zip(found, results(plain, arguments, shape, starts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_compiled_call_is_the_same():
    shape = SHAPES[1]
    arguments, starts = inputs(shape, torch.float32), starts_of(shape)
    compiled = torch.compile(kernels.prefix_attention.__call__, backend="aot_eager", fullgraph=True)
    expected = results(kernels.prefix_attention, arguments, shape, starts)
    for ours, theirs in zip(results(compiled, arguments, shape, starts), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def check_small_tiles(device: str) -> None:
    """Many tiles of unequal sizes, so that all parts of all loops have some."""
    from nlrl.kernels.prefix_attention import triton as module

    before = module.FLOAT32_TILES
    for block_m, block_n in ((16, 32), (32, 16)):
        module.FLOAT32_TILES = dict.fromkeys(before, module.Tiles(block_m, block_n, 4, 1))
        for shape in (
            Shape(2, 60, 2, 1, 16, 16, 37, 21),
            Shape(1, 60, 2, 1, 16, 32, 40),
            Shape(2, 60, 2, 1, 16, 16, 0),
        ):
            assert_as_exact(module.prefix_attention, shape, torch.float32, device)
    module.FLOAT32_TILES = before


def check_what_differs(prefix_attention, device: str) -> None:
    shape = SHAPES[1]
    *arguments, dy = inputs(shape, torch.float32, device)
    starts = starts_of(shape, device)
    y = prefix_attention(*arguments, starts)
    turned = [part.transpose(2, 3).contiguous().transpose(2, 3) for part in arguments[:3]]
    assert torch.equal(prefix_attention(*turned, *arguments[3:], starts), y)
    double = [part.double() for part in arguments]
    exact = kernels.prefix_attention.reference(*double, starts)
    torch.testing.assert_close(prefix_attention(*double, starts), exact)
    none = [part[:0] for part in arguments[:3]]
    assert prefix_attention(*none, *arguments[3:]).shape == (0, *y.shape[1:])
    large = [100 * part for part in arguments[:2]]
    found = results(prefix_attention, [*large, *arguments[2:], dy], shape, starts)
    assert all(part.isfinite().all() for part in found)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.prefix_attention.triton import prefix_attention

    for shape in SHAPES:
        assert_as_exact(prefix_attention, shape, torch.float32, device)
    # The interpreter multiplies the bits of bfloat16.
    for dtype in (torch.float16,) if device == "cpu" else (torch.float16, torch.bfloat16):
        for shape in (SHAPES[1], Shape(1, 40, 2, 1, 64, 128, 9, 20)):
            assert_as_exact(prefix_attention, shape, dtype, device)
    check_small_tiles(device)
    check_what_differs(prefix_attention, device)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@needs_cuda
def test_triton_kernels_on_the_device_are_exact():
    check_triton("cuda")
    assert kernels.prefix_attention.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_real_sizes_are_exact_and_repeatable(shape, dtype):
    assert_as_exact(kernels.prefix_attention, shape, dtype, "cuda")
    arguments, starts = inputs(shape, dtype, "cuda"), starts_of(shape, "cuda")
    if not importlib.import_module("nlrl.kernels.prefix_attention.triton").fits(*arguments):
        return  # PyTorch's calls for wide float32 heads add in any order
    first, second = (results(kernels.prefix_attention, arguments, shape, starts) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_triton("cpu")
