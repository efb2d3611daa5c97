"""Scans inside compiled graphs."""

import pytest
import torch

from nlrl import kernels

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


def scan_arguments(device):
    def random(*shape):
        return torch.randn(*shape, device=device)

    x, delta, A, D = random(2, 20, 8), random(2, 20, 8).exp(), -random(8, 4).exp(), random(8)
    positions = torch.cat((torch.arange(12), torch.arange(8))).expand(2, 20).to(device)
    return [x, delta, A, random(2, 20, 4), random(2, 20, 4), D, positions, None, random(8, 4)]


def ssd_arguments(device):
    def random(*shape):
        return torch.randn(*shape, device=device)

    x, dt, A = random(2, 20, 4, 16), random(2, 20, 4).exp() / 10, -random(4).exp()  # the sine of small sums is smooth
    positions = torch.cat((torch.arange(12), torch.arange(8))).expand(2, 20).to(device)
    return [x, dt, A, random(2, 20, 1, 16), random(2, 20, 1, 16), positions, None, random(4)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("op", "arguments"), [(kernels.selective_scan, scan_arguments), (kernels.ssd, ssd_arguments)], ids=["scan", "ssd"]
)
def test_a_compiled_graph_gives_the_same_outputs_and_gradients(op, arguments, device):
    torch.manual_seed(0)
    args = arguments(device)
    leaves = [a.requires_grad_() for a in args if a is not None and a.is_floating_point()]

    def loss(function):
        y, after = function(2 * args[0], *args[1:])
        return y.sin().sum() + after.square().sum()

    expected = torch.autograd.grad(loss(op.reference), leaves)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: loss(op.node), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(), leaves)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
