"""Differential attention, version 2: every implementation against autograd of the plain formula in float64."""

from typing import NamedTuple

import pytest
import torch

from nlrl import kernels
from nlrl.kernels import launches
from nlrl.kernels.peers import PEERS

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NAMES = ("y", "dquery", "dkey", "dvalue", "dgate")


class Shape(NamedTuple):
    batch: int
    time: int
    heads: int
    kv_heads: int
    width: int


SHAPES = [Shape(1, 1, 1, 1, 8), Shape(2, 37, 2, 2, 16), Shape(2, 50, 4, 2, 24), Shape(1, 71, 3, 1, 32)]
DEVICE_SHAPES = [
    Shape(2, 1000, 4, 2, 32), Shape(2, 1024, 4, 4, 64), Shape(1, 1337, 6, 2, 64), Shape(1, 2048, 4, 4, 128),
    Shape(2, 777, 8, 2, 128),
]  # fmt: skip


def inputs(shape: Shape, dtype=torch.float64, device="cpu") -> list[torch.Tensor]:
    """Query, key and value (parts of one tensor, as in a model), gate and dy."""
    draw = torch.Generator().manual_seed(sum(shape))

    def normal(*size):
        return torch.randn(size, generator=draw, dtype=torch.float64)

    sizes = (2 * shape.heads, shape.kv_heads, shape.kv_heads)
    query, key, value = normal(shape.batch, shape.time, sum(sizes), shape.width).to(device, dtype).split(sizes, 2)
    gate = normal(shape.batch, shape.time, shape.heads).sigmoid()
    dy = normal(shape.batch, shape.time, shape.heads, shape.width)
    return [query, key, value, gate.to(device, dtype), dy.to(device, dtype)]


def document_starts(shape: Shape, device="cpu") -> torch.Tensor:
    """Rows of documents of several lengths."""
    lengths = [[shape.time // 3, 1, 2, shape.time], [5, 28, 1, 1, 40, shape.time]]
    token, rows = torch.arange(shape.time), []
    for row in range(shape.batch):
        borders = torch.tensor([0, *lengths[row % 2]]).cumsum(0)
        rows.append(borders[torch.searchsorted(borders, token, right=True) - 1])
    return torch.stack(rows).to(device)


def plain(query, key, value, gate, starts=None):
    """The formula one token of one head at a time."""
    y = torch.zeros(*gate.shape, query.shape[3], dtype=query.dtype)
    group = gate.shape[2] // key.shape[2]
    rows = []
    for b in range(y.shape[0]):
        for i in range(y.shape[1]):
            own = slice(0 if starts is None else int(starts[b, i]), i + 1)
            for h in range(y.shape[2]):
                k, v = key[b, own, h // group], value[b, own, h // group]
                one, two = ((k @ query[b, i, 2 * h + j] * query.shape[3] ** -0.5).softmax(0) @ v for j in (0, 1))
                rows.append(one - gate[b, i, h] * two)
    return torch.stack(rows).view(y.shape)


def results(function, arguments, starts=None) -> list[torch.Tensor]:
    """Output and all gradients, in float64."""
    *leaves, dy = (tensor.detach().clone(memory_format=torch.preserve_format) for tensor in arguments)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    y = function(*leaves, starts)
    assert y.dtype == arguments[0].dtype
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, leaves, dy))]


def assert_as_exact(function, shape: Shape, dtype, device="cpu", packed=False, poisoned=True):
    """Its error is at most 1.5 times that of PyTorch's calls in the same dtype; arguments rounded before both, and
    memory that nobody wrote is NaN if `poisoned`, which goes with equal bits."""
    arguments = inputs(shape, dtype, device)
    starts = document_starts(shape, device) if packed else None
    exact = results(kernels.diff_attention_v2.reference, [tensor.double() for tensor in arguments], starts)
    yardstick = results(kernels.diff_attention_v2.eager, arguments, starts)
    torch.use_deterministic_algorithms(poisoned, warn_only=True)
    try:
        ours = results(function, arguments, starts)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, found, theirs, wanted in zip(NAMES, ours, yardstick, exact, strict=True):
        error, allowed = ((part - wanted).norm().item() for part in (found, theirs))
        least = torch.finfo(dtype).eps * (1 + 3 * wanted.norm().item()) + 1e-6  # float32 as three products of 10 bits
        assert error <= max(1.5 * allowed, least), f"{name} {shape} {dtype} packed={packed}: {error}, {allowed}"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("name", ["reference", "eager"])
