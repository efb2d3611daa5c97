"""Differential attention: every implementation against autograd of the plain formula in float64."""

from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from nlrl import kernels
from nlrl.kernels.attention_node import programs

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NAMES = ("y", "dquery", "dkey", "dvalue", "dlambda", "dweight")


class Shape(NamedTuple):
    batch: int
    time: int
    heads: int
    kv_heads: int
    width: int


SHAPES = [Shape(1, 1, 1, 1, 8), Shape(2, 37, 2, 2, 16), Shape(2, 50, 4, 2, 24), Shape(1, 71, 3, 1, 32)]
WIDE_SHAPES = [Shape(1, 40, 1, 1, 64), Shape(1, 33, 2, 1, 128)]
DEVICE_SHAPES = [
    Shape(2, 1000, 4, 2, 32), Shape(2, 1024, 4, 4, 64), Shape(1, 1337, 6, 2, 64), Shape(1, 2048, 4, 4, 128),
    Shape(2, 777, 8, 2, 128), Shape(1, 300, 2, 2, 96),
]  # fmt: skip


def inputs(shape: Shape, dtype=torch.float64, device="cpu") -> list[torch.Tensor]:
    """Query, key and value (parts of one tensor, as in a model), lambda, weight and dy."""
    draw = torch.Generator().manual_seed(sum(shape))

    def normal(*size):
        return torch.randn(size, generator=draw, dtype=torch.float64)

    sizes = (2 * shape.heads, 2 * shape.kv_heads, 2 * shape.kv_heads)
    qkv = normal(shape.batch, shape.time, sum(sizes), shape.width).to(device, dtype)
    query, key, value = qkv.split(sizes, 2)
    value = value.unflatten(2, (-1, 2)).flatten(3)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    lambda_, weight = torch.tensor(0.7, dtype=torch.float64), 1 + 0.3 * normal(2 * shape.width)
    dy = normal(shape.batch, shape.time, shape.heads, 2 * shape.width)
    return [query, key, value, lambda_.to(device, wide), weight.to(device, wide), dy.to(device, dtype)]


def document_starts(shape: Shape, device="cpu") -> torch.Tensor:
    """Rows of documents of several lengths: one token, one more than two tiles of 16, the last cut off."""
    lengths = [[shape.time // 3, 1, 2, shape.time], [5, 28, 1, 1, 40, shape.time]]
    rows = []
    for row in range(shape.batch):
        borders = torch.tensor([0, *lengths[row % 2]]).cumsum(0)
        token = torch.arange(shape.time)
        rows.append(borders[torch.searchsorted(borders, token, right=True) - 1])
    return torch.stack(rows).to(device)


def plain(query, key, value, lambda_, weight, output_scale=1.0, eps=1e-5, starts=None):
    """The formula as the paper writes it, one head of one row at a time."""
    group, rows = query.shape[2] // key.shape[2], []
    for b in range(query.shape[0]):
        token = torch.arange(query.shape[1], device=query.device)
        start = torch.zeros_like(token) if starts is None else starts[b]
        hidden = (token > token[:, None]) | (token < start[:, None])
        heads = []
        for i in range(query.shape[2] // 2):
            k = i // group
            scores = [query[b, :, 2 * i + j] @ key[b, :, 2 * k + j].T * query.shape[-1] ** -0.5 for j in (0, 1)]
            first, second = (s.masked_fill(hidden, -torch.inf).softmax(-1) for s in scores)
            o = (first - lambda_ * second).to(value.dtype) @ value[b, :, k]
            heads.append(output_scale * weight * o / (o.square().mean(-1, keepdim=True) + eps).sqrt())
        rows.append(torch.stack(heads, 1))
    return torch.stack(rows).to(query.dtype)


def results(function, arguments, starts=None) -> list[torch.Tensor]:
    """Output and all gradients, in float64."""
    *leaves, dy = (tensor.detach().clone(memory_format=torch.preserve_format) for tensor in arguments)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    y = function(*leaves, 0.6, 1e-5, starts)
    assert y.dtype == arguments[0].dtype
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, leaves, dy))]


@contextmanager
def poisoned():
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_as_exact(function, shape: Shape, dtype, device="cpu", packed=False):
    """Its error is at most 1.5 times that of PyTorch's calls in the same dtype; arguments rounded before both."""
    arguments = inputs(shape, dtype, device)
    starts = document_starts(shape, device) if packed else None
    exact = results(kernels.diff_attention.reference, [tensor.double() for tensor in arguments], starts)
    yardstick = results(kernels.diff_attention.eager, arguments, starts)
    with poisoned():
        ours = results(function, arguments, starts)
    for name, found, theirs, wanted in zip(NAMES, ours, yardstick, exact, strict=True):
        error, allowed = ((part - wanted).norm().item() for part in (found, theirs))
        size = 10 * arguments[-1].norm().item() if name == "dlambda" else 2 * wanted.norm().item()  # a sum that cancels
        least = torch.finfo(dtype).eps * (1 + size) + 1e-6
        assert error <= max(1.5 * allowed, least), f"{name} {shape} {dtype} packed={packed}: {error}, {allowed}"


