"""Several new tokens a row over pages and rings: every implementation against each token alone, in float64."""

from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl import kernels

PAGE = 16
FLOATS = ("query", "key", "value", "keys", "values", "prefix_key", "prefix_value")


class Sizes(NamedTuple):
    heads: tuple[int, int, int]
    """Of queries, keys and values."""
    dims: tuple[int, int]
    """Of keys and values."""
    old: list[int]
    """Older tokens of each row."""
    new: list[int]
    time: int
    before: int = 0
    """Places of padding before each row's tokens."""
    slots: int = 0
    """Of a ring; 0: pages."""
    reach: int | None = None
    prefix: int = 0


CASES = {
    "one token over one": Sizes((1, 1, 1), (16, 16), [1], [1], 2),
    "pages": Sizes((4, 2, 2), (16, 16), [0, 16, 37, 5], [7, 9, 3, 0], 9),
    "pages and a prefix, two widths": Sizes((6, 2, 2), (16, 32), [80, 0, 33], [11, 23, 1], 23, prefix=21),
    "several tiles of tokens": Sizes((4, 1, 1), (16, 24), [50, 3], [29, 40], 40),
    "pages within reach": Sizes((2, 2, 2), (24, 16), [70, 10, 3], [12, 50, 4], 50, reach=19),
    "two keys to a value": Sizes((8, 4, 2), (16, 32), [21, 40], [13, 5], 13),
    "a ring": Sizes((10, 2, 2), (16, 32), [0, 3, 21, 22, 100], [4, 9, 7, 0, 9], 9, slots=21, reach=21, prefix=5),
    "a ring smaller than the chunk": Sizes((2, 1, 1), (16, 16), [2, 11, 40], [50, 33, 47], 50, slots=9, reach=9),
    "a ring larger than the reach": Sizes((2, 1, 1), (16, 16), [30, 70], [37, 5], 37, slots=64, reach=13, prefix=3),
    "a ring alone bounds what is seen": Sizes((2, 1, 1), (16, 16), [40, 5, 9], [6, 9, 1], 9, slots=9),
    "windows of several tiles": Sizes((2, 1, 1), (16, 16), [150, 90], [110, 9], 110, reach=70),
    "slots for the whole text": Sizes((5, 1, 1), (16, 32), [17, 40, 0], [8, 2, 5], 8, slots=48),
    "padding before": Sizes((4, 2, 2), (16, 16), [18, 4], [9, 20], 34, before=7),
    "padding before, in a window": Sizes((4, 2, 2), (16, 16), [40, 4], [30, 35], 50, before=9, slots=12, reach=12),
    "only itself": Sizes((2, 1, 1), (16, 16), [12, 3], [5, 4], 5, reach=0),
}


