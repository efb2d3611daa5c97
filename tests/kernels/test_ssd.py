"""The recurrence of Mamba-2: chunks, with either backward, against the definition token by token."""

import importlib

import pytest
import torch

from nlrl import kernels
from nlrl.kernels.ssd.reference import recurrence

HEADS, GROUPS, HEAD_DIM, STATE = 4, 2, 5, 3
TIME = 23


def inputs(batch: int = 2, time: int = TIME, dtype=torch.float64, groups: int = GROUPS) -> dict[str, torch.Tensor]:
    """Every argument but the positions, the state included."""
    draw = torch.Generator().manual_seed(batch + 10 * time)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    return {
        "x": normal(batch, time, HEADS, HEAD_DIM), "dt": normal(batch, time, HEADS).exp(),
        "A": -normal(HEADS).exp(), "B": normal(batch, time, groups, STATE), "C": normal(batch, time, groups, STATE),
        "state": normal(batch, HEADS, HEAD_DIM, STATE), "D": normal(HEADS),
    }  # fmt: skip


def positions(*rows: list[int], time: int = TIME) -> torch.Tensor:
    """Each row's lengths of documents; padding behind the last."""
    made = [[i for n in row for i in range(n)] for row in rows]
    return torch.tensor([row + [-1] * (time - len(row)) for row in made])


PACKED = positions([9, 14], [3, 8, 5])
CONTINUED = torch.stack((torch.arange(40, 40 + TIME), torch.cat((torch.arange(7, 17), PACKED[0, 10:] - 10))))
PLACES = {"packed": PACKED, "continued": CONTINUED, "left padding": torch.arange(TIME).expand(2, TIME) - 2}
PLACES["left padding"] = PLACES["left padding"].clamp_min(-1)


def results(function, position_ids, given, *chunk):
    """Outputs at the tokens, the state, and the gradients of every argument."""
    given = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    order = [given[name] for name in ("x", "dt", "A", "B", "C")]
    y, after = function(*order, position_ids, given["state"], given["D"], *chunk)
    y = y.masked_fill((position_ids < 0)[..., None, None], 0)
    weights = [torch.randn(part.shape, generator=torch.Generator().manual_seed(5)).to(part) for part in (y, after)]
    loss = (y * weights[0]).sum() + (after * weights[1]).sum()
    return [y.detach(), after.detach(), *torch.autograd.grad(loss, list(given.values()))]


@pytest.fixture(params=["reference", "eager"])
def implementation(request):
    return getattr(kernels.ssd, request.param)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("chunk", [1, 4, 8, 23, 64])
