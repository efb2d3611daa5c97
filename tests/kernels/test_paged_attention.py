"""Attention over pages: every implementation against dense attention of each row alone, in float64."""

from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl import kernels


class Case(NamedTuple):
    """Everything `paged_attention` takes, and the history it should see."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    values: Tensor
    table: Tensor
    positions: Tensor

    def to(self, dtype, device="cpu"):
        """Copies; pages stay a layer of a larger tensor."""
        moved = [x.to(device, dtype if x.is_floating_point() else x.dtype, copy=True) for x in self]
        for i in (3, 4):
            layers = torch.full((3, *moved[i].shape), torch.nan, dtype=dtype, device=device)
            layers[1] = moved[i]
            moved[i] = layers[1]
        return Case(*moved)


def case(heads, dims, positions, width) -> Case:
    """Random pages in random order; NaN wherever a row must not look.

    Args: heads, dims: of query, keys and values; of keys and values. positions: -1 for an idle row.
    """
    draw = torch.Generator().manual_seed(sum(positions) + 31 * heads[0])
    rows, pages = len(positions), 2 + len(positions) * width

    def random(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).bfloat16().half().double()  # exact in all

    query, key, value = (random(rows, n, dim) for n, dim in zip(heads, (dims[0], *dims), strict=True))
    keys, values = random(pages, heads[1], 16, dims[0]), random(pages, heads[2], 16, dims[1])
    table = 1 + torch.randperm(pages - 1, generator=draw)[: rows * width].view(rows, width)
    unseen = torch.ones(pages, 16, dtype=torch.bool)
    unseen[0] = False
    for row, position in enumerate(positions):
        for token in range(position):
            unseen[table[row, token // 16], token % 16] = False
    for pool in (keys, values):
        pool.transpose(1, 2)[unseen] = torch.nan
    return Case(query, key, value, keys, values, table, torch.tensor(positions))


CASES = {
    "one head": lambda: case((1, 1, 1), (32, 32), [0], 1),
    "groups": lambda: case((6, 2, 2), (32, 32), [5, 15, -1, 16, 120, 127], 8),
    "two maps": lambda: case((6, 2, 1), (48, 96), [33, 7], 4),
    "two maps, groups": lambda: case((8, 4, 2), (32, 64), [40, 0], 3),
    "odd widths": lambda: case((5, 5, 5), (36, 80), [70], 5),
    "several parts": lambda: case((4, 2, 2), (32, 32), [300, 10, 319], 20),
    "every part full": lambda: case((2, 1, 1), (64, 64), [1090], 70),
}
"""Made when asked for; the last two are long enough to be divided."""


def dense(case: Case) -> Tensor:
    """Each row alone, its history in one piece, by `scaled_dot_product_attention` with values repeated."""
    rows = []
    for row, position in enumerate(case.positions.tolist()):
        tokens = torch.arange(max(position, 0), device=case.table.device)
        where = (case.table[row, tokens // 16], slice(None), tokens % 16)
        keys = torch.cat([case.keys[where], case.key[None, row]]).transpose(0, 1)
        values = torch.cat([case.values[where], case.value[None, row]]).transpose(0, 1)
        values = values.repeat_interleave(keys.shape[0] // values.shape[0], 0)
        query = case.query[row][:, None]
        rows.append(F.scaled_dot_product_attention(query[None], keys[None], values[None], enable_gqa=True)[0, :, 0])
    return torch.stack(rows)


def assert_right(function, case: Case, dtype, device="cpu"):
    """Output at most 1.5 times as far off as dense attention in the same dtype; the new token stored, nothing else."""
    live = case.positions >= 0
    exact, ours = dense(case), case.to(dtype, device)
    y = function(*ours)
    assert y.dtype == dtype
    assert y.isfinite().all()
    error = (y.cpu().double() - exact)[live].norm().item()
    yardstick = (dense(case.to(dtype, device)).cpu().double() - exact)[live].norm().item()
    # Below the last: one rounding of weights and one of the output, for a yardstick that rounds the output alone.
    steps = {torch.float64: 16, torch.float32: 3}.get(dtype, 0.35)
    floor = steps * torch.finfo(dtype).eps * exact[live].norm().item()
    assert error <= max(1.5 * yardstick, floor), (error, yardstick, floor)
    for pool, before, new in ((ours.keys, case.keys, case.key), (ours.values, case.values, case.value)):
        after = before.clone()
        for row, position in enumerate(case.positions.tolist()):
            if position >= 0:
                after[case.table[row, position // 16], :, position % 16] = new[row]
        assert torch.equal(pool[1:].cpu().double().nan_to_num(1e9), after[1:].nan_to_num(1e9))
        assert live.logical_not().any() or torch.equal(pool[0].cpu().double(), before[0])
        assert pool[0].isfinite().all()
        layers = pool._base
        assert layers is not None
        assert layers[::2].isnan().all()


@pytest.mark.parametrize("name", CASES)
def test_reference_agrees_with_dense_attention_in_float64(name):
    assert_right(kernels.paged_attention, CASES[name](), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["groups", "two maps, groups", "several parts"])
def test_reference_is_as_exact_as_dense_attention(name, dtype):
    assert_right(kernels.paged_attention, CASES[name](), dtype)


def check_stored_already(function, dtype, device="cpu"):
    """Without key and value it gives what it gave as it stored them, and stores nothing."""
    ours = CASES["groups"]().to(dtype, device)
    live = ours.positions >= 0
    first = function(*ours)
    before = ours.keys.clone()
    again = function(ours.query, None, None, *ours[3:])
    torch.testing.assert_close(again[live], first[live], rtol=1e-5, atol=1e-5)
    assert again.isfinite().all()
    assert torch.equal(ours.keys.nan_to_num(1e9), before.nan_to_num(1e9))


def check_scale(function, dtype, device="cpu"):
    """With scores times nothing every token counts alike."""
    ours = case((2, 1, 1), (32, 32), [20], 2).to(dtype, device)
    y = function(*ours, scale=0.0)
    values = ours.values.transpose(1, 2)[ours.table[0]].flatten(0, 1)[:21, 0]
    torch.testing.assert_close(y[0, 1], values.mean(0), rtol=1e-5, atol=1e-5)


def test_keys_stored_already_need_not_come_again():
    check_stored_already(kernels.paged_attention, torch.float64)


def test_scale():
    check_scale(kernels.paged_attention, torch.float64)


def test_rows_may_share_the_pages_of_a_common_beginning():
    ours = case((4, 2, 2), (32, 32), [20, 20], 2).to(torch.float64)
    ours.table[1, 0] = ours.table[0, 0]
    exact = dense(ours)
    torch.testing.assert_close(kernels.paged_attention(*ours), exact)


def test_heads_that_do_not_divide_are_refused():
    ours = case((4, 2, 2), (32, 32), [3], 1)
    with pytest.raises(ValueError, match="3 query heads"):
        kernels.paged_attention(ours.query[:, :3], *ours[1:])
    with pytest.raises(ValueError, match="pages of 16"):
        kernels.paged_attention(*ours[:3], ours.keys[:, :, :8], *ours[4:])


def test_maps_of_differential_attention():
    """Key heads 2i and 2i + 1 go with value head i; queries come in the order of `differential`'s own maps."""
    from nlrl.backbones.attention import context
    from nlrl.backbones.diff_transformer.network import differential

    ours = case((8, 4, 2), (32, 64), [15], 1).to(torch.float64)
    page = ours.table[0, 0]
    keys = torch.cat([ours.keys[page, :, :15].transpose(0, 1), ours.key])[None]
    values = torch.cat([ours.values[page, :, :15].transpose(0, 1), ours.value])[None]
    neighbours = ours.query.unflatten(1, (2, 2, 2)).transpose(2, 3).flatten(1, 3)  # of one head, one for each map
    lambda_, causal = torch.tensor(0.3, dtype=torch.float64), context(torch.arange(16)[None], torch.ones(16))
    query = neighbours[:, None].expand(-1, 16, -1, -1)
    expected = differential(query, keys, values, lambda_, 0, causal)[:, -1]
    first, second = kernels.paged_attention(*ours).unflatten(1, (2, 2, 2)).unbind(2)
    torch.testing.assert_close((first - lambda_ * second).flatten(1, 2), expected)


