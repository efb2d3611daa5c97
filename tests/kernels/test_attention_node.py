"""Attention inside compiled graphs: the same results, by the same programs, and nothing run again."""

import importlib
from typing import Any, NamedTuple

import pytest
import torch

from nlrl import kernels
from nlrl.kernels import attention_node, devices

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]
NAMES = ["diff_attention", "diff_attention_v2", "prefix_attention"]


class Given(NamedTuple):
    """What a call has beside queries and keys."""

    starts: bool
    prefix: bool = False


CALLS = [("diff_attention", Given(False)), ("diff_attention", Given(True)), ("diff_attention_v2", Given(False)),
         ("diff_attention_v2", Given(True)), ("prefix_attention", Given(False)), ("prefix_attention", Given(True)),
         ("prefix_attention", Given(False, True)), ("prefix_attention", Given(True, True))]  # fmt: skip


def arguments(name: str, given: Given, device="cpu", dtype=torch.float32, time=37) -> list[Any]:
    """2 rows, 4 heads over 2 key heads, widths of 16 and (values) 32."""
    draw = torch.Generator().manual_seed(time)

    def normal(*size):
        return torch.randn(size, generator=draw).to(device, dtype)

    token = torch.arange(time)
    starts = torch.stack((token // 11 * 11, (token - 7).clamp_min(0))).to(device) if given.starts else None
    query, value = normal(2, time, 8, 16), normal(2, time, 2, 32)
    if name == "diff_attention":
        lambda_ = torch.tensor(0.7, device=device)
        return [query, normal(2, time, 4, 16), value, lambda_, 1 + 0.3 * normal(32).float(), 0.6, 1e-5, starts]
    if name == "diff_attention_v2":
        return [query, normal(2, time, 2, 16), value[..., :16], normal(2, time, 4).sigmoid(), starts]
    prefix = [normal(2, 5, 16), normal(2, 5, 32)] if given.prefix else [None, None]
    return [query, normal(2, time, 2, 16), value, *prefix, starts]


def results(function, args) -> list[torch.Tensor]:
    """Output and all gradients."""
    varies = [isinstance(arg, torch.Tensor) and arg.is_floating_point() for arg in args]
    args = [arg.detach().clone().requires_grad_() if v else arg for arg, v in zip(args, varies, strict=True)]
    y = function(*args)
    leaves = [arg for arg, v in zip(args, varies, strict=True) if v]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.fixture
def on_a_device(monkeypatch, tmp_path):
    """This machine's tensors as if on a GPU, whose table names a provider for every op."""

    def record(provider: str) -> None:
        gpu = "NVIDIA Made Up"
        monkeypatch.setattr(devices, "FOLDER", tmp_path)
        monkeypatch.setattr(devices, "current", lambda: gpu)
        devices.write(gpu, "", {name: {"provider": provider} for name in NAMES})
        for name in NAMES:
            kernels.ops()[name].forget_choice()
        torch._dynamo.reset()

    yield record
    for name in NAMES:
        kernels.ops()[name].forget_choice()


def called(function, args) -> tuple[list[str], torch.Tensor]:
    """What a compiler sees of a call, which is one graph."""
    names: list[str] = []

    def backend(graph, given):
        names.extend(str(each.target) for each in graph.graph.nodes)
        return graph

    with torch.no_grad():
        return names, torch.compile(function, backend=backend, fullgraph=True)(*args)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "given"), CALLS)
def test_a_node_gives_the_same_outputs_and_gradients(name, given, device):
    op, args = kernels.ops()[name], arguments(name, given, device)
    torch._dynamo.reset()
    found = results(torch.compile(op.node, backend="aot_eager", fullgraph=True), args)
    torch.testing.assert_close(found, results(op.reference, args), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("named", ["node", "__call__"])
@pytest.mark.parametrize("name", NAMES)
def test_one_graph_serves_texts_of_all_lengths(name, named):
    op, compiled = kernels.ops()[name], []

    def backend(graph, given):
        compiled.append(graph)
        return graph

    torch._dynamo.reset()
    function = torch.compile(getattr(op, named), backend=backend, fullgraph=True, dynamic=True)
    for time in (37, 20, 50):
        args = arguments(name, Given(True, True), time=time)
        with torch.no_grad():
            torch.testing.assert_close(function(*args), op.reference(*args), rtol=1e-3, atol=1e-3)
    assert len(compiled) == 1


@pytest.mark.parametrize(("name", "given"), CALLS)
def test_a_node_says_truly_what_it_gives(name, given):
    op, args = getattr(torch.ops.nlrl, name).default, arguments(name, given, time=9)
    args = [arg.requires_grad_() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args]
    # What it keeps for programs is memory that nobody writes here, so no two runs are equal: no "aot_dispatch" tests.
    torch.library.opcheck(op, tuple(args), test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("given", [Given(False), Given(True)])
@pytest.mark.parametrize("provider", ["composed", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_a_compiler_looks_into_pytorchs_attention_where_that_is_the_fastest(name, provider, given, on_a_device):
    if name == "prefix_attention" and provider == "composed":
        pytest.skip("it has no such provider")
    if provider == "composed":
        pytest.importorskip("triton")
    on_a_device(provider)
    op, args = kernels.ops()[name], arguments(name, given)
    names, y = called(op.node, args)
    torch.testing.assert_close(y, op.reference(*args), rtol=1e-4, atol=1e-4)
    assert any("nlrl" in each for each in names) == (provider == "composed" and given.starts)


@pytest.mark.parametrize("provider", ["nlrl", "composed"])
def test_documents_go_to_our_programs_also_where_pytorchs_attention_is_the_fastest(provider, on_a_device):
    pytest.importorskip("triton")
    on_a_device(provider)
    assert attention_node.plain_calls("diff_attention_v2", False) == (provider == "composed")
    assert not attention_node.plain_calls("diff_attention_v2", True)


def check_node(name: str, given: Given, device: str) -> None:
    """A compiled graph launches the same programs, once forward and once backward."""
    args, module = arguments(name, given, device, time=19), importlib.import_module(f"nlrl.kernels.{name}.triton")
    before, launched = {each: getattr(module, each) for each in ("fused_forward", "fused_backward")}, []
    expected = results(getattr(module, name), args)

    def counted(each):
        return lambda *args, **named: (launched.append(each), before[each](*args, **named))[1]

    for each in before:
        setattr(module, each, counted(each))
    found = results(torch.compile(kernels.ops()[name].node, backend="aot_eager", fullgraph=True), args)
    for each, function in before.items():
        setattr(module, each, function)
    assert launched == ["fused_forward", "fused_backward"], (name, given, launched)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)), (name, given)


def check_nodes(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody wrote is NaN
    try:
        for name, given in (CALLS[1], CALLS[3], CALLS[7]):
            check_node(name, given, device)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device runs them itself")
def test_a_node_runs_our_programs_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_node_runs_our_programs_on_the_device(monkeypatch):
    for name in NAMES:
        monkeypatch.setattr(kernels.ops()[name], "chosen", "nlrl")
    check_nodes("cuda")


if __name__ == "__main__":
    torch.set_num_threads(1)
    modules = {name: importlib.import_module(f"nlrl.kernels.{name}.triton") for name in NAMES}
    attention_node.programs = lambda name, *args: modules[name]
    check_nodes("cpu")
