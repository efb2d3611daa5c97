"""Who is right: chance in the error of few numbers is forgiven, errors are not."""

import pytest
import torch

from nlrl.benchmarks.kernels.cases import Case
from nlrl.benchmarks.kernels.compare import DRAWS, check
from nlrl.benchmarks.kernels.peers import BenchPeer

CHECKS = 60
SHAPE = {"tokens": 80, "channels": 6}


def make(draw, tokens, channels):
    """Fresh at every call."""
    x, bias = torch.randn(tokens, channels), torch.randn(channels)
    return {"x": x.to(draw.dtype), "bias": bias.to(draw.dtype)}


CASE = Case(make, ("x", "bias"))


def reference(x, bias):
    return torch.sigmoid(x + bias)


class Rounded(torch.autograd.Function):
    """The bias's gradient is a sum over rounded numbers, and wrong by a factor."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x, bias):
        y = torch.sigmoid(x.float() + bias.float())
        ctx.save_for_backward(y)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, *dys):
        (y,), (dy,) = ctx.saved_tensors, dys
        dx = dy * y * (1 - y)
        rounded = (dx * (1 + 2**-8 * (2 * torch.rand_like(dx) - 1))).to(dy.dtype)
        dbias = rounded.float().sum(0)
        return dx.to(dy.dtype), (Rounded.factor * dbias).to(dy.dtype)


def verdicts(function, monkeypatch, factor=1.0, peer=None):
    monkeypatch.setattr(Rounded, "factor", factor)
    torch.manual_seed(0)
    return [check(CASE, reference, function, SHAPE, torch.bfloat16, "cpu", peer=peer) for _ in range(CHECKS)]


def test_chance_in_the_error_of_few_numbers_is_forgiven(monkeypatch):
    single = monkeypatch.context
    with single() as patch:
        patch.setattr("nlrl.benchmarks.kernels.compare.DRAWS", 1)
        alone = verdicts(Rounded.apply, patch)
    assert 3 < sum(not verdict.right for verdict in alone) < CHECKS // 2, "one draw is a lottery"
    assert all(verdict.right for verdict in verdicts(Rounded.apply, monkeypatch))


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_gradient_of_few_numbers_that_is_wrong_is_caught(factor, monkeypatch):
    found = verdicts(Rounded.apply, monkeypatch, factor)
    assert not any(verdict.right for verdict in found)
    assert all("dbias: error" in verdict.worst for verdict in found)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1.0])
def test_what_is_wrong_only_once_is_caught(bad, monkeypatch):
    calls = iter(range(CHECKS * DRAWS))

    def function(x, bias):
        y = reference(x, bias)
        return y.index_fill(0, torch.tensor([7]), bad) if next(calls) == 0 else y

    assert [verdict.right for verdict in verdicts(function, monkeypatch)] == [False] + [True] * (CHECKS - 1)


def two_outputs(x, bias):
    return torch.sigmoid(x + bias), (x * bias).sum(0)


@pytest.mark.parametrize("through", [None, ("y",)])
def test_a_peer_without_gradients_of_one_output_is_held_to_those_of_the_others(through):
    def function(x, bias):
        y, state = two_outputs(x, bias)
        return y, state.detach()

    case = Case(make, ("x", "bias"), lambda result, inputs: dict(zip(("y", "state"), result, strict=True)))
    peer = BenchPeer("torch", function, through=through)
    assert check(case, two_outputs, function, SHAPE, torch.float32, "cpu", peer=peer).right == (through is not None)
