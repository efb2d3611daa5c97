"""The convolution against sums written out token by token, in rows of documents with windows and padding."""

import pytest
import torch

from nlrl import kernels
from nlrl.kernels import launches

IMPLEMENTATIONS = ["reference", "eager"]
POSITIONS = torch.tensor([
    [0, 1, 2, 3, 4, 5, 6, 7, 8],
    [5, 6, 7, 0, 1, 0, 1, 2, -1],  # goes on, then two documents begin, then padding
    [3, 0, -1, -1, -1, -1, -1, -1, -1],
    [-1, -1, -1, 0, 1, 2, 3, 4, 5],
    [-1, -1, -1, -1, -1, -1, -1, -1, -1],
])  # fmt: skip


@pytest.fixture(params=IMPLEMENTATIONS)
def causal_conv1d(request):
    return getattr(kernels.causal_conv1d, request.param)


def inputs(taps: int, channels: int = 3, positions: torch.Tensor = POSITIONS):
    draw = torch.Generator().manual_seed(taps)

    def randn(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    rows = positions.shape[0]
    return {
        "x": randn(*positions.shape, channels),
        "weight": randn(channels, taps),
        "bias": randn(channels),
        "position_ids": positions,
        "window": randn(rows, taps - 1, channels),
        "initial": randn(taps - 1, channels),
    }


def by_hand(x, weight, bias, position_ids, window, initial):
    """One token after the other; padding stays zero."""
    taps, y, new_window = weight.shape[1], torch.zeros_like(x), window.clone()
    for row, places in enumerate(position_ids.tolist()):
        before = list(window[row])
        for time, position in enumerate(places):
            if position < 0:
                continue
            before = [*(initial if position == 0 else before), x[row, time]][-taps:]
            y[row, time] = bias + sum(weight[:, i] * before[i] for i in range(taps))
            before = before[1:]
        new_window[row] = torch.stack(before) if before else new_window[row]
    return y, new_window


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_is_the_sum_of_the_tokens_of_its_own_document(causal_conv1d, taps):
    arguments = inputs(taps)
    (y, window), (expected, _) = causal_conv1d(**arguments), by_hand(**arguments)
    real = POSITIONS >= 0
    torch.testing.assert_close(y[real], expected[real], rtol=1e-12, atol=1e-12)
    assert y.isfinite().all()
    assert window.shape == arguments["window"].shape


def test_without_a_window_an_initial_or_a_bias_there_are_zeros(causal_conv1d):
    arguments = inputs(4)
    zeros = {name: torch.zeros_like(arguments[name]) for name in ("window", "initial", "bias")}
    nothing = dict.fromkeys(zeros)
    for found, expected in zip(causal_conv1d(**arguments | nothing), causal_conv1d(**arguments | zeros), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_new_window_ends_with_the_last_token(causal_conv1d):
    arguments = inputs(4)
    x, old, new = arguments["x"], arguments["window"], causal_conv1d(**arguments)[1]
    assert torch.equal(new[0], x[0, -3:])
    assert torch.equal(new[1], x[1, 5:8])
    assert torch.equal(new[2], torch.cat((old[2, 2:], x[2, :2])))
    assert torch.equal(new[4], old[4]), "padding leaves no trace"


@pytest.mark.parametrize("cuts", [(1,) * 9, (2, 7), (4, 1, 4), (8, 1)])
def test_parts_equal_the_whole(causal_conv1d, cuts):
    arguments = inputs(4)
    expected, end = causal_conv1d(**arguments)
    parts, window, start = [], arguments["window"], 0
    for size in cuts:
        part = slice(start, start + size)
        now = {"x": arguments["x"][:, part], "position_ids": POSITIONS[:, part], "window": window}
        y, window = causal_conv1d(**arguments | now)
        parts.append(y)
        start += size
    real = POSITIONS >= 0
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[real], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(window, end)


def test_padding_is_never_read(causal_conv1d):
    """What stands in padding changes nothing, not even by being NaN."""
    arguments = inputs(4)
    real = (POSITIONS >= 0)[..., None]
    y, window = causal_conv1d(**arguments)
    poisoned = arguments | {"x": arguments["x"].where(real, torch.nan)}
    again, same_window = causal_conv1d(**poisoned)
    assert torch.equal(y.where(real, 0), again.where(real, 0))
    assert torch.equal(window, same_window)


@pytest.mark.parametrize("taps", [1, 4])
def test_gradients_are_those_of_the_plain_formula(taps):
    arguments = inputs(taps)
    leaves = [name for name in arguments if name != "position_ids"]
    found = []
    for implementation in (kernels.causal_conv1d.eager, kernels.causal_conv1d.reference):
        fresh = arguments | {name: arguments[name].clone().requires_grad_() for name in leaves}
        y, window = implementation(**fresh)
        loss = (y.sin() * (POSITIONS >= 0)[..., None]).sum() + window.square().sum()
        found.append(torch.autograd.grad(loss, [fresh[name] for name in leaves], materialize_grads=True))
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)


def test_gradients_agree_with_differences(causal_conv1d):
    arguments = inputs(3, channels=2, positions=POSITIONS[1:3, :5])
    leaves = [name for name in arguments if name != "position_ids"]

    def function(*tensors):
        return causal_conv1d(**arguments | dict(zip(leaves, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, [arguments[name].requires_grad_() for name in leaves])


def test_half_precision_inputs_are_summed_in_full_precision(causal_conv1d):
    arguments = inputs(4)
    half = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in arguments.items()}
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in half.items()}
    y, window = causal_conv1d(**half)
    assert (y.dtype, window.dtype) == (torch.bfloat16, torch.bfloat16)
    real = POSITIONS >= 0
    assert torch.equal(y[real], causal_conv1d(**exact)[0].bfloat16()[real]), "rounded once, at the end"


def test_a_compiled_call_gives_the_same():
    arguments = inputs(4)
    compiled = torch.compile(lambda *given: kernels.causal_conv1d(*given), backend="aot_eager", fullgraph=True)
    found, expected = compiled(*arguments.values()), kernels.causal_conv1d(*arguments.values())
    real = POSITIONS >= 0
    torch.testing.assert_close(found[0][real], expected[0][real])
    torch.testing.assert_close(found[1], expected[1])


def results(function, arguments, dtype, device):
    """Outputs and gradients, in float64 and at places that count; x is a slice of wider rows."""
    fresh = {name: None if t is None else t.to(device) for name, t in arguments.items()}
    names = [name for name in fresh if name != "position_ids" and fresh[name] is not None]
    for name in names:
        fresh[name] = fresh[name].to(dtype).requires_grad_()
    wide = torch.cat((fresh["x"].detach(),) * 2, -1).requires_grad_()
    y, window = function(**fresh | {"x": wide[..., : fresh["x"].shape[2]]})
    real = (fresh["position_ids"] >= 0)[..., None]
    draw = torch.Generator().manual_seed(7)
    dy, dwindow = (torch.randn(t.shape, generator=draw, dtype=torch.float64).bfloat16().to(t) for t in (y, window))
    leaves = [wide if name == "x" else fresh[name] for name in names]
    gradients = torch.autograd.grad((y, window), leaves, (dy * real, dwindow), materialize_grads=True)
    assert all(gradient.dtype == leaf.dtype for gradient, leaf in zip(gradients, leaves, strict=True))
    found = {"y": y * real, "after": window} | {f"d{name}": g for name, g in zip(names, gradients, strict=True)}
    return {name: tensor.detach().double().cpu() for name, tensor in found.items()}


def assert_as_exact_as_plain(function, arguments, dtype, device):
    """Its error is at most 1.5 times that of the plain formula in the same dtype; arguments rounded before both. The
    interpreter does not round to bfloat16 but cuts, and so errs by up to one unit in the last place."""
    floats = {name: t.to(dtype).double() for name, t in arguments.items() if t is not None and name != "position_ids"}
    given = arguments | floats
    exact = results(kernels.causal_conv1d.reference, given, torch.float64, "cpu")
    ours, plain = (results(f, given, dtype, device) for f in (function, kernels.causal_conv1d.reference))
    least = torch.finfo(dtype).eps * (1 if device == "cpu" and dtype == torch.bfloat16 else 0.5)
    for name, true in exact.items():
        mine, theirs = (ours[name] - true).norm(), (plain[name] - true).norm()
        assert mine <= 1.5 * theirs + least * true.norm(), f"{name}: {mine} against {theirs}"


def long_rows(time: int) -> torch.Tensor:
    """One document; documents of many lengths, padding in front and behind; a document that goes on."""
    packed = torch.cat([torch.arange(size) for size in range(1, time)])[: time - 12]
    packed = torch.cat((torch.full((5,), -1), packed, torch.full((7,), -1)))
    return torch.stack((torch.arange(time), packed, torch.arange(time) + 3))


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.causal_conv1d import triton as module

    convolve, fewest = module.causal_conv1d, module.FEWEST_PROGRAMS
    module.FEWEST_PROGRAMS = 1  # so that programs go over several tiles, the last one over fewer
    tile = (8, 32, 3, 1)
    with launches.trying("causal_conv1d", "forward", tile), launches.trying("causal_conv1d", "backward", tile):
        assert_as_exact_as_plain(convolve, inputs(4, 70, long_rows(75)), torch.float32, device)
    module.FEWEST_PROGRAMS = fewest
    for taps, dtype in ((4, torch.float32), (4, torch.bfloat16), (2, torch.float32)):
        assert_as_exact_as_plain(convolve, inputs(taps), dtype, device)
    assert_as_exact_as_plain(convolve, inputs(4, 70, long_rows(75)), torch.float32, device)
    for nothing in (("window",), ("initial", "bias"), ("window", "initial", "bias")):
        assert_as_exact_as_plain(convolve, inputs(4) | dict.fromkeys(nothing), torch.float32, device)
    for one_token in (POSITIONS[:, 3:4], POSITIONS[:, :1]):
        assert_as_exact_as_plain(convolve, inputs(4, positions=one_token), torch.float32, device)
    arguments = {n: t.to(device) if n == "position_ids" else t.float().to(device) for n, t in inputs(4).items()}
    real = (arguments["position_ids"] >= 0)[..., None]
    with torch.no_grad():
        expected = convolve(**arguments)
        found = convolve(**arguments | {"x": arguments["x"].where(real, torch.nan)})
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True)), "padding is never read"
    assert torch.equal(found[1][4], arguments["window"][4]), "padding leaves no trace"


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device_are_exact():
    check_triton("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [100, 512])
def test_long_rows_on_the_device_are_exact_and_repeatable(channels, dtype):
    arguments = inputs(4, channels, long_rows(1500))
    assert_as_exact_as_plain(kernels.causal_conv1d, arguments, dtype, "cuda")
    first, second = (results(kernels.causal_conv1d, arguments, dtype, "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("time", [1, 200])
def test_a_call_can_be_captured_in_a_graph(time):
    draw = inputs(4, 64, torch.arange(time).expand(2, time) + 1)
    arguments = {name: t.cuda() if name == "position_ids" else t.bfloat16().cuda() for name, t in draw.items()}
    with torch.no_grad():
        expected = kernels.causal_conv1d(**arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = kernels.causal_conv1d(**arguments)
        graph.replay()
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


if __name__ == "__main__":
    import bounds

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # uninitialised memory is filled with NaN
    with bounds.checked():
        check_triton("cpu")
