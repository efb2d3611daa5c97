"""Prompts that go on from a kept state: several new tokens a row by one op, on the device's paths."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from nlrl import kernels
from nlrl.backbones import (
    DiffTransformerConfig,
    DiffTransformerForCausalLM,
    HymbaConfig,
    HymbaForCausalLM,
    NGPTConfig,
    NGPTForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)

LONG = 41
SIZES = dict(
    vocab_size=53, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
HYMBA = SIZES | dict(
    num_hidden_layers=4, sliding_window=6, global_attn_idx=[0], kv_reuse_group=[[1, 2]], num_memory_tokens=3,
    mamba_d_state=4,
)  # fmt: skip
MODELS = {
    "hymba": lambda: HymbaForCausalLM(HymbaConfig(**HYMBA)),
    "hymba without meta tokens": lambda: HymbaForCausalLM(HymbaConfig(**HYMBA | {"num_memory_tokens": 0})),
    "transformer": lambda: TransformerForCausalLM(TransformerConfig(**SIZES)),
    "ngpt": lambda: NGPTForCausalLM(NGPTConfig(**SIZES)),
    "diff_transformer_v1": lambda: DiffTransformerForCausalLM(DiffTransformerConfig(version=1, **SIZES)),
    "diff_transformer_v2": lambda: DiffTransformerForCausalLM(DiffTransformerConfig(version=2, **SIZES)),
}


def make(name: str):
    torch.manual_seed(0)
    model = MODELS[name]().eval().double()
    with torch.no_grad():  # nothing may hide behind an initial zero or one
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.after_step()
    return model


@contextmanager
def as_on_a_device(calls: list[int]):
    """Calls on top of a state take the op on this machine, too, if they bring several tokens; notes how many."""
    from nlrl.backbones import attention
    from nlrl.backbones.hymba import network

    op = kernels.extend_attention
    before, eager = (attention.extends, network.goes_on), op.eager

    def noted(query, *args):
        calls.append(query.shape[1])
        return eager(query, *args)

    def several(x, state) -> bool:
        return x.shape[1] > 1 and state is not None and not getattr(state, "fresh", False)

    def in_pages(x, state) -> bool:
        return several(x, state) and hasattr(state, "table")

    op.eager, attention.extends, network.goes_on = noted, in_pages, several
    try:
        yield
    finally:
        op.eager, (attention.extends, network.goes_on) = eager, before


def in_chunks(model, ids, cuts, state):
    """Logits of three rows read chunk by chunk: all of a chunk, two tokens fewer with padding behind, and nothing."""
    found = [[], [], []]
    at = [0, 0, 0]
    for number, size in enumerate(cuts):
        take = [size, size if number == 0 else max(0, size - 2), size if number % 2 == 0 else 0]
        take = [min(count, LONG - begin) for count, begin in zip(take, at, strict=True)]
        place = torch.arange(size)
        rows = [torch.where(place < n, place + begin, -1) for n, begin in zip(take, at, strict=True)]
        positions = torch.stack(rows).to(ids.device)
        logits = model.logits(model.hidden(ids.gather(1, positions.clamp_min(0)), positions, state=state))
        for row, count in enumerate(take):
            assert logits[row, :count].isfinite().all()
            found[row].append(logits[row, :count])
            at[row] += count
    return [torch.cat(row) for row in found]


def paged(model):
    """Shuffled pages, full of what others left."""
    state = model.new_paged_state(3, 48, 10)
    state.table.copy_(torch.tensor([[5, 2, 9], [1, 8, 4], [3, 7, 6]]))
    for name in ("keys", "values"):
        getattr(state, name, getattr(state, f"whole_{name}", None)).fill_(1e3)
    return state


def check(model, cuts, state, calls, tolerance):
    ids = torch.randint(53, (3, LONG), generator=torch.Generator().manual_seed(1))
    expected = model.logits(model.hidden(ids, torch.arange(LONG).expand(3, LONG)))
    with as_on_a_device(calls):
        found = in_chunks(model, ids, cuts, state)
    for row, logits in enumerate(found):
        torch.testing.assert_close(logits, expected[row, : len(logits)], rtol=tolerance, atol=tolerance)


CUTS = [(9, 14, 18), (16, 16, 9), (2, 5, 30, 4), (17, 3, 21)]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_chunks_by_the_op_equal_one_pass(name, cuts):
    model, calls = make(name), []
    check(model, cuts, paged(model), calls, 1e-9)
    assert sorted(set(calls)) == sorted(set(cuts))
    if name.startswith("hymba"):
        calls.clear()
        check(model, cuts, model.new_state(3, LONG), calls, 1e-9)
        assert calls


@pytest.mark.parametrize("name", ["hymba", "transformer"])
@torch.no_grad()
def test_rows_that_all_begin_take_no_op(name):
    model, calls = make(name), []
    check(model, (LONG,), replace(paged(model), fresh=True), calls, 1e-9)
    assert not calls


@pytest.mark.parametrize("name", ["hymba", "transformer"])
def test_gradients_take_no_op(name):
    from nlrl.backbones import attention
    from nlrl.backbones.hymba import network

    class OnDevice(torch.Tensor):
        is_cuda = True

    x, state = torch.zeros(1, 3, dtype=torch.long).as_subclass(OnDevice), paged(make(name))
    rule = network.goes_on if name == "hymba" else attention.extends
    with torch.no_grad():
        assert rule(x, state)
        assert not rule(x[:, :1], state)
        assert not rule(x, replace(state, fresh=True))
        assert not rule(x.as_subclass(torch.Tensor), state)
    assert not rule(x, state)


@torch.no_grad()
def check_by_triton():
    """Run in a process of its own, where the interpreter must be chosen before Triton is imported."""
    kernels.extend_attention.eager = kernels.extend_attention.provider("nlrl")
    for name in ("hymba", "diff_transformer_v1"):
        model, calls = make(name).float(), []
        check(model, (9, 17, 15), paged(model), calls, 2e-4)
        assert calls


def test_chunks_by_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_chunks_on_the_device_equal_one_pass(name, monkeypatch):
    op, calls = kernels.extend_attention, []
    ours = op.provider("nlrl")
    monkeypatch.setitem(vars(op), "_cuda", lambda *args: (calls.append(len(args)), ours(*args))[1])
    model = make(name).float().cuda()
    ids = torch.randint(53, (3, LONG), generator=torch.Generator().manual_seed(1)).cuda()
    expected = model.logits(model.hidden(ids, torch.arange(LONG, device="cuda").expand(3, LONG)))
    for row, logits in enumerate(in_chunks(model, ids, (9, 14, 18), paged(model))):
        torch.testing.assert_close(logits, expected[row, : len(logits)], rtol=1e-3, atol=1e-3)
    assert calls


if __name__ == "__main__":
    check_by_triton()