@contextmanager
def nan_in_new_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.paged_attention.triton import paged_attention

    # The interpreter multiplies the bits of bfloat16.
    dtypes = [torch.float32, torch.float16, *([torch.bfloat16] if device == "cuda" else [])]
    with nan_in_new_memory():
        for make in CASES.values():
            for dtype in dtypes:
                assert_right(paged_attention, make(), dtype, device)
    check_stored_already(paged_attention, torch.float32, device)
    check_scale(paged_attention, torch.float32, device)
    turned = CASES["groups"]().to(torch.float32, device)
    expected = paged_attention(*turned)
    turned = turned._replace(query=turned.query.transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(paged_attention(*turned), expected)
    assert_right(paged_attention, CASES["groups"](), torch.float64, device)
    none = Case(*(x if x is turned.keys or x is turned.values else x[:0] for x in turned))
    assert paged_attention(*none).shape == (0, 6, 32)


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device():
    check_triton("cuda")
    for heads, dims in (((32, 8, 8), (128, 128)), ((16, 8, 4), (128, 256)), ((64, 2, 2), (256, 256))):
        positions = [4095, -1, 17, 2048, 0, 3000]
        for dtype in (torch.bfloat16, torch.float32):
            assert_right(kernels.paged_attention, case(heads, dims, positions, 256), dtype, "cuda")
    assert kernels.paged_attention.provider("nlrl").__module__.endswith("triton")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_graph_serves_rows_of_every_length():
    ours = case((6, 2, 2), (32, 32), [1000, 1000], 64).to(torch.float16, "cuda")
    kernels.paged_attention(*ours)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernels.paged_attention(*ours)
    for positions in ([3, 900], [999, -1]):
        ours.positions.copy_(torch.tensor(positions))
        graph.replay()
        assert torch.equal(y[:1], kernels.paged_attention(*ours)[:1])
        exact = dense(Case(*(x.double() if x.is_floating_point() else x for x in ours)))
        torch.testing.assert_close(y[:1].double(), exact[:1], rtol=2e-3, atol=2e-3)


if __name__ == "__main__":
    check_triton("cpu")
