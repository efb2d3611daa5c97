"""Compiled training steps of models whose attention is one node: as on a CUDA device, with tensors of this machine."""

import pytest
import torch
from functorch.compile import make_boxed_func  # pyright: ignore[reportPrivateImportUsage]
from torch._dynamo.backends.common import aot_autograd

from nlrl.backbones import DiffTransformerConfig, DiffTransformerForCausalLM, HymbaConfig, HymbaForCausalLM
from nlrl.backbones.packing import TokenBatch
from nlrl.backbones.train_step import target_loss
from nlrl.kernels.dispatch import Op

SIZES = dict(vocab_size=31, hidden_size=32, num_hidden_layers=2)
TIME = 13


def hymba(**changes):
    sizes = SIZES | dict(
        intermediate_size=24, num_attention_heads=2, mamba_d_state=3, num_memory_tokens=3, sliding_window=4,
        global_attn_idx=[0],
    )  # fmt: skip
    return HymbaForCausalLM(HymbaConfig(**sizes | changes))


def differential(version: int):
    sizes = SIZES | dict(num_attention_heads=2, num_key_value_heads=1)
    return DiffTransformerForCausalLM(DiffTransformerConfig(version=version, **sizes))


MODELS = {
    "hymba": (lambda: hymba(), "prefix_attention", 3),
    "hymba without meta tokens": (lambda: hymba(num_memory_tokens=0), "prefix_attention", 2),
    "differential": (lambda: differential(1), "diff_attention", 2),
    "differential 2": (lambda: differential(2), "diff_attention_v2", 2),
}
"""How to make it, its op, and how often a step calls that: once a layer, and for meta tokens in all but the last, which
leaves them nothing but keys and values."""


def batch() -> TokenBatch:
    """Two rows of documents of several lengths, the last padded."""
    documents = torch.tensor([[1] * 6 + [2] * 4 + [3] * 3, [1] * 3 + [2] * 7 + [0] * 3])
    token = torch.arange(TIME)
    begins = torch.where(documents != documents.roll(1, 1), token, 0).cummax(1).values
    tokens = torch.randint(31, (2, TIME), generator=torch.Generator().manual_seed(1))
    return TokenBatch(tokens, documents, token - begins, (token > begins).float() * (documents > 0))


def results(function, model, bf16: bool) -> list[torch.Tensor]:
    """The loss and the gradients of all weights."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = function(model, batch(), True, True)
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in model.parameters())]


@pytest.fixture
def as_on_a_device(monkeypatch):
    monkeypatch.setattr("nlrl.backbones.hymba.network.takes_spans", lambda x, state: True)
    rule = "nlrl.backbones.diff_transformer.network.takes_starts"
    monkeypatch.setattr(rule, lambda x, mask, state: mask is not None)
    monkeypatch.setattr(Op, "_choose", lambda op, args, named: op.node or op.compiled)
    torch._dynamo.reset()


def attention(graph: torch.fx.GraphModule) -> list[str]:
    """Calls of an attention, ours or PyTorch's."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return [name for name in names if "attention" in name]


def dense(graph: torch.fx.GraphModule) -> list:
    """Tensors with a number for each pair of tokens that live longer than one operation: what it gives and takes."""
    shapes = [node.meta["val"].shape for node in graph.graph.nodes if node.op == "placeholder"]
    shapes += [node.meta["val"].shape for node in graph.graph.output_node().all_input_nodes]
    return [shape for shape in shapes if list(shape[-2:]) == [TIME, TIME]]


@pytest.mark.parametrize(("name", "bf16"), [*((name, False) for name in MODELS), ("hymba", True)])
def test_a_compiled_step_calls_the_node_without_a_break_and_gives_the_same(name, bf16, as_on_a_device):
    make, op, times = MODELS[name]
    torch.manual_seed(0)
    model, graphs = make().train(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Op, "_choose", lambda op, args, named: op.reference)
        expected = results(target_loss, model, bf16)

    def keep(graph, given):
        graphs.append(graph)
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    found = results(torch.compile(target_loss, backend=backend, fullgraph=True, dynamic=False), model, bf16)
    forward, backward = map(attention, graphs)
    assert forward == [f"nlrl.{op}.default"] * times
    assert backward == [f"nlrl.{op}_backward.default"] * times
    assert not dense(graphs[0]) + dense(graphs[1])
    rtol, atol = (0.1, 0.1) if bf16 else (1e-3, 1e-4)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