def test_any_chunk_gives_the_recurrence_and_its_gradients(implementation, chunk, place):
    given = inputs()
    expected = results(recurrence, PLACES[place], given)
    for found, wanted in zip(results(implementation, PLACES[place], given, chunk), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_definition_is_the_recurrence_written_out():
    given = inputs(batch=1, time=4, groups=1)
    S, A = given["state"][0], given["A"]
    y, after = recurrence(*(given[n] for n in ("x", "dt", "A", "B", "C")), torch.arange(1, 5)[None], given["state"])
    for t in range(4):
        x, dt, B, C = (given[name][0, t] for name in ("x", "dt", "B", "C"))
        S = torch.stack([torch.exp(dt[h] * A[h]) * S[h] + dt[h] * torch.outer(x[h], B[0]) for h in range(HEADS)])
        torch.testing.assert_close(y[0, t], torch.stack([S[h] @ C[0] for h in range(HEADS)]))
    torch.testing.assert_close(after[0], S)


def test_spans_change_nothing(monkeypatch):
    given = inputs()
    expected = results(kernels.ssd.eager, PACKED, given)
    monkeypatch.setattr(importlib.import_module("nlrl.kernels.ssd.eager"), "SPAN", 7)
    for found, wanted in zip(results(kernels.ssd.eager, PACKED, given), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_text_read_in_parts_ends_in_the_same_state(implementation):
    given, at = inputs(), torch.arange(TIME).expand(2, TIME)
    names = ("x", "dt", "B", "C")
    whole, end = implementation(*(given[n] for n in ("x", "dt", "A", "B", "C")), at)
    state, parts = given["state"], []  # position 0 begins anew, so this must not show
    for cut in (slice(0, 1), slice(1, 9), slice(9, 10), slice(10, TIME)):
        x, dt, B, C = (given[name][:, cut] for name in names)
        y, state = implementation(x, dt, given["A"], B, C, at[:, cut], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, end)


@torch.no_grad()
@pytest.mark.parametrize("places", [[[7], [0]], [[-1], [3]], [[1, 2, 3], [0, 1, -1]]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_state_can_be_written_over(implementation, places, dtype):
    at = torch.tensor(places)
    given = inputs(time=at.shape[1], dtype=dtype)
    arguments = [given[name] for name in ("x", "dt", "A", "B", "C")]
    y, after = recurrence(*arguments, at, given["state"], given["D"])
    state = given["state"].clone()
    found, same = implementation(*arguments, at, state, given["D"], 64, True)
    assert same is state
    torch.testing.assert_close(state, after)
    torch.testing.assert_close(found[at >= 0], y[at >= 0])


@torch.no_grad()
@pytest.mark.parametrize("time", [1, 6])
def test_padding_leaves_no_trace(implementation, time):
    given = inputs(time=time)
    x, dt, A, B, C = (given[name] for name in ("x", "dt", "A", "B", "C"))
    y, after = implementation(x, dt, A, B, C, torch.full((2, time), -1), given["state"])
    assert torch.equal(after, given["state"])
    assert y.isfinite().all()


@torch.no_grad()
def test_large_steps_overflow_nowhere(implementation):
    """exp of the difference above the diagonal would be infinite here."""
    given = inputs(dtype=torch.float32)
    y, after = implementation(*(given[n] for n in ("x",)), 1e3 * given["dt"], *(given[n] for n in "ABC"), PACKED)
    assert y.isfinite().all()
    assert after.isfinite().all()


def test_large_steps_have_finite_gradients(implementation):
    given = inputs(dtype=torch.float32) | {"dt": 1e3 * inputs(dtype=torch.float32)["dt"]}
    for part in results(implementation, PACKED, given):
        assert part.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_as_exact_as_the_recurrence_in_the_same_dtype(implementation, dtype):
    given = inputs(dtype=dtype)
    given["dt"] *= 0.05  # as a model's: totals of a chunk stay below 10
    exact = results(recurrence, PACKED, {name: tensor.double() for name, tensor in given.items()})
    ours, yardstick = results(implementation, PACKED, given), results(recurrence, PACKED, given)
    names = ("y", "after", *given)
    for name, found, plain, wanted in zip(names, ours, yardstick, exact, strict=True):
        # The gradient of A is a sum over all tokens of differences of sums.
        least = (32 if name == "A" else 2) * torch.finfo(torch.float32).eps * wanted.norm()
        error = (found.double() - wanted).norm()
        assert error <= max(1.5 * (plain.double() - wanted).norm(), least), name


@torch.no_grad()
def test_autocast_does_not_round_the_sums(implementation):
    given = inputs(dtype=torch.float32)
    arguments = [given[name] for name in ("x", "dt", "A", "B", "C")]
    expected = implementation(*arguments, PACKED)
    with torch.autocast("cpu", torch.bfloat16):
        for found, wanted in zip(implementation(*arguments, PACKED), expected, strict=True):
            assert torch.equal(found, wanted)


def test_compiled_calls_give_the_same():
    given = inputs(dtype=torch.float32)
    compiled = torch.compile(kernels.ssd.__call__, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(results(compiled, PACKED, given), results(kernels.ssd, PACKED, given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
