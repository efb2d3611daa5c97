"""Hymba: the architecture against an independent implementation, its state, its meta tokens, and bad configs.

`tests/golden/hymba_tiny` is a checkpoint in NVIDIA's layout (random, three kinds of layers, a pair and a triple that
share keys) with logits in float64 of a plain implementation, written token by token from a specification and compared
with NVIDIA's own code.
"""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nlrl.backbones import HymbaConfig, HymbaForCausalLM
from nlrl.backbones.hymba.cache_size import attention_bytes, counted_bytes, paper_bytes
from nlrl.backbones.hymba.official import from_official
from nlrl.backbones.packing import block_mask

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "hymba_tiny"
EXACT = {torch.float64: 1e-10, torch.float32: 1e-4}
SIZES = dict(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, mamba_d_state=3,
    num_memory_tokens=3, sliding_window=4,
)  # fmt: skip


def tiny(dtype=torch.float64, semantics="training"):
    config = HymbaConfig.from_pretrained(TINY)
    config.window_semantics = semantics
    return from_official(TINY, dtype, config)


def small(**changes):
    torch.manual_seed(0)
    model = HymbaForCausalLM(HymbaConfig(**SIZES | changes)).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def run(model, ids, state=None, start=0):
    positions = torch.arange(start, start + ids.shape[1]).expand(ids.shape)
    return model.logits(model.hidden(ids, positions, state=state))


def draw(batch, time, vocabulary=31):
    return torch.randint(vocabulary, (batch, time), generator=torch.Generator().manual_seed(time))


@pytest.fixture(scope="module")
def golden():
    return load_file(TINY / "golden.safetensors")


@pytest.mark.parametrize("dtype", EXACT)
@torch.no_grad()
def test_prefill_logits_are_the_golden_ones(golden, dtype):
    model = tiny(dtype)
    lengths = [int(name.split("_")[1]) for name in golden if name.startswith("prefill") and name.endswith("ids")]
    assert max(lengths) > 3 * model.config.sliding_window
    for length in lengths:
        ids, expected = golden[f"prefill_{length}_ids"].long()[None], golden[f"prefill_{length}_logits"][None]
        for state in (None, model.new_state(1, length)):
            torch.testing.assert_close(run(model, ids, state).double(), expected, rtol=0, atol=EXACT[dtype])


@pytest.mark.parametrize("semantics", ["training", "hf_decode"])
@pytest.mark.parametrize("dtype", EXACT)
@torch.no_grad()
def test_decoding_across_the_window_gives_the_golden_logits(golden, dtype, semantics):
    model = tiny(dtype, semantics)
    prompt, forced = (golden[f"decode_{semantics}_{part}"].long()[None] for part in ("prompt", "forced"))
    state = model.new_state(1, prompt.shape[1] + forced.shape[1])
    logits = [run(model, prompt, state)[:, -1]]
    for i in range(forced.shape[1]):
        logits.append(run(model, forced[:, i : i + 1], state, prompt.shape[1] + i)[:, 0])
    expected = golden[f"decode_{semantics}_logits"]
    torch.testing.assert_close(torch.cat(logits).double(), expected, rtol=0, atol=EXACT[dtype])


@torch.no_grad()
def test_the_two_windows_differ_only_beyond_the_smaller_one(golden):
    ids = golden["prefill_69_ids"].long()[None]
    wide, narrow = (run(tiny(semantics=semantics), ids)[0] for semantics in ("training", "hf_decode"))
    differs = ((wide - narrow).abs().amax(-1) > 1e-9).nonzero()
    assert differs[0] == HymbaConfig.from_pretrained(TINY).sliding_window


