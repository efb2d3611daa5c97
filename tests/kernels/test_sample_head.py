"""Drawing from hidden states: every implementation against the draw from logits in float64."""

from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from nlrl import kernels


class Shape(NamedTuple):
    rows: int
    width: int
    vocabulary: int
    masked: bool = False
    scaled: bool = False


SHAPES = [Shape(1, 24, 33), Shape(5, 70, 300, True), Shape(20, 40, 500, True, True), Shape(150, 16, 270)]
DEVICE_SHAPES = [
    Shape(1, 1600, 32001), Shape(16, 192, 1024, True), Shape(30, 2560, 32000, True), Shape(64, 3072, 128256),
    Shape(256, 2048, 32000, True, True), Shape(200, 256, 2048), Shape(700, 100, 5000, True),
]  # fmt: skip


def inputs(shape: Shape, dtype=torch.float32, device="cpu") -> dict[str, Any]:
    """All arguments; every fifth row is greedy."""
    draw = torch.Generator().manual_seed(sum(shape))
    rows, width, vocabulary = shape[:3]
    hidden = torch.randn(rows, width, generator=draw)
    matrix = 3 * width**-0.5 * torch.randn(vocabulary, width, generator=draw)
    temperature = 0.2 + 2 * torch.rand(rows, generator=draw)
    temperature[::5] = 0
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (rows, -(-vocabulary // 32)), generator=draw).int()
    scale = 0.5 + torch.rand(vocabulary, generator=draw)
    arguments = {
        "hidden": hidden.to(dtype), "matrix": matrix.to(dtype),
        "seeds": torch.randint(-(1 << 63), (1 << 63) - 1, (rows,), generator=draw),
        "steps": torch.randint(0, 5000, (rows,), generator=draw), "temperature": temperature,
        "bitmask": bits if shape.masked else None, "scale": scale.to(dtype) if shape.scaled else None,
    }  # fmt: skip
    return {name: None if part is None else part.to(device) for name, part in arguments.items()}


def widened(arguments):
    """What is multiplied, in float64."""
    wide = ("hidden", "matrix", "scale")
    return arguments | {name: arguments[name].double() for name in wide if arguments[name] is not None}


def assert_same(function, arguments, close: float = 5e-6) -> None:
    """The reference's tokens (scores that rounding could swap aside) and log-probabilities."""
    tokens, logprobs = function(**arguments)
    assert (tokens.dtype, logprobs.dtype) == (torch.int64, torch.float32)
    expected, exact = kernels.sample_head.reference(**widened(arguments))
    differ = tokens != expected
    assert differ.sum() <= len(tokens) // 200
    torch.testing.assert_close(logprobs[~differ].double(), exact[~differ], rtol=close, atol=close)


@contextmanager
def poisoned():
    """New memory holds the worst there is, so whatever is read before it is written shows."""
    plain = torch.empty, torch.Tensor.new_empty

    def worst(tensor):
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)

    torch.empty = lambda *args, **named: worst(plain[0](*args, **named))
    torch.Tensor.new_empty = lambda *args, **named: worst(plain[1](*args, **named))  # pyright: ignore
    try:
        yield
    finally:
        torch.empty, torch.Tensor.new_empty = plain


@pytest.mark.parametrize("shape", SHAPES)
def test_it_draws_from_the_logits_of_the_product(shape):
    arguments = inputs(shape)
    matrix = arguments["matrix"] if arguments["scale"] is None else arguments["matrix"] * arguments["scale"][:, None]
    rest = [arguments[name] for name in ("seeds", "steps", "temperature", "bitmask")]
    expected = kernels.sample(F.linear(arguments["hidden"], matrix), *rest)
    for ours, theirs in zip(kernels.sample_head(**arguments), expected, strict=True):
        assert torch.equal(ours, theirs)


def check_greedy_and_ties(function, device="cpu"):
    """At temperature 0 the likeliest, of equals the lowest wherever their tiles are, and the next best where the mask
    forbids it; of a row that allows nothing token 0."""
    matrix = torch.zeros(900, 20, device=device)
    matrix[[899, 7, 410, 8]] = 0.1
    bits = torch.full((3, 29), -1, dtype=torch.int32, device=device)
    bits[1, 0] = ~(0b11 << 7)
    bits[2] = 0
    seeds, steps = torch.arange(3, device=device), torch.tensor(4, device=device)
    hidden, cold = torch.ones(3, 20, device=device), torch.zeros(3, device=device)
    tokens, logprobs = function(hidden, matrix, seeds, steps, cold, bits)
    assert tokens.tolist() == [7, 410, 0]
    whole = torch.tensor([2.0] * 4 + [0.0] * 896).log_softmax(0)
    torch.testing.assert_close(logprobs.cpu(), whole[[0, 0, 4]], rtol=1e-6, atol=1e-6)


def test_greedy_rows_take_the_lowest_of_the_likeliest():
    check_greedy_and_ties(kernels.sample_head)


def check_strides_and_rows(function, device="cpu"):
    """Parts of wider tensors, a row among others and alone, no rows, and rows that are not numbers."""
    arguments = inputs(Shape(40, 30, 200, True), device=device)
    tokens, logprobs = function(**arguments)
    wider = {name: torch.cat((arguments[name],) * 2, 1)[:, : arguments[name].shape[1]] for name in ("hidden", "matrix")}
    wider["bitmask"] = arguments["bitmask"].repeat_interleave(2, 1)[:, ::2]
    assert torch.equal(function(**arguments | wider)[0], tokens)
    per_row = ("hidden", "seeds", "steps", "temperature", "bitmask")
    alone = function(**arguments | {name: arguments[name][17:18] for name in per_row})
    assert alone[0].item() == tokens[17].item()
    torch.testing.assert_close(alone[1][0], logprobs[17], rtol=2e-6, atol=2e-6)
    assert function(**arguments | {name: arguments[name][:0] for name in per_row})[0].shape == (0,)
    arguments["hidden"][3] = torch.nan
    broken = function(**arguments)[0]
    assert 0 <= broken[3] < 200
    others = torch.arange(40, device=device) != 3
    assert torch.equal(broken[others], tokens[others])


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.counters import counter
    from nlrl.kernels.sample.triton import sample
    from nlrl.kernels.sample_head import triton as module

    with poisoned():
        for shape in SHAPES:
            assert_same(module.sample_head, inputs(shape, device=device))
        check_greedy_and_ties(module.sample_head, device)
    check_strides_and_rows(module.sample_head, device)
    assert not counter(1, torch.device(device, 0) if device == "cuda" else torch.device(device)).any()
    arguments = inputs(SHAPES[1], device=device)
    rest = [arguments[name] for name in ("seeds", "steps", "temperature", "bitmask")]
    two = sample(F.linear(arguments["hidden"], arguments["matrix"]), *rest)
    assert torch.equal(module.sample_head(**arguments)[0], two[0]), "the same noise as in two launches"
    with patch.object(module, "TILES", (module.TILES[0]._replace(most_rows=4),)):
        assert torch.equal(module.sample_head(**arguments)[0], two[0]), "more rows than one launch takes"


def test_triton_kernel_in_the_interpreter(interpreted):
    interpreted(__file__)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
def test_triton_kernel_on_the_device():
    from nlrl.kernels.sample_head.triton import sample_head

    check_triton("cuda")
    for shape in DEVICE_SHAPES:
        # Tensor cores cut sums off; rounding logits to bfloat16 would be wrong by 1e-2.
        assert_same(sample_head, inputs(shape, torch.bfloat16, "cuda"), close=5e-4)


@needs_cuda
def test_a_graph_draws_what_calls_draw():
    from nlrl.kernels.sample_head.triton import sample_head

    arguments = inputs(DEVICE_SHAPES[4], torch.bfloat16, "cuda")
    expected = [part.clone() for part in sample_head(**arguments)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = sample_head(**arguments)
    for _ in range(3):
        graph.replay()
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


if __name__ == "__main__":
    check_triton("cpu")