def test_agrees_with_the_definition_in_float64(name, shape, packed):
    arguments, starts = inputs(shape), document_starts(shape) if packed else None
    found = results(getattr(kernels.diff_attention_v2, name), arguments, starts)
    for ours, theirs in zip(found, results(plain, arguments, starts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_compiled_call_is_the_same():
    arguments = inputs(SHAPES[2], torch.float32)
    compiled = torch.compile(kernels.diff_attention_v2.__call__, backend="aot_eager", fullgraph=True)
    for found, expected in zip(
        results(compiled, arguments), results(kernels.diff_attention_v2, arguments), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def check_composed(device: str) -> None:
    """PyTorch's attention with our passes before and behind it."""
    from nlrl.kernels.diff_attention_v2.composed import diff_attention_v2

    for dtype in (torch.float32,) if device == "cpu" else (torch.float16, torch.bfloat16):
        for shape in (Shape(2, 37, 4, 2, 24), Shape(1, 50, 2, 2, 64), Shape(2, 33, 1, 1, 128)):
            assert_as_exact(diff_attention_v2, shape, dtype, device)


def check_one_pass(device: str) -> None:
    """All gradients in one launch: as exact, and left alone where equal bits are asked for."""
    from nlrl.kernels.diff_attention_v2.triton import diff_attention_v2

    for numbers, shape in (((16, 32, 4, 1), Shape(2, 60, 4, 2, 24)), ((32, 16, 4, 1), Shape(1, 71, 2, 2, 64))):
        with launches.trying("diff_attention_v2", "one_pass/64", numbers):
            for packed in (False, True):
                assert_as_exact(diff_attention_v2, shape, torch.float16, device, packed, poisoned=False)
            arguments = inputs(shape, torch.float16, device)
            with launches.asked() as together:
                results(diff_attention_v2, arguments)
            torch.use_deterministic_algorithms(True, warn_only=True)
            with launches.asked() as apart:
                results(diff_attention_v2, arguments)
            torch.use_deterministic_algorithms(False)
        assert "query_gradients/64" in apart - together


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.diff_attention_v2 import triton as module

    function = module.diff_attention_v2
    for shape in SHAPES:
        assert_as_exact(function, shape, torch.float32, device, packed=shape.time % 2 == 1)
    # The interpreter multiplies the bits of bfloat16.
    for dtype in (torch.float16,) if device == "cpu" else (torch.float16, torch.bfloat16):
        for shape in (SHAPES[2], Shape(1, 33, 2, 1, 64)):
            assert_as_exact(function, shape, dtype, device, packed=True)
    before = module.FLOAT32_TILES
    for block_m, block_n in ((16, 32), (32, 16)):
        module.FLOAT32_TILES = {program: {64: module.Tiles(block_m, block_n, 4, 1)} for program in before}
        for packed in (False, True):
            assert_as_exact(function, Shape(2, 60, 2, 1, 16), torch.float32, device, packed)
    module.FLOAT32_TILES = before
    *arguments, _ = inputs(SHAPES[1], device=device)
    torch.testing.assert_close(function(*arguments), kernels.diff_attention_v2.reference(*arguments))
    none = [part[:0].float() for part in arguments]
    assert function(*none).shape == (0, 37, 2, 16)
    check_composed(device)
    check_one_pass(device)


def test_documents_and_wide_numbers_go_to_our_programs_instead_of_pytorchs():
    pytest.importorskip("triton")
    peer, shape = PEERS["diff_attention_v2"]["composed"], SHAPES[1]
    *arguments, _ = inputs(shape, torch.bfloat16)
    assert peer.fits(*arguments)
    assert not peer.fits(*arguments, starts=document_starts(shape))
    assert not peer.fits(*inputs(shape)[:-1])


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@needs_cuda
def test_triton_kernels_on_the_device_are_exact():
    check_triton("cuda")
    assert kernels.diff_attention_v2.provider("nlrl").__module__.endswith("triton")


@needs_cuda
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_real_sizes_are_exact_and_repeatable(shape, dtype, packed):
    assert_as_exact(kernels.diff_attention_v2, shape, dtype, "cuda", packed)
    arguments, starts = inputs(shape, dtype, "cuda"), document_starts(shape, "cuda") if packed else None
    torch.use_deterministic_algorithms(True, warn_only=True)
    first, second = (results(kernels.diff_attention_v2, arguments, starts) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_triton("cpu")
