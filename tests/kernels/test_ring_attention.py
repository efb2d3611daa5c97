"""Attention over rings: every implementation against dense attention of each row alone, in float64."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl import kernels

FLOATS = ("query", "key", "value", "keys", "values", "prefix_key", "prefix_value")


def random(draw, *shape) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64).bfloat16().half().double()  # exact in all


def case(heads, dims, slots, positions, prefix=0, reach=None, turns=False, writes=True) -> tuple[dict[str, Any], list]:
    """Arguments of the op, NaN wherever a row must not look, and each row's history: (keys, values) of all tokens.

    Args: heads: of query and of keys. dims: of keys and of values. positions: -1 for an idle row.
    """
    draw, rows = torch.Generator().manual_seed(sum(positions) + slots), len(positions)
    inputs: dict[str, Any] = {"query": random(draw, rows, heads[0], dims[0])}
    for name, dim in zip(("key", "value"), dims, strict=True):
        inputs[name] = random(draw, rows, heads[1], dim)
        inputs[f"{name}s"] = torch.full((rows, heads[1], slots, dim), torch.nan, dtype=torch.float64)
        inputs[f"prefix_{name}"] = random(draw, heads[1], prefix, dim) if prefix else None
    history = [[random(draw, heads[1], max(0, at), dim) for dim in dims] for at in positions]
    for row, parts in enumerate(history):
        for ring, old in zip(("keys", "values"), parts, strict=True):
            for token in range(max(0, positions[row] - slots), positions[row]):
                inputs[ring][row, :, token % slots] = old[:, token]
    inputs |= {"positions": torch.tensor(positions), "reach": slots if reach is None else reach, "writes": writes}
    angle = 6 * torch.rand(rows, 1, 1, dims[0] // 2, generator=draw, dtype=torch.float64)
    return inputs | {"cos": angle.cos() if turns else None, "sin": angle.sin() if turns else None}, history


CASES = {
    "one head": lambda: case((1, 1), (16, 16), 8, [0]),
    "grouped, two widths": lambda: case((10, 2), (32, 64), 21, [0, 3, 20, 21, -1, 22, 41, 42, 200], prefix=5),
    "turned": lambda: case((5, 1), (24, 40), 11, [7, 11, 30], prefix=3, turns=True),
    "a reach within the ring": lambda: case((4, 2), (16, 16), 40, [5, 39, 100], reach=9),
    "itself and the prefix": lambda: case((2, 2), (16, 16), 1, [0, 7], prefix=4, reach=0),
    "itself alone": lambda: case((2, 1), (16, 32), 1, [3], reach=0),
    "three parts": lambda: case((4, 1), (32, 32), 300, [471, 130], prefix=37, turns=True),
    "three parts, full and idle": lambda: case((4, 1), (32, 48), 300, [300, -1], prefix=128),
    "parts that see nothing": lambda: case((2, 1), (16, 16), 700, [1000, 3], reach=20),
    "read again later": lambda: case((4, 2), (16, 32), 9, [4, 25], prefix=3, writes=False),
}


def dense(inputs, history) -> Tensor:
    """Each row alone, what it sees in one piece."""
    rows = []
    for row, at in enumerate(inputs["positions"].tolist()):
        query, key = inputs["query"][row], inputs["key"][row]
        if inputs["cos"] is not None:
            turn = torch.complex(inputs["cos"][row, 0].double(), inputs["sin"][row, 0].double())
            query, key = (torch.complex(*part.chunk(2, -1)) * turn for part in (query, key))
            query, key = (torch.cat((part.real, part.imag), -1) for part in (query, key))
        first = max(0, at - min(inputs["reach"], inputs["keys"].shape[2]))
        seen = []
        for name, own, old in zip(("key", "value"), (key, inputs["value"][row]), history[row], strict=True):
            prefix = [] if inputs[f"prefix_{name}"] is None else [inputs[f"prefix_{name}"]]
            seen.append(torch.cat([*prefix, old[:, first:], own[:, None]], 1))
        rows.append(F.scaled_dot_product_attention(query[None, :, None], *(s[None] for s in seen), enable_gqa=True))
    return torch.cat(rows)[:, :, 0]


def moved(inputs, dtype, device="cpu", unseen=torch.nan) -> dict[str, Any]:
    """Copies; a ring stays one of several in a larger tensor, with more slots than are looked at."""
    found = {name: part.to(device) if isinstance(part, Tensor) else part for name, part in inputs.items()}
    for name in FLOATS:
        if found[name] is not None:
            found[name] = found[name].to(dtype, copy=True)
    for name in ("keys", "values"):
        rows, heads, slots, width = found[name].shape
        layers = torch.full((3, rows, heads, slots + 2, width), torch.nan, dtype=dtype, device=device)
        layers[1, :, :, :slots] = found[name].nan_to_num(unseen)
        found[name] = layers[1, :, :, :slots]
    return found


def assert_right(function, made, dtype, device="cpu", unseen=torch.nan):
    """No further off than a few roundings; the new token in its slot if it is to be, and nothing else changed."""
    inputs, history = made
    live, exact = inputs["positions"] >= 0, dense(inputs, history)
    ours = moved(inputs, dtype, device, unseen)
    before = {name: ours[name].clone() for name in ("keys", "values")}
    y = function(**ours)
    assert y.dtype == dtype
    assert y.isfinite().all()
    error = (y.cpu().double() - exact)[live].norm().item()
    # Halves round what was turned, the weights and the output.
    steps = {torch.float64: 64, torch.float32: 6}.get(dtype, 0.7)
    assert error <= steps * torch.finfo(dtype).eps * exact[live].norm().item(), error
    if inputs["cos"] is not None:
        ours["key"] = kernels.rotary.reference(ours["key"][:, None], ours["cos"], ours["sin"])[:, 0]
    for name, new in (("keys", ours["key"]), ("values", ours["value"])):
        slots, base = ours[name].shape[2], ours[name]._base
        for row, at in enumerate(inputs["positions"].tolist()):
            if at >= 0 and inputs["writes"]:
                before[name][row, :, at % slots] = new[row]
        close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).eps, "equal_nan": True}
        torch.testing.assert_close(ours[name], before[name], **close)
        assert base is not None
        assert base[::2].isnan().all()
        assert base[1, :, :, slots:].isnan().all()


@pytest.mark.parametrize("name", CASES)
def test_formulas_agree_with_dense_attention_in_float64(name):
    assert_right(kernels.ring_attention.reference, CASES[name](), torch.float64)
    assert_right(kernels.ring_attention, CASES[name](), torch.float64, unseen=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["grouped, two widths", "turned"])
def test_formulas_round_little(name, dtype):
    assert_right(kernels.ring_attention.reference, CASES[name](), dtype)
    assert_right(kernels.ring_attention, CASES[name](), dtype, unseen=1.0)


def test_heads_that_do_not_divide_are_refused():
    inputs, _ = CASES["grouped, two widths"]()
    with pytest.raises(ValueError, match="9 query heads"):
        kernels.ring_attention(**inputs | {"query": inputs["query"][:, :9]})


def check_a_text(function, dtype, device="cpu"):
    """Token after token through rings of two layers that share one: as attention over a window of the whole text."""
    draw, slots, time = torch.Generator().manual_seed(0), 5, 17
    query, key, value = (random(draw, 2, time, heads, 16).to(device, dtype) for heads in (4, 2, 2))
    prefix = [random(draw, 2, 3, 16).to(device, dtype) for _ in range(2)]
    keys, values = (torch.full((2, 2, slots, 16), 1.0, dtype=dtype, device=device) for _ in range(2))
    first, again = [], []
    for at in range(time):
        given = (query[:, at], key[:, at], value[:, at], keys, values, torch.tensor([at, at - 4], device=device), slots)
        first.append(function(*given, False, *prefix))
        again.append(function(*given, True, *prefix))
    assert torch.equal(torch.stack(first)[4:], torch.stack(again)[4:])
    for row, begin in ((0, 0), (1, 4)):
        text = (query[row, None, begin:], key[row, None, begin:], value[row, None, begin:])
        starts = (torch.arange(time - begin, device=device) - slots).clamp_min(0)[None]
        expected = kernels.prefix_attention.reference(*text, *prefix, starts)[0]
        torch.testing.assert_close(torch.stack(again)[begin:, row], expected, rtol=1e-4, atol=1e-4)


def test_a_ring_shared_by_two_layers_holds_a_window_of_the_text():
    check_a_text(kernels.ring_attention.reference, torch.float64)
    check_a_text(kernels.ring_attention, torch.float64)


@contextmanager
def nan_in_new_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.paged_attention.triton import paged_attention
    from nlrl.kernels.ring_attention.triton import ring_attention

    # The interpreter multiplies the bits of bfloat16.
    dtypes = [torch.float32, torch.float16, *([torch.bfloat16] if device == "cuda" else [])]
    with nan_in_new_memory():
        for make in CASES.values():
            for dtype in dtypes:
                assert_right(ring_attention, make(), dtype, device)
        check_a_text(ring_attention, torch.float32, device)
        for positions in ([9, -1, 0], [205]):
            check_pages(paged_attention, positions, device)
    inputs, _ = CASES["three parts"]()
    turned = moved(inputs, torch.float32, device)
    expected = ring_attention(**turned | {"writes": False})
    turned["query"] = turned["query"].transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ring_attention(**turned | {"writes": False}), expected), "and equal inputs give equal bits"
    assert_right(ring_attention, CASES["turned"](), torch.float64, device, unseen=1.0)


def check_pages(function, positions, device="cpu"):
    """A prefix and angles before pages: as rings that never go round."""
    room, shape = 208, ((6, 2), (16, 32))
    inputs, _ = case(*shape, room, positions, prefix=21, turns=True)
    ring = moved(inputs, torch.float32, device, unseen=1.0)
    expected = kernels.ring_attention.reference(**ring)
    table = 1 + torch.randperm(len(positions) * room // 16, generator=torch.Generator().manual_seed(1), device="cpu")
    table = table.view(len(positions), -1).to(device)
    given = moved(inputs, torch.float32, device)
    pools = []
    for name in ("keys", "values"):
        part = given[name]
        pools.append(part.new_full((1 + table.numel(), part.shape[1], 16, part.shape[3]), torch.nan))
        pools[-1][0] = 0
        pools[-1][table] = part.unflatten(2, (-1, 16)).transpose(1, 2)
    extras = (given[name] for name in ("prefix_key", "prefix_value", "cos", "sin"))
    y = function(given["query"], given["key"], given["value"], *pools, table, given["positions"], None, *extras)
    live = given["positions"] >= 0
    torch.testing.assert_close(y[live], expected[live], rtol=1e-5, atol=1e-5)
    assert y.isfinite().all()
    for pool, after in zip(pools, (ring["keys"], ring["values"]), strict=True):
        for row, at in enumerate(positions):
            if at >= 0:
                torch.testing.assert_close(pool[table[row, at // 16], :, at % 16], after[row, :, at])


def test_pages_take_a_prefix_and_angles_too():
    check_pages(kernels.paged_attention, [9, -1, 0])


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    for dtype in (torch.bfloat16, torch.float32):
        made = case((25, 5), (64, 128), 1024, [1500, -1, 17, 1024, 0, 1023], prefix=128, turns=True)
        assert_right(kernels.ring_attention, made, dtype, "cuda")
    assert kernels.ring_attention.provider("nlrl").__module__.endswith("triton")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_graph_serves_rows_of_every_length():
    made = case((10, 2), (64, 128), 1024, [1000, 900], prefix=128, turns=True, writes=False)
    ours = moved(made[0], torch.float16, "cuda", unseen=1.0)
    kernels.ring_attention(**ours)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernels.ring_attention(**ours)
    for positions in ([3, 900], [5000, -1], [0, 1023]):
        ours["positions"].copy_(torch.tensor(positions))
        graph.replay()
        assert torch.equal(y, kernels.ring_attention(**ours))
        torch.testing.assert_close(y[:1], kernels.ring_attention.reference(**ours)[:1], rtol=1e-2, atol=1e-2)


if __name__ == "__main__":
    check_triton("cpu")
