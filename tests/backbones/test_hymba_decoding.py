"""Hymba's decoding step: rows at different places, rows that wait, and the step by Triton's kernels."""

import pytest
import torch

from nlrl import kernels
from nlrl.backbones import HymbaConfig, HymbaForCausalLM

SIZES = dict(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, mamba_d_state=3,
    num_memory_tokens=3, sliding_window=4,
)  # fmt: skip


def small(**changes):
    torch.manual_seed(0)
    model = HymbaForCausalLM(HymbaConfig(**SIZES | changes)).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def run(model, ids):
    return model.logits(model.hidden(ids, torch.arange(ids.shape[1]).expand(ids.shape)))


def draw(batch, time):
    return torch.randint(31, (batch, time), generator=torch.Generator().manual_seed(time))


def table_of(state):
    state.table.copy_(torch.arange(state.table.numel()).view_as(state.table) + 1)
    return state


def steps_of_ragged_rows(model, ids, state):
    """Logits of both rows token by token: the second waits at first, then goes on alone, and begins anew."""
    first, second = [], []
    for step in range(ids.shape[1] + 3):
        at = [step if step < ids.shape[1] else -1, step - 3]
        tokens = ids.gather(1, torch.tensor(at)[:, None].clamp_min(0))
        y = model.logits(model.hidden(tokens, torch.tensor(at)[:, None].clamp_min(-1), state=state))
        assert y.isfinite().all()
        first, second = first + [y[:1]] * (at[0] >= 0), second + [y[1:]] * (at[1] >= 0)
    return torch.cat((torch.cat(first, 1), torch.cat(second, 1)))


@pytest.mark.parametrize("changes", [{}, {"num_memory_tokens": 0}, {"num_hidden_layers": 6, "mixer": "attention"}])
@torch.no_grad()
def test_rows_that_wait_disturb_nobody(changes):
    model, ids = small(**changes), draw(2, 11)
    expected = run(model, ids)
    for state in (model.new_state(2, 12), table_of(model.new_paged_state(2, 32, 9))):
        torch.testing.assert_close(steps_of_ragged_rows(model, ids, state), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(steps_of_ragged_rows(model, ids, state), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def check_decoding_by_triton():
    """Run in a process of its own, where the interpreter must be chosen before Triton is imported."""
    model, ids = small(num_hidden_layers=3, global_attn_idx=[0], kv_reuse_group=[[1, 2]]).float(), draw(2, 6)
    expected = run(model, ids)
    for op in (kernels.ring_attention, kernels.paged_attention):
        op.eager = op.provider("nlrl")
    for state in (model.new_state(2, 8), table_of(model.new_paged_state(2, 32, 9))):
        torch.testing.assert_close(steps_of_ragged_rows(model, ids, state), expected, rtol=1e-4, atol=1e-4)


def test_decoding_by_triton_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


if __name__ == "__main__":
    check_decoding_by_triton()