ROADMAP = {
    "llama": dict(mixer="attention", sliding_window=None, num_memory_tokens=0),
    "mamba": dict(mixer="mamba", num_memory_tokens=0),
    "mamba with meta tokens": dict(mixer="mamba"),
    "A": dict(mixer="sequential", sliding_window=None, num_memory_tokens=0),
    "B": dict(sliding_window=None, num_memory_tokens=0),
    "C": dict(kv_reuse_group=[], num_memory_tokens=0),
    "all windows": dict(global_attn_idx=[], kv_reuse_group=[], num_memory_tokens=0),
    "D": dict(num_memory_tokens=0, num_hidden_layers=6),
    "E": dict(num_hidden_layers=6),
    "attention with windows, sharing and meta tokens": dict(mixer="attention", num_hidden_layers=6),
    "sequential with windows and meta tokens": dict(mixer="sequential", num_hidden_layers=8, global_attn_idx=[1]),
    "one key besides itself": dict(sliding_window=1),
    "itself alone": dict(sliding_window=1, window_semantics="hf_decode"),
    "no convolution, grouped queries": dict(mamba_d_conv=1, num_key_value_heads=1),
    "long convolution, one meta token": dict(mamba_d_conv=6, num_memory_tokens=1),
}


@pytest.mark.parametrize("changes", ROADMAP.values(), ids=ROADMAP)
def test_every_row_of_the_roadmap_decodes_as_it_trains(changes):
    """Steps and chunks equal one pass, packed documents equal each alone, and every weight gets a gradient."""
    model, ids = small(**changes), draw(2, 12)
    with torch.no_grad():
        expected = run(model, ids)
        for cuts in ([1] * 12, [3, 1, 8], [11, 1]):
            state, start, parts = model.new_state(2, 12), 0, []
            for size in cuts:
                parts.append(run(model, ids[:, start : start + size], state, start))
                start += size
            torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-9, atol=1e-9)
    documents = torch.tensor([[1] * 5 + [2] * 7])
    at = torch.tensor([[*range(5), *range(7)]])
    logits = model.logits(model.hidden(ids[:1], at, block_mask(documents)))
    alone = torch.cat((run(model, ids[:1, :5]), run(model, ids[:1, 5:])), 1)
    torch.testing.assert_close(logits, alone, rtol=1e-9, atol=1e-9)
    logits.square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_roadmap_rows_have_the_parts_they_name():
    sizes = {name: HymbaConfig(**SIZES | changes) for name, changes in ROADMAP.items()}
    assert sizes["A"].mixers == ["mamba", "attention"] * 2
    assert (sizes["llama"].ssm_layers, sizes["mamba"].attention_layers) == ([], [])
    assert sizes["B"].global_attn_idx == [0, 1, 2, 3]
    assert sizes["C"].kv_layers == [0, 1, 2, 3]
    assert (sizes["D"].kv_reuse_group, sizes["D"].kv_layers) == ([[3, 4]], [0, 1, 2, 3, 5])


@pytest.fixture
def prompt():
    return draw(2, 9)


@torch.no_grad()
def test_meta_tokens_are_read_once_for_a_version_of_the_weights(prompt, monkeypatch):
    model, read = small(), []
    monkeypatch.setattr(model, "read_meta", lambda: read.append(1) or HymbaForCausalLM.read_meta(model))
    for _ in range(3):
        state = model.new_state(2, 12)
        run(model, prompt, state)
        run(model, prompt[:, :1], state, 9)
    assert len(read) == 1
    first = model.new_state(2, 12)
    assert first.meta_keys is state.meta_keys, "one copy for all states"


