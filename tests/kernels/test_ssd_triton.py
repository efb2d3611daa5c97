"""The Triton kernels of Mamba-2's recurrence against the plain formula in float64, outputs and all gradients."""

from contextlib import contextmanager

import pytest
import torch

from nlrl import kernels

SHAPES = [
    (3, 1, 2, 16, 1, 16),
    (2, 7, 4, 5, 2, 3),
    (1, 65, 2, 40, 1, 24),
    (2, 100, 1, 64, 1, 128),
    (1, 300, 1, 16, 1, 40),
]
"""batch, time, heads, head_dim, groups, state_size"""
DEVICE_SHAPES = [(4, 1000, 6, 64, 1, 128), (3, 200, 8, 64, 2, 128), (2, 257, 4, 32, 4, 64), (1, 90, 4, 128, 1, 256)]
NAMES = ("x", "dt", "A", "B", "C", "state", "D")


def inputs(shape, dtype=torch.float32, device="cpu") -> dict[str, torch.Tensor]:
    """Every argument but the positions; x, B and C are parts of one tensor, as in a model."""
    batch, time, heads, head_dim, groups, state_size = shape
    draw = torch.Generator().manual_seed(sum(shape))

    def normal(*size):
        return torch.randn(size, generator=draw, dtype=torch.float64).to(device, dtype)

    sizes = (heads * head_dim, groups * state_size, groups * state_size)
    x, B, C = normal(batch, time, sum(sizes)).split(sizes, -1)
    return {
        "x": x.unflatten(-1, (heads, head_dim)), "dt": 0.05 * normal(batch, time, heads).exp(),
        "A": -normal(heads).exp(), "B": B.unflatten(-1, (groups, -1)), "C": C.unflatten(-1, (groups, -1)),
        "state": normal(batch, heads, head_dim, state_size), "D": normal(heads),
    }  # fmt: skip