@pytest.fixture(params=["reference", "eager"])
def implementation(request):
    return getattr(kernels.diff_attention, request.param)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_agrees_with_the_paper_in_float64(implementation, shape, packed):
    arguments, starts = inputs(shape), document_starts(shape) if packed else None
    found, expected = results(implementation, arguments, starts), results(plain, arguments, starts)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_documents_of_a_row_are_as_they_are_alone(implementation):
    shape = Shape(1, 50, 4, 2, 8)
    *arguments, _ = inputs(shape)
    starts = document_starts(shape)
    together = implementation(*arguments, starts=starts)
    for first in starts.unique().tolist():
        tokens = (starts[0] == first).nonzero()[:, 0]
        alone = implementation(*(part[:, tokens] for part in arguments[:3]), *arguments[3:])
        torch.testing.assert_close(together[:, tokens], alone)


def test_a_compiled_call_is_the_same():
    arguments = inputs(SHAPES[2], torch.float32)
    compiled = torch.compile(kernels.diff_attention.__call__, backend="aot_eager", fullgraph=True)
    for found, expected in zip(results(compiled, arguments), results(kernels.diff_attention, arguments), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def check_small_tiles(device: str) -> None:
    """Many tiles of unequal sizes, so that all parts of all loops have some."""
    from nlrl.kernels.diff_attention import triton as module

    before = module.FLOAT32_TILES
    for block_m, block_n in ((16, 32), (32, 16)):
        tiles = module.Tiles(block_m, block_n, 4, 1)
        module.FLOAT32_TILES = {program: {32: tiles} for program in before}
        for packed in (False, True):
            assert_as_exact(module.diff_attention, Shape(2, 60, 2, 1, 16), torch.float32, device, packed)
    module.FLOAT32_TILES = before


def check_what_differs(diff_attention, device: str) -> None:
    *arguments, _ = inputs(SHAPES[1], torch.float32, device)
    y = diff_attention(*arguments)
    torch.testing.assert_close(y, kernels.diff_attention.reference(*arguments), rtol=1e-4, atol=1e-4)
    turned = [part.transpose(2, 3).contiguous().transpose(2, 3) for part in arguments[:3]]
    assert torch.equal(diff_attention(*turned, *arguments[3:]), y)
    double = inputs(SHAPES[1], device=device)[:-1]
    torch.testing.assert_close(diff_attention(*double), kernels.diff_attention.reference(*double))
    none = [part[:0] for part in arguments[:3]]
    assert diff_attention(*none, *arguments[3:]).shape == (0, *y.shape[1:])
    large = [100 * part for part in arguments[:2]]
    found = results(diff_attention, [*large, *arguments[2:], torch.ones_like(y)])
    assert all(part.isfinite().all() for part in found)


def check_composed(device: str) -> None:
    """PyTorch's attention with our passes before and behind it."""
    from nlrl.kernels.diff_attention.composed import diff_attention

    for dtype in (torch.float32,) if device == "cpu" else (torch.float16, torch.bfloat16):
        for shape in (Shape(2, 37, 4, 2, 24), Shape(1, 50, 2, 2, 64), Shape(2, 33, 1, 1, 128)):
            assert_as_exact(diff_attention, shape, dtype, device)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.diff_attention.triton import diff_attention

    for shape in SHAPES:
        assert_as_exact(diff_attention, shape, torch.float32, device, packed=shape.time % 2 == 1)
    # The interpreter multiplies the bits of bfloat16.
    for dtype in (torch.float16,) if device == "cpu" else (torch.float16, torch.bfloat16):
        for shape in (SHAPES[2], *WIDE_SHAPES):
            assert_as_exact(diff_attention, shape, dtype, device, packed=True)
    check_small_tiles(device)
    check_what_differs(diff_attention, device)
    check_composed(device)


def test_documents_and_wide_numbers_go_to_our_programs_instead_of_pytorchs():
    pytest.importorskip("triton")
    from nlrl.kernels.peers import PEERS

    peer, shape = PEERS["diff_attention"]["composed"], SHAPES[1]
    *arguments, _ = inputs(shape, torch.bfloat16)
    assert peer.fits(*arguments)
    assert not peer.fits(*arguments, starts=document_starts(shape))
    assert not peer.fits(*inputs(shape)[:-1])


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@needs_cuda
def test_triton_kernels_on_the_device_are_exact():
    check_triton("cuda")
    assert kernels.diff_attention.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_real_sizes_are_exact_and_repeatable(shape, dtype, packed):
    assert_as_exact(kernels.diff_attention, shape, dtype, "cuda", packed)
    arguments, starts = inputs(shape, dtype, "cuda"), document_starts(shape, "cuda") if packed else None
    if programs("diff_attention", *arguments) is None:
        return  # PyTorch's calls for wide float32 heads add in any order
    first, second = (results(kernels.diff_attention, arguments, starts) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_triton("cpu")
