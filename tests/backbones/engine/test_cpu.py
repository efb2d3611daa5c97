"""The native CPU step: the same logits, states and tokens as PyTorch, on every architecture and every kind of state."""

import logging
import shutil

import pytest
import torch

from nlrl.backbones import (
    BiMambaConfig,
    BiMambaForCausalLM,
    DiffTransformerConfig,
    DiffTransformerForCausalLM,
    HymbaConfig,
    HymbaForCausalLM,
    NGPTConfig,
    NGPTForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from nlrl.backbones.bimamba.packed import pack
from nlrl.backbones.engine.cpu import compile_model, library
from nlrl.backbones.engine.cpu import model as native
from nlrl.backbones.engine.rows import Rows
from nlrl.backbones.sampler import gumbel_noise

VOCAB, LENGTH = 101, 64
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LOUD = {"initializer_range": 0.2}
"""Logits large enough that a mistake shows."""

MODELS = {
    "transformer": (TransformerForCausalLM, TransformerConfig, HEADS | LOUD | {"intermediate_size": 90}),
    "transformer-untied-odd": (
        TransformerForCausalLM, TransformerConfig,
        HEADS | LOUD | {"tie_word_embeddings": False, "head_dim": 10, "intermediate_size": 33, "rope_parameters": {
            "rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}},
    ),
    "transformer-wide-heads": (
        TransformerForCausalLM, TransformerConfig, LOUD | {"num_attention_heads": 2, "head_dim": 48},
    ),
    "ngpt": (NGPTForCausalLM, NGPTConfig, HEADS),
    "ngpt-official": (NGPTForCausalLM, NGPTConfig, HEADS | {"rope": "official", "head_dim": 32}),
    "diff-1": (DiffTransformerForCausalLM, DiffTransformerConfig, HEADS | LOUD | {"head_dim": 16}),
    "diff-1-odd": (DiffTransformerForCausalLM, DiffTransformerConfig, HEADS | LOUD | {"head_dim": 6}),
    "diff-2": (DiffTransformerForCausalLM, DiffTransformerConfig, HEADS | LOUD | {"version": 2}),
    "mamba-2": (BiMambaForCausalLM, BiMambaConfig, LOUD | {"binary": False, "head_dim": 32, "state_size": 24}),
    "bimamba": (BiMambaForCausalLM, BiMambaConfig, LOUD | {
        "head_dim": 16, "state_size": 32, "n_groups": 2, "norm_groups": 2, "use_conv_bias": False}),
    "hymba": (HymbaForCausalLM, HymbaConfig, HEADS | LOUD | {
        "num_hidden_layers": 7, "sliding_window": 9, "num_memory_tokens": 5}),
    "hymba-hf-window": (HymbaForCausalLM, HymbaConfig, HEADS | LOUD | {
        "num_hidden_layers": 4, "sliding_window": 8, "window_semantics": "hf_decode", "num_memory_tokens": 0,
        "kv_reuse_group": [], "mamba_d_state": 5, "mamba_dt_rank": 3}),
    "hymba-sequential": (HymbaForCausalLM, HymbaConfig, HEADS | LOUD | {
        "num_hidden_layers": 4, "mixer": "sequential", "sliding_window": None}),
    "hymba-mamba": (HymbaForCausalLM, HymbaConfig, HEADS | LOUD | {"mixer": "mamba"}),
}  # fmt: skip
READ = torch.tensor([0, 3, 17, 31, 32, 40, 5, 6, 1])
"""Tokens that each row has read before the native steps."""


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def make(name: str):
    kind, config, fields = MODELS[name]
    torch.manual_seed(0)
    model = kind(config(**SIZES | fields)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    model.after_step()
    return model


def compiled(model):
    found = compile_model(model)
    assert found is not None, "these tests need g++"
    return found


def paged(model, rows: int):
    """A paged state whose rows own shuffled pages; page 0 stays nobody's."""
    pages = 1 + rows * LENGTH // 16
    state = model.new_paged_state(rows, LENGTH, pages)
    if hasattr(state, "table"):
        state.table.copy_(1 + torch.randperm(pages - 1).view(rows, -1))
    return state


def read(model, states, lengths=READ) -> None:
    """The same ragged texts into every state."""
    ids = torch.randint(VOCAB, (len(lengths), int(lengths.max())))
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    positions = positions.masked_fill(positions >= lengths[:, None], -1)
    for state in states:
        model.hidden(ids, positions, state=state)


def in_torch(model, ids, positions, state):
    return model.logits(model.hidden(ids[:, None], positions[:, None], state=state))[:, 0]


@pytest.mark.parametrize("pages", [False, True], ids=["rows", "pages"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_pytorch_over_steps_with_rows_in_any_order(name, pages):
    model = make(name)
    fast, n = compiled(model), len(READ)
    theirs = model.new_state(n, LENGTH)
    ours = paged(model, n) if pages else model.new_state(n, LENGTH)
    read(model, [theirs, ours])
    positions = READ.clone()
    for _ in range(12):
        ids, order = torch.randint(VOCAB, (n,)), torch.randperm(n)
        expected = in_torch(model, ids, positions, theirs)
        assert expected.std() > 0.05
        found = fast.logits(ids[order], positions[order], order, ours)
        torch.testing.assert_close(found, expected[order], rtol=0, atol=1e-4)
        positions += 1
    # PyTorch reads on from what the native steps wrote.
    ids = torch.randint(VOCAB, (n,))
    expected = in_torch(model, ids, positions, theirs)
    torch.testing.assert_close(in_torch(model, ids, positions, ours), expected, rtol=0, atol=1e-4)


PIECES = torch.tensor([1, 24, 2, 3, 30, 5, 17, 1, 31])
"""Tokens that are read of each row at once."""


def read_pieces(model, fast, starts, theirs, ours) -> None:
    """Both read the same pieces, rows in any order; all logits are compared."""
    ids, order, places = torch.randint(VOCAB, (len(starts), LENGTH)), torch.randperm(len(starts)), torch.arange(31)
    padded = (starts[:, None] + places).where(places < PIECES[:, None], -1)
    rows, columns = order.repeat_interleave(PIECES[order]), torch.cat([torch.arange(PIECES[row]) for row in order])
    expected = model.logits(model.hidden(ids[:, :31], padded, state=theirs))[rows, columns]
    found = fast.logits(ids[rows, columns], padded[rows, columns], rows, ours)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pages", [False, True], ids=["rows", "pages"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_pieces_of_texts_are_read_as_pytorch_reads_them(name, pages):
    model = make(name)
    fast, n = compiled(model), len(READ)
    theirs = model.new_state(n, LENGTH)
    ours = paged(model, n) if pages else model.new_state(n, LENGTH)
    read(model, [theirs, ours])
    read_pieces(model, fast, READ, theirs, ours)
    # Both go on from what was written; only two rows are asked what comes next.
    ends, ids, two = READ + PIECES, torch.randint(VOCAB, (n,)), torch.tensor([n - 1, 2])
    expected = in_torch(model, ids, ends, theirs)[two]
    found = fast.logits(ids, ends, torch.arange(n), ours, wanted=two)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    expected = in_torch(model, ids, ends + 1, theirs)
    torch.testing.assert_close(in_torch(model, ids, ends + 1, ours), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["transformer", "diff-1", "bimamba", "hymba"])
@torch.no_grad()
def test_a_text_may_be_cut_anywhere_and_nobody_else_notices(name):
    model = make(name)
    fast, ids = compiled(model), torch.randint(VOCAB, (50,))
    once, cut = paged(model, 1), paged(model, 3)
    whole = fast.logits(ids, torch.arange(50), torch.zeros(50, dtype=torch.int64), once)
    for start, end in ((0, 1), (1, 20), (20, 21), (21, 29), (29, 50)):
        other = torch.randint(VOCAB, (7,))
        given = torch.cat((other, ids[start:end]))
        positions = torch.cat((torch.arange(7) + start % 40, torch.arange(start, end)))
        rows = torch.tensor([0] * 7 + [2] * (end - start))
        wanted = torch.arange(7, len(given))
        found = fast.logits(given, positions, rows, cut, wanted)
        torch.testing.assert_close(found, whole[start:end], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["transformer", "diff-1", "bimamba", "hymba"])
@torch.no_grad()
def test_some_rows_may_step_while_others_and_padding_leave_no_trace(name):
    model = make(name)
    fast, n = compiled(model), len(READ)
    theirs, ours = model.new_state(n, LENGTH), paged(model, n)
    read(model, [theirs, ours])
    some, ids = torch.tensor([7, 2, 4]), torch.randint(VOCAB, (n,))
    # Row 5 is padding, row 7 begins anew.
    positions = READ.clone()
    positions[7] = 0
    expected = in_torch(model, ids, positions, theirs)
    given = torch.cat((some, torch.tensor([5])))
    at = positions[given]
    at[-1] = -1
    found = fast.logits(ids[given], at, given, ours)[:3]
    torch.testing.assert_close(found, expected[some], rtol=0, atol=1e-4)
    others = torch.tensor([0, 1, 3, 5, 6, 8])
    found = fast.logits(ids[others], READ[others], others, ours)
    torch.testing.assert_close(found, expected[others], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["transformer", "ngpt", "hymba"])
@pytest.mark.parametrize("n", [1, 2, 40])
@torch.no_grad()
def test_one_row_and_many_rows(name, n):
    model = make(name)
    fast, positions = compiled(model), torch.arange(n) % 50
    theirs, ours = (model.new_state(n, LENGTH) for _ in range(2))
    read(model, [theirs, ours], positions.clamp_min(1))
    ids = torch.randint(VOCAB, (n,))
    expected = in_torch(model, ids, positions, theirs)
    torch.testing.assert_close(fast.logits(ids, positions, torch.arange(n), ours), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [(300,), (200, 190, 3)], ids=["all-threads", "a-thread-each"])
@pytest.mark.parametrize("name", ["transformer", "bimamba", "hymba"])
@torch.no_grad()
def test_long_texts_are_read_whole_however_threads_share_them(name, lengths):
    model, n = make(name), len(lengths)
    fast, longest = compiled(model), max(lengths)
    theirs, ours, again = (model.new_state(n, longest + 1) for _ in range(3))
    ids, places = torch.randint(VOCAB, (n, longest)), torch.arange(longest).repeat(n, 1)
    there = places < torch.tensor(lengths)[:, None]
    expected = model.logits(model.hidden(ids, places.where(there, -1), state=theirs))[there]
    given = ids[there], places[there], torch.arange(n).repeat_interleave(torch.tensor(lengths))
    some = torch.tensor([0, 140, 141, sum(lengths) - 1])
    torch.testing.assert_close(fast.logits(*given, ours, some), expected[some], rtol=0, atol=1e-4)
    torch.testing.assert_close(fast.logits(*given, again, some.flip(0)), expected[some].flip(0), rtol=0, atol=1e-4)
    assert fast.logits(*given, again, some[:0]).shape == (0, VOCAB)
    ids, ends = torch.randint(VOCAB, (n,)), torch.tensor(lengths)
    expected = in_torch(model, ids, ends, theirs)
    for state in (ours, again):
        torch.testing.assert_close(in_torch(model, ids, ends, state), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_signs_held_as_bits_give_the_same_logits():
    model = make("bimamba")
    ids, rows = torch.randint(VOCAB, (4,)), torch.arange(4)
    plain, bits = (
        compiled(m).logits(ids, rows * 0, rows, m.new_state(4, LENGTH))
        for m in (model, pack(model).requires_grad_(False))
    )
    torch.testing.assert_close(bits, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer", "ngpt", "diff-1", "bimamba", "hymba"])
@torch.no_grad()
def test_refresh_takes_over_weights_that_changed_in_place(name):
    model = make(name)
    fast, ids, rows = compiled(model), torch.randint(VOCAB, (3,)), torch.arange(3)
    states = [model.new_state(3, LENGTH) for _ in range(3)]
    before = fast.logits(ids, rows * 0, rows, states[0])
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.after_step()
    expected = in_torch(model, ids, rows * 0, states[1])
    assert (expected - before).abs().max() > 1e-2
    fast.refresh()
    torch.testing.assert_close(fast.logits(ids, rows * 0, rows, states[2]), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_view_of_a_state_and_a_longer_state_work():
    model = make("transformer")
    fast = compiled(model)
    for length in (LENGTH, 4 * LENGTH):
        theirs, ours = (model.new_state(9, length) for _ in range(2))
        read(model, [theirs, ours])
        ids = torch.randint(VOCAB, (4,))
        expected = in_torch(model, ids, READ[2:6], theirs.view(slice(2, 6), 50))
        found = fast.logits(ids, READ[2:6].contiguous(), torch.arange(4), ours.view(slice(2, 6), 50))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=0, atol=1e-4)


@torch.no_grad()
def test_what_does_not_exist_is_refused_and_nothing_is_written():
    model = make("transformer")
    fast, state = compiled(model), paged(model, 2)
    good = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    wrong = [
        (0, torch.tensor([0, VOCAB]), "id"), (1, torch.tensor([0, LENGTH]), "position"),
        (1, torch.tensor([0, -2]), "position"), (2, torch.tensor([0, 2]), "row"), (0, good[0].int(), "ids"),
        (2, good[2][:1], "rows"), (2, torch.tensor([1, 1]), "successive"),
    ]  # fmt: skip
    for place, value, word in wrong:
        with pytest.raises(ValueError, match=word):
            fast.logits(*good[:place], value, *good[place + 1 :], state)
    apart = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="side by side"):
        fast.logits(*apart, state)
    with pytest.raises(ValueError, match="wanted"):
        fast.logits(*good, state, wanted=torch.tensor([2]))
    state.table[1, 0] = 10_000
    with pytest.raises(ValueError, match="page"):
        fast.logits(*good, state)
    assert not state.keys.any()
    with pytest.raises(ValueError, match="float32"):
        fast.logits(*good, model.new_state(2, LENGTH, dtype=torch.float16))
    assert fast.logits(*(part[:0] for part in good), state).shape == (0, VOCAB)


# -- sampling ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("vocabulary", [5, 64, 1000])
def test_tokens_and_logprobs_are_those_of_the_torch_sampler(vocabulary):
    n = 300
    draw = torch.Generator().manual_seed(vocabulary)
    fast = compiled(make("transformer"))
    logits = 3 * torch.randn(n, vocabulary + 3, generator=draw)[:, :vocabulary]
    logits[::7, 1] = -torch.inf
    seeds = torch.randint(-(1 << 63), (1 << 63) - 1, (n,), generator=draw)
    steps = torch.randint(1000, (n,), generator=draw)
    temperature = torch.tensor([0.0, 0.3, 1.0, 2.0]).repeat(n // 4)
    tokens, logprobs = fast.sample(logits, seeds, steps, temperature)
    scores = torch.addcmul(logits, gumbel_noise(seeds, steps, vocabulary), temperature[:, None])
    # A tie is what two ways of rounding may decide differently.
    best = scores.max(-1).values
    chosen = scores.gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(chosen, best, rtol=0, atol=1e-5)
    assert (tokens == scores.argmax(-1)).sum() >= n - 1
    expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)


def test_of_equal_scores_the_first_token_is_drawn():
    fast, zeros = compiled(make("transformer")), torch.zeros(2, dtype=torch.int64)
    logits = torch.zeros(2, 50)
    logits[0, 20], logits[0, 36], logits[1, 49] = 1, 1, 1
    assert fast.sample(logits, zeros, zeros, torch.zeros(2))[0].tolist() == [20, 49]


# -- bursts ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["transformer", "bimamba", "hymba"])
@torch.no_grad()
def test_a_burst_draws_what_single_steps_draw_and_leaves_the_finished_alone(name):
    model = make(name)
    fast, n, steps = compiled(model), len(READ), 7
    theirs, ours = paged(model, n), paged(model, n)
    read(model, [theirs, ours])
    rows = Rows(n, steps, VOCAB, torch.device("cpu"))
    rows.ids.copy_(torch.randint(VOCAB, (n,)))
    rows.positions.copy_(READ)
    rows.seeds.copy_(torch.arange(n))
    rows.temperature.copy_(torch.arange(n) % 2)
    rows.limit.fill_(steps)
    rows.limit[3] = 4
    rows.finished.fill_(False)
    where, ids = torch.tensor([8, 0, 2, 3, 5]), rows.ids.clone()
    expected, logprobs = [], []
    for step in range(steps):
        logits = fast.logits(ids[where], READ[where] + step, where, theirs)
        drawn = fast.sample(logits, rows.seeds[where], torch.full((5,), step), rows.temperature[where])
        ids[where] = drawn[0]
        expected.append(drawn[0])
        logprobs.append(drawn[1])
    expected, logprobs = torch.stack(expected, 1), torch.stack(logprobs, 1)
    ends = expected[0, 2:3]  # of the first row and perhaps others
    rows.ignores_end[where[1:]] = True
    fast.burst(rows, where, ends, ours, steps)
    first_end = int((expected[0] == ends).nonzero()[0, 0]) + 1
    lengths = torch.tensor([first_end, steps, steps, 4, steps])
    assert rows.steps[where].equal(lengths)
    assert rows.positions[where].equal(READ[where] + lengths)
    assert rows.finished[where].all()
    for i, row in enumerate(where.tolist()):
        assert rows.tokens[row, : lengths[i]].equal(expected[i, : lengths[i]])
        torch.testing.assert_close(rows.logprobs[row, : lengths[i]], logprobs[i, : lengths[i]], rtol=0, atol=1e-4)
    others = torch.tensor([1, 4, 6, 7])
    assert not rows.steps[others].any()
    assert rows.positions[others].equal(READ[others])
    with pytest.raises(ValueError, match="side by side"):
        fast.burst(rows, torch.tensor([1, 4, 6, 1]), ends, ours, 1)


@pytest.mark.parametrize("name", ["transformer", "hymba"])
@pytest.mark.parametrize("n", [3, 21, 40])
@torch.no_grad()
def test_a_burst_draws_the_same_with_any_number_of_threads(name, n):
    model, drawn = make(name), []
    fast, starts = compiled(model), torch.arange(n) % 20 + 1
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        state, rows = paged(model, n), Rows(n, 6, VOCAB, torch.device("cpu"))
        read(model, [state], starts)
        rows.ids.copy_(torch.randint(VOCAB, (n,)))
        rows.positions.copy_(starts)
        rows.limit.copy_(torch.arange(n) % 6 + 1)
        rows.finished.fill_(False)
        rows.temperature.fill_(1.0)
        fast.burst(rows, torch.arange(n), torch.tensor([], dtype=torch.int64), state, 6)
        assert rows.finished.all()
        drawn.append(rows.tokens.clone())
    assert drawn[0].equal(drawn[1])
    assert drawn[0].equal(drawn[2])


# -- where there is none -----------------------------------------------------------------------------------------------
@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NLRL_CACHE", str(tmp_path / "cache"))
    library.library.cache_clear()
    yield tmp_path
    library.library.cache_clear()


def test_without_a_compiler_there_is_one_line_in_the_log(no_compiler, caplog):
    with caplog.at_level(logging.WARNING):
        assert [compile_model(make("transformer")) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "g++ is not installed" in caplog.text


def test_a_compiler_that_fails_is_named_with_its_error(no_compiler, caplog):
    broken = no_compiler / "g++"
    broken.write_text('#!/bin/sh\necho "model.cpp:1: error: no such register" >&2\nexit 1\n')
    broken.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        assert compile_model(make("transformer")) is None
    assert "no such register" in caplog.text
    assert not list((no_compiler / "cache").iterdir()), "no half-written library stays behind"


def test_models_that_cannot_be_compiled_are_named_once(caplog):
    native._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [compile_model(make("transformer").half()) for _ in range(2)] == [None, None]
    assert len(caplog.records) == 1
    assert "float16" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("flags", [["-mno-avx512f"], ["-mno-avx"]], ids=["avx2", "sse"])
@torch.no_grad()
def test_narrower_registers_give_the_same_logits(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("NLRL_CACHE", str(tmp_path))
    narrow = library.opened(library.build(flags))
    assert narrow.nlrl_lanes() < 16
    for name in MODELS:
        model = make(name)
        fast, n = native.CpuModel(model, narrow), len(READ)
        theirs, ours = model.new_state(n, LENGTH), paged(model, n)
        read(model, [theirs, ours])
        ids = torch.randint(VOCAB, (n,))
        expected = in_torch(model, ids, READ, theirs)
        torch.testing.assert_close(fast.logits(ids, READ, torch.arange(n), ours), expected, rtol=0, atol=1e-4)
        read_pieces(model, fast, READ + 1, theirs, ours)