def case(sizes: Sizes) -> tuple[dict[str, Any], list[list[Tensor]]]:
    """Arguments of the op, NaN wherever a row must not look, and each row's text: keys and values of all its tokens."""
    draw, rows = torch.Generator().manual_seed(sum(sizes.old) + sizes.time), len(sizes.old)

    def random(*shape) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).bfloat16().half().double()  # exact in all

    at = torch.arange(sizes.time) - sizes.before
    old, new = torch.tensor(sizes.old), torch.tensor(sizes.new)
    positions = torch.where((at >= 0) & (at < new[:, None]), old[:, None] + at, -1)
    real = positions >= 0
    inputs: dict[str, Any] = {"query": random(rows, sizes.time, sizes.heads[0], sizes.dims[0])}
    inputs["query"][~real] = torch.nan
    width = -(-max(sizes.old) // PAGE) + 2
    table = None if sizes.slots else 1 + torch.randperm(rows * width, generator=draw).view(rows, width)
    texts = [[random(heads, length + more, dim) for heads, dim in zip(sizes.heads[1:], sizes.dims, strict=True)]
             for length, more in zip(sizes.old, sizes.new, strict=True)]  # fmt: skip
    for i, name in enumerate(("key", "value")):
        heads, dim = sizes.heads[1 + i], sizes.dims[i]
        chunk = torch.full((rows, sizes.time, heads, dim), torch.nan, dtype=torch.float64)
        shape = (1 + rows * width, heads, PAGE, dim) if table is not None else (rows, heads, sizes.slots, dim)
        store = torch.full(shape, torch.nan, dtype=torch.float64)
        for row, text in enumerate(texts):
            chunk[row, real[row]] = text[i][:, sizes.old[row] :].transpose(0, 1)
            for token in range(max(0, sizes.old[row] - sizes.slots) if sizes.slots else 0, sizes.old[row]):
                page = row if table is None else table[row, token // PAGE]
                store[page, :, token % (sizes.slots or PAGE)] = text[i][:, token]
        first = random(heads, sizes.prefix, dim) if sizes.prefix else None
        inputs |= {name: chunk, f"{name}s": store, f"prefix_{name}": first}
    return inputs | {"positions": positions, "start": old, "table": table, "reach": sizes.reach}, texts


def exact(sizes: Sizes, inputs: dict[str, Any], texts: list[list[Tensor]]) -> Tensor:
    """Each token alone with what it sees."""
    y = torch.zeros(*inputs["query"].shape[:3], sizes.dims[1], dtype=torch.float64)
    for row, place in (inputs["positions"] >= 0).nonzero().tolist():
        at = int(inputs["positions"][row, place])
        far = at if sizes.reach is None else sizes.reach
        # A ring holds no more of the older text than it has slots; the call's own tokens are all there.
        oldest = max(0, sizes.old[row] - sizes.slots) if sizes.slots else 0
        seen = [text[:, max(oldest, at - far) : at + 1] for text in texts[row]]
        if sizes.prefix:
            first = inputs["prefix_key"], inputs["prefix_value"]
            seen = [torch.cat(both, 1) for both in zip(first, seen, strict=True)]
        seen = [part.repeat_interleave(sizes.heads[0] // len(part), 0) for part in seen]
        y[row, place] = F.scaled_dot_product_attention(inputs["query"][row, place, :, None], *seen)[:, 0]
    return y


def moved(inputs: dict[str, Any], dtype, device="cpu", unseen=torch.nan) -> dict[str, Any]:
    """Copies; stores stay parts of larger tensors, new keys and values lie behind queries, as models hold them."""
    found = {name: part.to(device) if isinstance(part, Tensor) else part for name, part in inputs.items()}
    for name in FLOATS:
        if found[name] is not None:
            found[name] = found[name].nan_to_num(unseen).to(dtype, copy=True)
    for name in ("keys", "values"):
        rows, heads, slots, width = found[name].shape
        layers = torch.full((3, rows, heads, slots + 2, width), torch.nan, dtype=dtype, device=device)
        layers[1, :, :, :slots] = found[name]
        found[name] = layers[1, :, :, :slots]
    both = torch.cat((found["query"], found["key"]), 2)
    found["query"], found["key"] = both.split((found["query"].shape[2], found["key"].shape[2]), 2)
    return found


def assert_right(function, sizes: Sizes, dtype, device="cpu", unseen=torch.nan) -> Tensor:
    """No further off than a few roundings; 0 at padding; nothing is stored."""
    inputs, texts = case(sizes)
    expected, ours = exact(sizes, inputs, texts), moved(inputs, dtype, device, unseen)
    before = {name: ours[name].clone() for name in ("keys", "values")}
    y = function(**ours)
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    assert torch.equal(y.cpu()[inputs["positions"] < 0], torch.zeros_like(expected[inputs["positions"] < 0]).to(dtype))
    error = (y.cpu().double() - expected).norm().item()
    steps = {torch.float64: 64, torch.float32: 6}.get(dtype, 0.7)
    assert error <= steps * torch.finfo(dtype).eps * expected.norm().item(), error
    for name, was in before.items():
        torch.testing.assert_close(ours[name], was, rtol=0, atol=0, equal_nan=True)
    return y


@pytest.mark.parametrize("name", CASES)
def test_formulas_agree_with_each_token_alone_in_float64(name):
    assert_right(kernels.extend_attention.reference, CASES[name], torch.float64)
    assert_right(kernels.extend_attention, CASES[name], torch.float64, unseen=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["pages and a prefix, two widths", "a ring"])
def test_formulas_round_little(name, dtype):
    assert_right(kernels.extend_attention.reference, CASES[name], dtype)
    assert_right(kernels.extend_attention, CASES[name], dtype, unseen=1.0)


@pytest.mark.parametrize("store", ["reference", "eager"])
def test_arguments_that_do_not_fit_are_refused(store):
    function = getattr(kernels.extend_attention, store)
    inputs = moved(case(CASES["pages"])[0], torch.float64, unseen=1.0)
    with pytest.raises(ValueError, match="3 query heads"):
        function(**inputs | {"query": inputs["query"][:, :, :3]})
    with pytest.raises(ValueError, match="not of 2, 2 heads"):
        function(**inputs | {"keys": inputs["keys"][:, :1]})
    with pytest.raises(ValueError, match="pages of 8 tokens"):
        function(**inputs | {name: inputs[name][:, :, :8] for name in ("keys", "values")})


@contextmanager
def nan_in_new_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.extend_attention.triton import extend_attention

    with nan_in_new_memory():
        for sizes in CASES.values():
            # The interpreter multiplies the bits of bfloat16.
            for dtype in (torch.float32, torch.float16, *([torch.bfloat16] if device == "cuda" else [])):
                first, second = (assert_right(extend_attention, sizes, dtype, device) for _ in range(2))
                assert torch.equal(first, second), "equal inputs give equal bits"
    assert_right(extend_attention, CASES["a ring"], torch.float64, device, unseen=1.0)
    none = {name: part[:0] for name, part in moved(case(CASES["pages"])[0], torch.float32, device).items()
            if name in ("query", "key", "value", "positions", "start", "table")}  # fmt: skip
    whole = moved(case(CASES["pages"])[0], torch.float32, device)
    assert extend_attention(**whole | none).shape == (0, *whole["query"].shape[1:])


def test_no_program_is_compiled_anew_for_another_length():
    pytest.importorskip("triton")
    from nlrl.kernels.extend_attention import triton as module
    from nlrl.kernels.extend_attention.triton_programs import extend

    assert {"time", "table_row", "slots", "reach", "prefix"} == {p.name for p in extend.params if p.do_not_specialize}
    query, value = (torch.zeros(1, 1, 1, dim, dtype=torch.bfloat16) for dim in (64, 128))
    found = {rows: tuple(module._launch(query, value, rows).values()) for rows in range(1, 3000)}
    assert len(set(found.values())) == 3
    assert all(found[rows] == found[65] for rows in range(65, 3000))


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    hymba = Sizes((25, 5, 5), (64, 128), [1500, 0, 1024, 77, 30], [300, 300, 1, 200, 0], 300, 0, 1024, 1024, 128)
    plain = Sizes((24, 8, 8), (128, 128), [1500, 0, 1023, 16], [3, 300, 64, 129], 300)
    pairs = Sizes((8, 4, 2), (128, 256), [100, 1031], [100, 70], 100)
    for sizes in (hymba, hymba._replace(slots=0, reach=None), plain, pairs):
        for dtype in (torch.bfloat16, torch.float16):
            assert_right(kernels.extend_attention, sizes, dtype, "cuda")
    assert kernels.extend_attention.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    check_triton("cpu")