def positions(batch: int, time: int, device="cpu") -> torch.Tensor:
    """A row that goes on with a text, one of several documents with padding behind them, one with padding before."""
    at = torch.arange(time)
    packed = torch.where(at < time // 3, at + 9, (at - time // 3) % max(1, time // 4))
    packed[time - time // 8 :] = -1
    rows = torch.stack((at + 40, packed, (at - time // 5).clamp_min(-1)))
    return rows[torch.arange(batch) % 3].to(device)


def run(function, given, at, **options):
    return function(*(given[name] for name in NAMES[:5]), at, given["state"], given["D"], **options)


def results(function, given, at):
    """The outputs at the tokens, the state, and the gradients of every argument."""
    given = {name: value.detach().requires_grad_() for name, value in given.items()}
    y, after = run(function, given, at)
    y = y.masked_fill((at < 0)[..., None, None], 0)
    weights = [torch.randn(part.shape, generator=torch.Generator().manual_seed(5)).to(part) for part in (y, after)]
    loss = (y * weights[0]).sum() + (after * weights[1]).sum()
    return [y.detach(), after.detach(), *torch.autograd.grad(loss, list(given.values()))]


@contextmanager
def poisoned():
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_as_exact_as_plain(function, shape, dtype, device):
    """Its error is at most 1.5 times that of the plain formula in the same dtype; arguments rounded before both."""
    given, at = inputs(shape, dtype, device), positions(shape[0], shape[1], device)
    exact = results(kernels.ssd.reference, {name: value.double() for name, value in given.items()}, at)
    plain = results(kernels.ssd.reference, given, at)
    with poisoned():
        ours = results(function, given, at)
    factor = 3 if device == "cpu" and dtype == torch.bfloat16 else 1.5  # the interpreter cuts off instead of rounding
    least = 2e-6 if device == "cpu" and dtype == torch.float32 else 1e-5 if dtype == torch.float32 else 5e-5
    for name, found, theirs, wanted in zip(("y", "after", *NAMES), ours, plain, exact, strict=True):
        assert found.dtype == theirs.dtype, name
        error, yardstick = ((part.double() - wanted).norm().item() for part in (found, theirs))
        assert error <= max(factor * yardstick, least * wanted.norm().item()), f"{name} {shape} {dtype}: {error}"


def assert_close(found, expected, tolerance=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def check_state_is_written_over(ssd, device):
    for time in (1, 6):
        given, at = inputs((3, time, 2, 20, 2, 24), device=device), positions(3, time, device)
        expected = run(kernels.ssd.reference, given, at)
        assert_close(run(ssd, given, at), expected)
        state = given["state"]
        y, same = run(ssd, given, at, overwrite=True)
        assert same is state
        assert_close((y, state), expected)
        scattered = inputs((3, time, 2, 20, 2, 24), device=device)
        scattered["state"] = scattered["state"].transpose(2, 3).contiguous().transpose(2, 3)
        assert_close(run(ssd, scattered, at, overwrite=True), expected)
        assert_close((scattered["state"],), expected[1:])


def check_padding_leaves_no_trace(ssd, device):
    for time in (1, 70):
        given = inputs((2, time, 2, 16, 1, 16), device=device)
        with poisoned():
            y, after = run(ssd, given, torch.full((2, time), -1, device=device))
        assert torch.equal(after, given["state"])
        assert y.isfinite().all()


def check_parts_make_the_whole(ssd, device):
    given, at = inputs((2, 90, 2, 16, 1, 16), device=device), positions(2, 90, device)
    y, end = run(ssd, given, at)
    state, parts = given["state"], []
    for cut in (slice(0, 1), slice(1, 40), slice(40, 41), slice(41, 90)):
        some = given | {name: given[name][:, cut] for name in ("x", "dt", "B", "C")} | {"state": state}
        part, state = run(ssd, some, at[:, cut])
        parts.append(part)
    tokens = at >= 0
    assert_close((torch.cat(parts, 1)[tokens], state), (y[tokens], end))


def check_large_steps(ssd, device):
    given = inputs((2, 40, 1, 16, 1, 16), device=device)
    given["dt"] = 1e5 * given["dt"]
    assert all(part.isfinite().all() for part in results(ssd, given, positions(2, 40, device)))


def check_heads_that_share_a_program(device):
    """As in a large batch."""
    from nlrl.kernels.ssd import triton as module

    before, module.PROGRAMS = module.PROGRAMS, 1
    for dtype in (torch.float32, torch.bfloat16):
        assert_as_exact_as_plain(module.ssd, (1, 20, 4, 16, 2, 16), dtype, device)
    module.PROGRAMS = before


def check_one_program_for_each_head(device):
    """As in a large batch; with gradients, which need the states on the way, and without."""
    from nlrl.kernels.launches import trying
    from nlrl.kernels.ssd import triton as module

    before, module.WALKS = module.WALKS, 1
    for shape in SHAPES[1:4] if device == "cpu" else (*SHAPES, *DEVICE_SHAPES):
        assert_as_exact_as_plain(module.ssd, shape, torch.bfloat16, device)
    with trying("ssd", "head", (1, 4, 2, 0)):  # rounded before it is summed
        for shape in () if device == "cpu" else (*SHAPES, *DEVICE_SHAPES):
            assert_as_exact_as_plain(module.ssd, shape, torch.bfloat16, device)
        with torch.no_grad():
            rounded = run(module.ssd, inputs((2, 100, 2, 16, 1, 16), torch.bfloat16, device), positions(2, 100, device))
    with torch.no_grad():
        exact = run(module.ssd, inputs((2, 100, 2, 16, 1, 16), torch.bfloat16, device), positions(2, 100, device))
    torch.testing.assert_close(rounded[0].float(), exact[0].float(), rtol=3e-2, atol=3e-2)
    assert torch.equal(rounded[1], exact[1])
    given, at = inputs(SHAPES[1], torch.bfloat16, device), positions(2, 7, device)
    with torch.no_grad(), poisoned():
        kept = [run(module.ssd, given, at) for module.WALKS in (1, 1 << 30)]
    for one, other in zip(*kept, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=1e-2, atol=1e-2)
    module.WALKS = before


def check_what_may_be_left_out_or_differ(ssd, device):
    given, at = inputs((2, 20, 2, 16, 1, 16), device=device), positions(2, 20, device)
    arguments = [given[name] for name in NAMES[:5]]
    tokens = at >= 0
    for left_out in ({"D": given["D"]}, {"state": given["state"]}, {}):
        (y, after), (expected, state) = (f(*arguments, at, **left_out) for f in (ssd, kernels.ssd.reference))
        assert_close((y[tokens], after), (expected[tokens], state))
    mixed = given | {"B": given["B"].bfloat16(), "state": given["state"].bfloat16()}
    found, expected = (results(f, mixed, at) for f in (ssd, kernels.ssd.reference))
    assert [part.dtype for part in found] == [part.dtype for part in expected]
    assert_close(found, expected, 2e-2)
    double = {name: value.double() for name, value in given.items()}
    found, expected = (run(f, double, at) for f in (ssd, kernels.ssd.reference))
    assert_close((found[0][tokens], found[1]), (expected[0][tokens], expected[1]), 1e-12)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.ssd.triton import ssd

    for shape in [*SHAPES, *DEVICE_SHAPES] if device == "cuda" else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            assert_as_exact_as_plain(ssd, shape, dtype, device)
    check_large_steps(ssd, device)
    check_heads_that_share_a_program(device)
    check_one_program_for_each_head(device)
    check_what_may_be_left_out_or_differ(ssd, device)
    with torch.no_grad():
        check_state_is_written_over(ssd, device)
        check_padding_leaves_no_trace(ssd, device)
        check_parts_make_the_whole(ssd, device)


def let_the_interpreter_multiply_bfloat16() -> None:
    """It holds their bits as integers and would multiply those."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    def widened(tensor):
        if tensor.dtype.scalar != tl.bfloat16:
            return tensor
        return interpreter.TensorHandle((tensor.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    builder = type(interpreter.interpreter_builder)
    plain = builder.create_dot
    setattr(builder, "create_dot", lambda self, a, b, *rest: plain(self, widened(a), widened(b), *rest))  # noqa: B010


def test_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_on_the_device_are_exact_and_repeatable():
    check_triton("cuda")
    given, at = inputs(DEVICE_SHAPES[0], torch.bfloat16, "cuda"), positions(4, 1000, "cuda")
    first, second = (results(kernels.ssd, given, at) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert kernels.ssd.provider("nlrl").__module__.endswith("triton")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_steps_and_texts_can_be_captured_in_a_graph():
    for time in (1, 100):
        given, at = inputs((4, time, 6, 64, 1, 128), torch.bfloat16, "cuda"), positions(4, time, "cuda")
        given["state"] = given["state"].float()
        start = given["state"].clone()
        expected = run(kernels.ssd, given, at)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = run(kernels.ssd, given, at, overwrite=True)
        given["state"].copy_(start)
        graph.replay()
        torch.cuda.synchronize()
        assert_close((y, given["state"]), expected, 0.0)


if __name__ == "__main__":
    import bounds

    let_the_interpreter_multiply_bfloat16()
    with bounds.checked():
        check_triton("cpu")
