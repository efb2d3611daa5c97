"""The scan of Mamba-1: every implementation against sums written out, in rows of documents with padding."""

import pytest
import torch

from nlrl import kernels
from nlrl.kernels.selective_scan import eager

IMPLEMENTATIONS = ["reference", "eager", "compiled"]
POSITIONS = torch.tensor([
    [0, 1, 2, 3, 4, 5, 6, 7, 8],
    [5, 6, 7, 0, 1, 0, 1, 2, -1],  # goes on, then two documents begin, then padding
    [2, 0, -1, -1, -1, -1, -1, -1, -1],
    [-1, -1, -1, 0, 1, 2, 3, 4, 5],
    [-1, -1, -1, -1, -1, -1, -1, -1, -1],
])  # fmt: skip
STATES = 4


@pytest.fixture(params=IMPLEMENTATIONS)
def selective_scan(request):
    return getattr(kernels.selective_scan, request.param)


@pytest.fixture(params=[(1 << 18, 16), (1, 16), (1 << 18, 2), (60 * 4, 2)], ids=str)
def cuts(request, monkeypatch):
    """Segments and lanes of other sizes: one segment, many, lanes, many segments with lanes."""
    monkeypatch.setitem(eager.SEGMENT_VALUES, "cpu", request.param[0])
    monkeypatch.setattr(eager, "LANE", request.param[1])