CHANGES = {
    "an optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.1).step(),
    "copy_": lambda model: model.memory_tokens.copy_(torch.ones_like(model.memory_tokens)),
    "load_state_dict": lambda model: model.load_state_dict(small(num_memory_tokens=3).float().double().state_dict()),
    "another parameter": lambda model: setattr(
        model, "memory_tokens", torch.nn.Parameter(torch.ones_like(model.memory_tokens))
    ),
    "a write that leaves no trace, then eval()": lambda model: (model.memory_tokens.data.fill_(1), model.eval()),
    "a write that leaves no trace, then after_step()": lambda model: (
        model.memory_tokens.data.fill_(1),
        model.after_step(),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_swapped_in_place_are_noticed_by_states_old_and_new(prompt, change):
    model = small()
    with torch.no_grad():
        old = model.new_state(2, 9)
        before = run(model, prompt, old)
    run(model, prompt).sum().backward()
    with torch.no_grad():
        change(model)
        expected = run(model, prompt)
        assert torch.equal(run(model, prompt, old), run(model, prompt, model.new_state(2, 9)))
        torch.testing.assert_close(run(model, prompt, old), expected, rtol=1e-9, atol=1e-9)
        if change is not CHANGES["load_state_dict"]:
            assert (expected - before).abs().max() > 1e-3


@torch.no_grad()
def test_a_copied_model_has_a_prefix_of_its_own(prompt):
    model = small()
    expected = run(model, prompt, model.new_state(2, 9))
    other = copy.deepcopy(model)
    other.memory_tokens.zero_()
    run(other, prompt, other.new_state(2, 9))
    assert torch.equal(run(model, prompt, model.new_state(2, 9)), expected)


@torch.no_grad()
def test_inference_mode_and_its_end_change_nothing(prompt):
    model = small()
    expected = run(model, prompt)
    with torch.inference_mode():
        torch.testing.assert_close(run(model, prompt, model.new_state(2, 9)), expected, rtol=1e-9, atol=1e-9)
    model.memory_tokens.mul_(2)
    found = run(model, prompt, model.new_state(2, 9))
    torch.testing.assert_close(found, run(model, prompt), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_state_in_half_precision_keeps_recurrences_in_full(prompt):
    model = small().float()
    state = model.new_state(2, 12, dtype=torch.bfloat16)
    assert (state.whole_keys.dtype, state.conv.dtype, state.meta_keys.dtype) == (torch.bfloat16,) * 3
    assert (state.ssm.dtype, state.meta_ssm.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(run(model, prompt, state), run(model, prompt), rtol=0.1, atol=0.1)


def test_training_in_bfloat16_autocast_runs(prompt):
    model = small().float().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = run(model, prompt).float().logsumexp(-1).sum()
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@torch.no_grad()
def test_a_step_compiles_without_a_break(prompt):
    model = small(num_hidden_layers=3, global_attn_idx=[0])
    state, expected = model.new_state(2, 12), run(model, prompt)
    step = torch.compile(lambda ids, at: model.hidden(ids, at, state=state), backend="aot_eager", fullgraph=True)
    positions = torch.arange(9).expand(2, 9)
    run(model, prompt[:, :6], state)
    found = [step(prompt[:, i : i + 1], positions[:, i : i + 1]) for i in (6, 7)]
    torch.testing.assert_close(model.logits(torch.cat(found, 1)), expected[:, 6:8], rtol=1e-9, atol=1e-9)


def test_a_mask_beside_a_state_is_refused(prompt):
    model = small()
    with pytest.raises(ValueError, match="takes no mask"):
        model.hidden(prompt, torch.arange(9).expand(2, 9), block_mask(torch.ones(2, 9)), model.new_state(2, 9))


def test_initial_values_are_mamba_1s():
    model = HymbaForCausalLM(HymbaConfig(**SIZES | {"hidden_size": 64}))
    mamba = model.layers[0].mixer.mamba
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 4.0).expand(128, 3))
    step = torch.nn.functional.softplus(mamba.dt_proj.bias)
    assert ((step > 0.9e-3) & (step < 0.11)).all()
    assert step.log().std() > 1
    assert model.memory_tokens.std().item() == pytest.approx(1, abs=0.2)


MISTAKES = [
    (dict(num_attention_heads=4, num_key_value_heads=3), "multiple of num_key_value_heads"),
    (dict(v_head_dim=8), "must equal mamba_expand"),
    (dict(head_dim=7), "must be even"),
    (dict(sliding_window=0), "sliding_window is 0"),
    (dict(num_memory_tokens=-1), "cannot be negative"),
    (dict(global_attn_idx=[0, 9]), "names layer 9"),
    (dict(mixer="sequential", global_attn_idx=[0]), "names layer 0"),
    (dict(sliding_window=None, global_attn_idx=[0]), "every attention layer is global"),
    (dict(kv_reuse_group=[[0, 1]]), "is global"),
    (dict(kv_reuse_group=[[2]]), "nothing is shared"),
    (dict(global_attn_idx=[], kv_reuse_group=[[2, 1]]), "ascending"),
    (dict(global_attn_idx=[], kv_reuse_group=[[0, 2]]), "neighbouring"),
    (dict(global_attn_idx=[], kv_reuse_group=[[0, 1], [1, 2]]), "two groups"),
    (dict(kv_reuse_group=[[2, 7]]), "names layer 7"),
    (dict(mixer="rnn"), "mixer is 'rnn'"),
    (dict(window_semantics="w"), "known are training, hf_decode"),
    (dict(rope_type="ntk"), "needs orig_max_position_embeddings"),
    (dict(rope_type="ntk", orig_max_position_embeddings=9999), "not positive"),
    (dict(mamba_d_conv=0), "mamba_d_conv is 0"),
    (dict(num_attention_heads=0), "num_attention_heads is 0"),
]


@pytest.mark.parametrize(("changes", "reason"), MISTAKES, ids=lambda value: str(value))
def test_a_config_that_cannot_work_says_why(changes, reason):
    with pytest.raises(Exception, match=reason):  # its type is that of the validator
        HymbaConfig(**SIZES | changes)


@pytest.fixture(scope="module")
def large():
    return HymbaConfig.from_dict(json.loads((GOLDEN / "hymba_1.5b_config.json").read_text()))


def test_the_rotary_base_is_nvidias(large):
    assert large.rope_base == pytest.approx(74534.83, abs=0.01)


def test_defaults_derive_nvidias_layers(large):
    same = HymbaConfig(num_hidden_layers=32, hidden_size=1600, num_attention_heads=25, num_key_value_heads=5)
    assert (same.global_attn_idx, same.kv_reuse_group) == (large.global_attn_idx, large.kv_reuse_group)
    assert (same.head_dim, same.v_head_dim, same.mamba_dt_rank) == (64, 128, 100)


def test_the_papers_cache_sizes(large):
    llama = attention_bytes(layers=28, kv_heads=8, head_dim=128, tokens=8000)
    assert llama == 917_504_000
    assert paper_bytes(large, 8000) / 1e6 == pytest.approx(78.602, abs=5e-4)
    assert llama / paper_bytes(large, 8000) == pytest.approx(11.673, abs=5e-4)


@pytest.mark.parametrize(("tokens", "whole"), [(8192, 86.06), (1024, 44.8)])
def test_everything_counted(large, tokens, whole):
    """Keys and values, three columns for the convolution, recurrent states in float32; the meta tokens' keys once."""
    size = counted_bytes(large, tokens)
    meta_keys = 17 * 128 * 1920
    first_states = 32 * (3200 * 3 * 2 + 3200 * 16 * 4)
    assert size.shared == meta_keys + first_states
    assert size.sequence == 3 * tokens * 1920 + 14 * 1024 * 1920 + first_states
    assert (size.sequence + meta_keys) / 1e6 == pytest.approx(whole, abs=0.05)


def test_counted_bytes_are_those_of_a_real_state():
    model = small().to(torch.float16)
    state, size = model.new_state(3, 20), counted_bytes(model.config, 20)
    assert state.nbytes == 3 * size.sequence + size.shared
    assert size.total == model.new_state(1, 20, device="meta").nbytes
    assert state.ring_keys.shape[3] == model.config.sliding_window, "a window's layers do not grow"


@pytest.mark.parametrize("v_head_dim", [2, 6])
@torch.no_grad()
def test_values_may_be_narrower_or_wider_than_keys(v_head_dim):
    model, ids = small(mixer="attention", head_dim=4, v_head_dim=v_head_dim), draw(2, 9)
    state = model.new_state(2, 9)
    steps = torch.cat([run(model, ids[:, i : i + 1], state, i) for i in range(9)], 1)
    torch.testing.assert_close(steps, run(model, ids), rtol=1e-9, atol=1e-9)


# -- what a CUDA device is told instead of masks -----------------------------------------------------------------------
@pytest.fixture
def spans(monkeypatch):
    """Calls take spans on this machine, too."""
    rule = "nlrl.backbones.hymba.network.takes_spans"
    return lambda: monkeypatch.setattr(rule, lambda x, state: x.shape[1] > 1 and (state is None or state.fresh))


@torch.no_grad()
def test_spans_give_the_golden_logits(golden, spans):
    spans()
    model = tiny()
    for length in (int(name.split("_")[1]) for name in golden if name.startswith("prefill") and name.endswith("ids")):
        ids, expected = golden[f"prefill_{length}_ids"].long()[None], golden[f"prefill_{length}_logits"][None]
        torch.testing.assert_close(run(model, ids), expected, rtol=0, atol=EXACT[torch.float64])


def packed_call(model):
    """Logits of documents one behind the other with padding behind, as trainers pack them."""
    lengths = [(7, 1, 9), (3, 12)]
    documents = torch.zeros(2, 18, dtype=torch.long)
    positions = torch.zeros(2, 18, dtype=torch.long)
    for row, parts in enumerate(lengths):
        start = 0
        for number, length in enumerate(parts, 1):
            documents[row, start : start + length] = number
            positions[row, start : start + length] = torch.arange(length)
            start += length
    ids = draw(2, 18)
    return lambda: model.logits(model.hidden(ids, positions, block_mask(documents)))[documents > 0]


@pytest.mark.parametrize("changes", [{}, {"num_memory_tokens": 0}, {"sliding_window": None}, {"mixer": "attention"}])
def test_spans_of_packed_documents_give_what_masks_give_and_the_same_gradients(changes, spans):
    model = small(**changes).train()
    found = []
    for prepare in (lambda: None, spans):
        prepare()
        logits = packed_call(model)()
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        found.append([logits.detach(), *gradients])
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_rows_that_begin_with_a_call_are_read_in_spans_and_go_on_as_before(spans):
    """Padding on the left and on the right; the window has gone round before the second call."""
    model = small()
    ids, positions = draw(2, 11), torch.arange(11).expand(2, 11).clone()
    positions[0, 9:] = -1
    positions[1] = torch.cat((torch.full((3,), -1), torch.arange(8)))
    after, found = torch.tensor([[9], [8]]), []
    for fresh in (False, True):
        if fresh:
            spans()
        state = model.new_paged_state(2, 32, 9)
        state.table.copy_(torch.arange(state.table.numel()).view_as(state.table) + 1)
        state = dataclasses.replace(state, fresh=fresh)
        first = model.logits(model.hidden(ids, positions, state=state))[positions >= 0]
        state = dataclasses.replace(state, fresh=False)
        found.append((first, model.logits(model.hidden(ids[:, :1], after, state=state))))
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"num_memory_tokens": 0}])
def test_tokens_one_by_one_through_the_step_of_a_device_give_the_same_logits(changes, monkeypatch):
    model, ids = small(**changes), draw(2, 12)
    found = []
    for alone in (False, True):
        monkeypatch.setattr(
            "nlrl.backbones.hymba.network.steps_alone",
            lambda x, state, on=alone: on and x.shape[1] == 1 and state is not None,
        )
        state, logits = model.new_state(len(ids), ids.shape[1]), []
        for t in range(ids.shape[1]):
            where = torch.tensor([[t], [t if t < 8 else -1]])
            logits.append(model.logits(model.hidden(ids[:, t : t + 1], where, state=state))[:, 0][: 2 if t < 8 else 1])
        found.append((torch.cat(logits), state.conv, state.ssm))
    for stepped, plain in zip(*reversed(found), strict=True):
        torch.testing.assert_close(stepped, plain, rtol=1e-9, atol=1e-9)
