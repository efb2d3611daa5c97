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


def inputs(positions: torch.Tensor = POSITIONS, channels: int = 3, seed: int = 0, states: int = STATES):
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    rows, time = positions.shape
    return {
        "x": randn(rows, time, channels),
        "delta": randn(rows, time, channels).exp(),
        "A": -randn(channels, states).exp(),
        "B": randn(rows, time, states),
        "C": randn(rows, time, states),
        "D": randn(channels),
        "position_ids": positions,
        "state": randn(rows, channels, states),
        "initial": randn(channels, states),
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


def long_rows(time: int) -> torch.Tensor:
    """One document; documents of many lengths, padding in front and behind; a document that goes on."""
    packed = torch.cat([torch.arange(size) for size in range(1, time)])[: time - 12]
    packed = torch.cat((torch.full((5,), -1), packed, torch.full((7,), -1)))
    return torch.stack((torch.arange(time), packed, torch.arange(time) + 3))


def results(function, arguments, dtype, device):
    """Outputs and gradients, in float64 and at places that count; x, B and C are in `dtype`, the others in float32."""
    fresh = {name: None if t is None else t.to(device) for name, t in arguments.items()}
    names = [name for name in FLOATS if fresh[name] is not None]
    for name in names:
        wide = torch.promote_types(dtype, torch.float32)
        fresh[name] = fresh[name].to(dtype if name in ("x", "B", "C") else wide).requires_grad_()
    y, state = function(**fresh)
    real = (fresh["position_ids"] >= 0)[..., None]
    draw = torch.Generator().manual_seed(7)
    dy, dstate = (torch.randn(t.shape, generator=draw, dtype=torch.float64).float().to(t) for t in (y, state))
    leaves = [fresh[name] for name in names]
    gradients = torch.autograd.grad((y, state), leaves, (dy * real, dstate))
    assert all(gradient.dtype == leaf.dtype for gradient, leaf in zip(gradients, leaves, strict=True))
    found = {"y": y * real, "after": state} | {f"d{name}": g for name, g in zip(names, gradients, strict=True)}
    return {name: tensor.detach().double().cpu() for name, tensor in found.items()}


def assert_as_exact_as_plain(function, arguments, dtype, device):
    """Its error is at most 1.5 times that of the plain formula in the same dtype; arguments rounded before both. The
    interpreter does not round to bfloat16 but cuts, and so errs by up to one unit in the last place."""
    names = [name for name in FLOATS if arguments[name] is not None]
    rounded = {name: arguments[name].to(dtype if name in ("x", "B", "C") else torch.float32) for name in names}
    given = arguments | {name: tensor.double() for name, tensor in rounded.items()}
    exact = results(kernels.selective_scan.reference, given, torch.float64, "cpu")
    ours, plain = (results(f, given, dtype, device) for f in (function, kernels.selective_scan.reference))
    least = torch.finfo(dtype).eps if device == "cpu" and dtype == torch.bfloat16 else 3e-7
    for name, true in exact.items():
        mine, theirs = (ours[name] - true).norm(), (plain[name] - true).norm()
        assert mine <= 1.5 * theirs + least * true.norm(), f"{name}: {mine} against {theirs} of {true.norm()}"


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.selective_scan import triton

    scan, nothing = triton.selective_scan, {"state": None, "initial": None}
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setattr(triton, "CHUNK", 8)  # the interpreter is slow
        rows = long_rows(2 * triton.CHUNK + 5)
        assert_as_exact_as_plain(scan, inputs(POSITIONS[1:4]), torch.bfloat16, device)
        assert_as_exact_as_plain(scan, inputs(POSITIONS[:, 4:5]) | nothing, torch.float32, device)
        side_by_side = inputs(rows[1:2], channels=70, states=3)
        assert triton._plan(side_by_side["x"].to(device), 3).spans == 3
        assert_as_exact_as_plain(scan, side_by_side, torch.float32, device)
        check_padding_is_never_read(scan, device)
        patch.setattr(triton, "PROGRAMS_PER_PROCESSOR", 0)  # no room for spans side by side
        assert_as_exact_as_plain(scan, inputs(rows[1:]) | nothing, torch.float32, device)
    y, state = scan(**{name: tensor.to(device) for name, tensor in inputs(POSITIONS[:, :0]).items()})
    assert y.shape == (5, 0, 3)
    assert torch.equal(state.cpu(), inputs(POSITIONS[:, :0])["state"])


def check_padding_is_never_read(scan, device):
    arguments = inputs(POSITIONS[1:4])
    real = (POSITIONS[1:4] >= 0)[..., None]
    poisoned = {name: arguments[name].where(real, torch.nan) for name in ("x", "delta", "B", "C")}
    found, expected = (results(scan, given, torch.float32, device) for given in (arguments | poisoned, arguments))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.no_grad():
        given = {name: tensor.to(device) for name, tensor in (arguments | poisoned).items()}
        floats = {name: tensor.float() for name, tensor in given.items() if name != "position_ids"}
        assert all(tensor.isfinite().all() for tensor in scan(**given | floats))


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device_are_exact():
    check_triton("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "states"), [(200, 16), (96, 64), (33, 100)])
def test_long_rows_on_the_device_are_exact_and_repeatable(channels, states, dtype):
    arguments = inputs(long_rows(500), channels, states=states)
    assert_as_exact_as_plain(kernels.selective_scan, arguments, dtype, "cuda")
    first, second = (results(kernels.selective_scan, arguments, dtype, "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("time", [1, 200])
def test_a_call_can_be_captured_in_a_graph(time):
    draw = inputs(torch.arange(time).expand(2, time) + 1, channels=64)
    arguments = {name: t.cuda() if name == "position_ids" else t.float().cuda() for name, t in draw.items()}
    with torch.no_grad():
        expected = kernels.selective_scan(**arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = kernels.selective_scan(**arguments)
        graph.replay()
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_needs_less_than_room_for_the_states():
    """In values a token and channel, where all states are 16: kept are y and the states between chunks."""
    rows, time, channels, states = 4, 4096, 512, 16
    draw = inputs(torch.arange(time).expand(rows, time), channels, states=states)
    arguments = {name: t.cuda() if name == "position_ids" else t.float().cuda() for name, t in draw.items()}
    leaves = [arguments[name].requires_grad_() for name in FLOATS]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y, _ = kernels.selective_scan(**arguments)
    kept = torch.cuda.memory_allocated() - before
    torch.autograd.grad(y.sum(), leaves)
    assert kept < 2 * y.nbytes
    assert torch.cuda.max_memory_allocated() - before < 12 * y.nbytes


if __name__ == "__main__":
    import bounds

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # uninitialised memory is filled with NaN
    with bounds.checked():
        check_triton("cpu")
