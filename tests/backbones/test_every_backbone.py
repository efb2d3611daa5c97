"""The contract of every backbone: one function of the tokens, however they are brought to it."""

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
from nlrl.backbones.packing import block_mask

VOCABULARY = 53
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
MAMBA = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, head_dim=16, state_size=6, n_groups=2, norm_groups=2,
    chunk_size=8,
)  # fmt: skip
HYMBA = SIZES | dict(
    num_hidden_layers=8, sliding_window=5, global_attn_idx=[0, 3, 7], kv_reuse_group=[[1, 2], [4, 5, 6]],
    num_memory_tokens=4, mamba_d_state=4, rope_type="ntk", orig_max_position_embeddings=512,
)  # fmt: skip
MODELS = {
    "hymba": lambda: HymbaForCausalLM(HymbaConfig(**HYMBA)),
    "bimamba": lambda: BiMambaForCausalLM(BiMambaConfig(**MAMBA)),
    "mamba2": lambda: BiMambaForCausalLM(BiMambaConfig(binary=False, **MAMBA)),
    "transformer": lambda: TransformerForCausalLM(TransformerConfig(**SIZES)),
    "ngpt": lambda: NGPTForCausalLM(NGPTConfig(**SIZES)),
    "ngpt_official": lambda: NGPTForCausalLM(NGPTConfig(rope="official", **SIZES)),
    "diff_transformer_v1": lambda: DiffTransformerForCausalLM(DiffTransformerConfig(version=1, **SIZES)),
    "diff_transformer_v2": lambda: DiffTransformerForCausalLM(DiffTransformerConfig(version=2, **SIZES)),
}
"""Small models with every part of their architecture in them; a window, where there is one, is shorter than LONG."""
LONG = 23


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    made = MODELS[request.param]().eval().double()
    with torch.no_grad():  # nothing may hide behind an initial zero or one
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    made.after_step()
    return made


def tokens(batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(100 * seed + time))


def positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