def inputs(positions: torch.Tensor = POSITIONS, channels: int = 3, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    rows, time = positions.shape
    return {
        "x": randn(rows, time, channels),
        "delta": randn(rows, time, channels).exp(),
        "A": -randn(channels, STATES).exp(),
        "B": randn(rows, time, STATES),
        "C": randn(rows, time, STATES),
        "D": randn(channels),
        "position_ids": positions,
        "state": randn(rows, channels, STATES),
        "initial": randn(channels, STATES),
    }


FLOATS = [name for name in inputs() if name != "position_ids"]


def by_hand(x, delta, A, B, C, D, position_ids, state, initial):
    y, state = torch.zeros_like(x), state.clone()
    for row, places in enumerate(position_ids.tolist()):
        for t, position in enumerate(places):
            if position < 0:
                continue
            before = initial if position == 0 else state[row]
            for c, step in enumerate(delta[row, t]):
                state[row, c] = (step * A[c]).exp() * before[c] + step * x[row, t, c] * B[row, t]
            y[row, t] = state[row] @ C[row, t] + D * x[row, t]
    return y, state


@pytest.mark.usefixtures("cuts")
def test_is_the_recurrence_of_its_own_document(selective_scan):
    arguments, real = inputs(), POSITIONS >= 0
    (y, state), (expected, expected_state) = selective_scan(**arguments), by_hand(**arguments)
    torch.testing.assert_close(y[real], expected[real], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, expected_state, rtol=1e-12, atol=1e-12)
    assert y.isfinite().all()
    assert torch.equal(state[4], arguments["state"][4]), "padding leaves no trace"


def test_without_a_state_or_an_initial_there_are_zeros(selective_scan):
    arguments = inputs()
    zeros = {name: torch.zeros_like(arguments[name]) for name in ("state", "initial")}
    nothing = dict.fromkeys(zeros)
    for found, expected in zip(selective_scan(**arguments | nothing), selective_scan(**arguments | zeros), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sizes", [(1,) * 9, (2, 7), (4, 1, 4), (8, 1)])
def test_parts_equal_the_whole(selective_scan, sizes):
    arguments, real = inputs(), POSITIONS >= 0
    expected, end = selective_scan(**arguments)
    parts, state, start = [], arguments["state"], 0
    for size in sizes:
        part = slice(start, start + size)
        now = {name: arguments[name][:, part] for name in ("x", "delta", "B", "C", "position_ids")}
        y, state = selective_scan(**arguments | now | {"state": state})
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[real], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=1e-12, atol=1e-12)


def gradients(function, arguments):
    fresh = arguments | {name: arguments[name].clone().requires_grad_() for name in FLOATS if name in arguments}
    leaves = [tensor for tensor in fresh.values() if tensor.requires_grad]
    y, state = function(**fresh)
    loss = (y.sin() * (fresh["position_ids"] >= 0)[..., None]).sum() + state.square().sum()
    return torch.autograd.grad(loss, leaves)


@pytest.mark.usefixtures("cuts")
@pytest.mark.parametrize("implementation", ["eager", "compiled"])
def test_gradients_are_those_of_the_plain_formula(implementation):
    positions = torch.cat((POSITIONS, torch.arange(9)[None] + 3))
    arguments = inputs(positions)
    found = gradients(getattr(kernels.selective_scan, implementation), arguments)
    for mine, plain in zip(found, gradients(kernels.selective_scan.reference, arguments), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-11)


def test_one_token_has_the_gradients_of_the_plain_formula():
    arguments = inputs(torch.tensor([[0], [4], [-1]]))
    found = gradients(kernels.selective_scan.eager, arguments)
    for mine, plain in zip(found, gradients(kernels.selective_scan.reference, arguments), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["reference", "eager"])
def test_gradients_agree_with_differences(implementation):
    arguments = inputs(POSITIONS[1:3, 1:5], channels=2)
    function = getattr(kernels.selective_scan, implementation)

    def of_floats(*tensors):
        return function(**arguments | dict(zip(FLOATS, tensors, strict=True)))

    assert torch.autograd.gradcheck(of_floats, [arguments[name].requires_grad_() for name in FLOATS])


def test_long_steps_neither_overflow_nor_become_nan(selective_scan):
    """exp(delta * A) underflows to zero; its inverse, which no form may take, would be infinite."""
    arguments = {name: t.float() if t.is_floating_point() else t for name, t in inputs().items()}
    arguments["delta"] = arguments["delta"] + 100
    arguments["A"] = arguments["A"] * 50
    for found in (*selective_scan(**arguments), *gradients(selective_scan, arguments)):
        assert found.isfinite().all()


@pytest.mark.parametrize("time", [1, 40])
def test_half_precision_inputs_keep_a_full_precision_state(selective_scan, time):
    arguments = inputs(torch.arange(time).expand(2, time))
    half = {name: t.bfloat16() if name in ("x", "B", "C") else t.float() for name, t in arguments.items()}
    half["position_ids"] = arguments["position_ids"]
    exact = {name: t.double() if t.is_floating_point() else t for name, t in half.items()}
    (y, state), (true_y, true_state) = selective_scan(**half), selective_scan(**exact)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(state.double(), true_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y.double(), true_y, rtol=8e-3, atol=1e-5)


def test_float32_errors_are_those_of_the_plain_formula():
    exact = inputs(torch.arange(300).expand(2, 300), channels=8, seed=1)
    single = {name: t.float() if t.is_floating_point() else t for name, t in exact.items()}
    exact = {name: t.double() if t.is_floating_point() else t for name, t in single.items()}
    truth = [*kernels.selective_scan.reference(**exact), *gradients(kernels.selective_scan.reference, exact)]
    ours, plain = (
        [*function(**single), *gradients(function, single)]
        for function in (kernels.selective_scan.eager, kernels.selective_scan.reference)
    )
    for mine, theirs, true in zip(ours, plain, truth, strict=True):
        assert (mine.double() - true).norm() <= 1.5 * (theirs.double() - true).norm() + 1e-7 * true.norm()


def test_a_compiled_call_gives_the_same():
    arguments = inputs()
    compiled = torch.compile(lambda *given: kernels.selective_scan(*given), backend="aot_eager", fullgraph=True)
    found, expected = compiled(*arguments.values()), kernels.selective_scan(*arguments.values())
    real = POSITIONS >= 0
    torch.testing.assert_close(found[0][real], expected[0][real])
    torch.testing.assert_close(found[1], expected[1])


def test_no_tokens_change_nothing(selective_scan):
    arguments = inputs(POSITIONS[:, :0])
    y, state = selective_scan(**arguments)
    assert y.shape == (5, 0, 3)
    assert torch.equal(state, arguments["state"])