def whole(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits of each row read alone and at once."""
    return torch.cat([model.logits(model.hidden(row[None], positions(row[None]))) for row in ids])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0, 1], [1, 0]])
def test_pages_in_any_order_equal_one_pass(model, rows):
    """Ragged prompts, then steps, on shuffled pages full of noise; a third row stays idle."""
    ids = tokens(2, LONG)
    state = model.new_paged_state(3, LONG, 8)
    if hasattr(state, "table"):
        state.table.copy_(torch.tensor([[5, 2], [0, 0], [3, 7]]))
        getattr(state, "keys", getattr(state, "whole_keys", None)).fill_(1e3)
    ids3 = torch.stack((ids[rows[0]], ids[0], ids[rows[1]]))
    at = positions(ids3[:, :9]).clone()
    at[1], at[2, 6:] = -1, -1
    first = model.hidden(ids3[:, :9], at, state=state)[:, :6]
    steps = []
    for i in range(LONG - 6):
        place = torch.tensor([[9 + i if 9 + i < LONG else -1], [-1], [6 + i]])
        steps.append(model.hidden(ids3.gather(1, place.clamp_min(0)), place, state=state.view(slice(0, 3), LONG)))
    late = torch.cat(steps, 1)
    expected = whole(model, ids3)
    close(model.logits(torch.cat((first[2], late[2]))), expected[2])
    close(model.logits(late[0, : LONG - 9]), expected[0, 9:])
    assert late.isfinite().all()


@torch.no_grad()
def test_steps_equal_one_pass(model):
    ids = tokens(2, LONG)
    state = model.new_state(2, LONG)
    steps = [model.hidden(ids[:, i : i + 1], torch.full((2, 1), i), state=state) for i in range(LONG)]
    close(model.logits(torch.cat(steps, 1)), whole(model, ids))


@pytest.mark.parametrize("cuts", [(1, 22), (5, 5, 13), (9, 14), (16, 7), (2, 1, 20)])
@torch.no_grad()
def test_chunks_equal_one_pass(model, cuts):
    ids, state, start, found = tokens(2, LONG), model.new_state(2, LONG), 0, []
    for size in cuts:
        chunk = slice(start, start + size)
        found.append(model.hidden(ids[:, chunk], positions(ids)[:, chunk], state=state))
        start += size
    close(model.logits(torch.cat(found, 1)), whole(model, ids))


@torch.no_grad()
def test_rows_of_different_lengths_do_not_notice_each_other(model):
    """Right-padded prefill, then two more tokens a row, each at its own position."""
    ids, lengths = tokens(4, LONG), torch.tensor([LONG - 2, 1, 7, 12])
    expected, state = whole(model, ids), model.new_state(4, LONG + 3)
    prompt = positions(ids)[:, : LONG - 2]
    padded = prompt.where(prompt < lengths[:, None], -1)
    logits = model.logits(model.hidden(ids[:, : LONG - 2], padded, state=state))
    for row, length in enumerate(lengths):
        close(logits[row, :length], expected[row, :length])
    for step in range(2):
        now = (lengths + step)[:, None]
        logits = model.logits(model.hidden(ids.gather(1, now), now, state=state))
        close(logits[:, 0], expected[torch.arange(4), now[:, 0]])


@torch.no_grad()
def test_a_chunk_with_padding_continues_ragged_rows(model):
    """Several tokens at once on top of a state, of another number in each row (none in one)."""
    ids, state = tokens(3, LONG), model.new_state(3, LONG)
    model.hidden(ids[:, :6], positions(ids)[:, :6], state=state)
    more = torch.tensor([5, 0, 17])
    chunk = positions(ids)[:, 6:]
    logits = model.logits(model.hidden(ids[:, 6:], chunk.where(chunk < 6 + more[:, None], -1), state=state))
    expected = whole(model, ids)
    for row, count in enumerate(more):
        close(logits[row, :count], expected[row, 6 : 6 + count])
    last = (6 + more).clamp_max(LONG - 1)[:, None]
    close(model.logits(model.hidden(ids.gather(1, last), last, state=state))[:2, 0], expected[[0, 1], last[:2, 0]])


@torch.no_grad()
def test_position_0_begins_anew_whatever_the_state_held(model):
    ids, state = tokens(2, LONG), model.new_state(2, LONG)
    other = tokens(2, LONG, seed=1)
    model.hidden(other, positions(other), state=state)
    close(model.logits(model.hidden(ids, positions(ids), state=state)), whole(model, ids))


@torch.no_grad()
def test_a_selected_state_continues_each_copy_alone(model):
    ids, state = tokens(2, LONG), model.new_state(2, LONG)
    model.hidden(ids[:, :9], positions(ids)[:, :9], state=state)
    fan = state.select(torch.tensor([1, 0, 1]))
    for token in (7, 8):  # the copies go one way, the originals another
        model.hidden(torch.full((3, 1), token), torch.full((3, 1), 9), state=fan)
    rest = slice(9, LONG)
    close(model.logits(model.hidden(ids[:, rest], positions(ids)[:, rest], state=state)), whole(model, ids)[:, rest])


@torch.no_grad()
def test_a_state_copied_into_a_larger_one_goes_on(model):
    ids, small, large = tokens(2, LONG), model.new_state(2, 9), model.new_state(5, LONG)
    model.hidden(ids[:, :9], positions(ids)[:, :9], state=small)
    large.copy_(small)
    logits = model.logits(model.hidden(ids[:, 9:], positions(ids)[:, 9:], state=large.view(slice(0, 2), LONG)))
    close(logits, whole(model, ids)[:, 9:])


@torch.no_grad()
def test_later_tokens_change_nothing_earlier(model):
    ids = tokens(1, LONG)
    changed = ids.clone()
    changed[:, 14] = (changed[:, 14] + 1) % VOCABULARY
    before, after = whole(model, ids), whole(model, changed)
    assert torch.equal(before[:, :14], after[:, :14])
    assert (before[:, 14:] != after[:, 14:]).any(-1).all(), "every later position sees the change"


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, positions and document numbers of two rows of documents, with padding at the end of one."""
    lengths = [(9, 14), (3, 12, 5)]
    documents = [[number for number, n in enumerate(row, 1) for _ in range(n)] for row in lengths]
    at = [[i for n in row for i in range(n)] for row in lengths]
    fill = [LONG - len(row) for row in at]
    documents = torch.tensor([row + [0] * n for row, n in zip(documents, fill, strict=True)])
    at = torch.tensor([row + [0] * n for row, n in zip(at, fill, strict=True)])
    return tokens(2, LONG, seed=2), at, documents


def test_documents_of_one_row_do_not_see_each_other(model):
    """Packed training: the same logits and the same gradients as each document alone."""
    ids, at, documents = packed()
    logits = model.logits(model.hidden(ids, at, block_mask(documents)))
    weights = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    real = documents > 0
    gradients = torch.autograd.grad((logits * weights)[real].sum(), list(model.parameters()), allow_unused=True)
    alone = torch.zeros_like(logits)
    for row in range(2):
        for number in range(1, int(documents[row].max()) + 1):
            chosen = documents[row] == number
            alone[row, chosen] = whole(model, ids[row, chosen][None])[0]
    close(logits[real], alone[real])
    expected = torch.autograd.grad((alone * weights)[real].sum(), list(model.parameters()), allow_unused=True)
    for found, wanted in zip(gradients, expected, strict=True):
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


def test_gradient_checkpointing_changes_memory_only(model):
    ids = tokens(2, LONG)
    model.train()

    def gradients():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable()
    for found, expected in zip(gradients(), plain, strict=True):
        close(found, expected)


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(model, tmp_path):
    from transformers import AutoModelForCausalLM

    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(again) is type(model)
    close(whole(again, tokens(1, LONG)), whole(model, tokens(1, LONG)))


@pytest.mark.parametrize("left", [0, 4])
@torch.no_grad()
def test_generate_agrees_with_reading_everything_again(model, left):
    """Hugging Face's `generate`, greedy, with and without padding on the left of one row."""
    ids = tokens(2, 8)
    real = torch.ones_like(ids)
    real[1, :left] = 0
    found = model.generate(
        ids, attention_mask=real, max_new_tokens=14, do_sample=False, pad_token_id=0, eos_token_id=-1
    )
    for row, start in ((0, 0), (1, left)):
        mine = ids[row, start:]
        for _ in range(14):
            mine = torch.cat((mine, whole(model, mine[None])[0, -1:].argmax(-1)))
        assert torch.equal(found[row, start:], mine)
