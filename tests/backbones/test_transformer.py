"""The control decoder: equal to Hugging Face Llama, equal through the cache, and usable by `generate`."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nlrl.backbones import TransformerConfig, TransformerForCausalLM, from_hf_llama, save_hf_llama
from nlrl.errors import NLRLError

VOCABULARY = 97
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}


def llama(**changes) -> LlamaForCausalLM:
    sizes = dict(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.2, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    return model


def control(**changes) -> TransformerForCausalLM:
    sizes = dict(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return TransformerForCausalLM(TransformerConfig(**(sizes | changes))).eval()


def tokens(batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))


def positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 6, "head_dim": 16},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": LINEAR},
    ],
    ids=["tied", "untied", "multi-head", "llama3-rope", "linear-rope"],
)
@torch.no_grad()
def test_llama_logits_survive_the_way_in_and_back_out(tmp_path, changes):
    theirs, ids = llama(**changes), tokens(2, 50)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_hf_llama(tmp_path / "theirs")
    expected = theirs(ids).logits
    torch.testing.assert_close(ours.logits(ours.hidden(ids, positions(ids))), expected, rtol=0, atol=1e-5)
    save_hf_llama(ours, tmp_path / "back")
    back = LlamaForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(back(ids).logits, expected)


def test_sharded_llama_checkpoints_load(tmp_path):
    theirs, ids = llama(), tokens(1, 9)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    with torch.no_grad():
        torch.testing.assert_close(from_hf_llama(tmp_path)(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_generate_equals_llama_token_for_token_with_left_padding(tmp_path):
    theirs = llama()
    theirs.save_pretrained(tmp_path)
    ours = from_hf_llama(tmp_path)
    ids, real = tokens(3, 12), torch.ones(3, 12, dtype=torch.long)
    real[1, :5], real[2, :11] = 0, 0
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 1.3, "top_k": 20}):
        drawn = []
        for model in (theirs, ours):
            torch.manual_seed(3)
            drawn.append(model.generate(ids, attention_mask=real, max_new_tokens=20, pad_token_id=0, **sampling))
        assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("attention_bias", True, "without biases"),
        ("hidden_act", "gelu", "hidden_act"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, "yarn"),
    ],
)
def test_llama_models_with_parts_that_ours_lacks_are_refused(tmp_path, field, value, named):
    llama(**{field: value}).save_pretrained(tmp_path)
    with pytest.raises(NLRLError, match=named):
        from_hf_llama(tmp_path)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@torch.no_grad()
def test_cached_steps_equal_one_pass(kv_heads):
    """Prefill of rows of different lengths, then one token at a time, each row writing its own slots."""
    model, ids, lengths = control(num_key_value_heads=kv_heads), tokens(3, 10), torch.tensor([4, 6, 1])
    expected = model.logits(model.hidden(ids, positions(ids)))
    state = model.new_state(3, 12)
    prompt = positions(ids[:, :6])
    logits = model.logits(model.hidden(ids[:, :6], prompt.where(prompt < lengths[:, None], -1), state=state))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(logits[row, :length], expected[row, :length], rtol=0, atol=1e-5)
    for step in range(4):
        now = (lengths + step)[:, None]
        logits = model.logits(model.hidden(ids.gather(1, now), now, state=state))
        torch.testing.assert_close(logits[:, 0], expected[torch.arange(3), now[:, 0]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_selected_cache_continues_each_copy_alone():
    model, ids = control(), tokens(2, 5)
    cache = model.new_state(2, 8)
    model.hidden(ids, positions(ids), state=cache)
    fan = cache.select(torch.tensor([1, 0, 1]))
    new = torch.tensor([[7], [8], [9]])
    now = torch.full((3, 1), 5)
    hidden = model.hidden(new, now, state=fan)
    whole = torch.cat((ids[[1, 0, 1]], new), 1)
    torch.testing.assert_close(hidden[:, 0], model.hidden(whole, positions(whole))[:, -1], rtol=0, atol=1e-5)
    assert cache.keys[:, :, :, 5:].count_nonzero() == 0, "select must copy"


@torch.no_grad()
def test_no_token_sees_a_later_one():
    model, ids = control(), tokens(1, 9)
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % VOCABULARY
    before, after = (model.hidden(x, positions(x)) for x in (ids, changed))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_loss_is_the_mean_over_labels_that_count():
    model, ids = control(), tokens(2, 7)
    labels = ids.clone()
    labels[0, :4], labels[1, 3] = -100, -100
    output = model(ids, labels=labels)
    logprobs = output.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    counts = labels[:, 1:] != -100
    torch.testing.assert_close(output.loss, -logprobs[counts].mean())


def test_gradient_checkpointing_changes_no_gradient():
    ids, gradients = tokens(2, 8), []
    for checkpointed in (False, True):
        model = control().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_gradients_agree_with_llama(tmp_path):
    theirs, ids = llama(tie_word_embeddings=True).train(), tokens(2, 11)
    theirs.save_pretrained(tmp_path)
    ours = from_hf_llama(tmp_path).train()
    for model in (theirs, ours):
        model(ids, labels=ids).loss.backward()
    attention = theirs.model.layers[0].self_attn
    stacked = torch.cat([part.weight.grad for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
    torch.testing.assert_close(ours.layers[0].attention.qkv.weight.grad, stacked, rtol=1e-4, atol=1e-5)
    embedding = theirs.model.embed_tokens.weight.grad
    torch.testing.assert_close(ours.embed_tokens.weight.grad, embedding, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bfloat16_autocast_stays_near_float32():
    model, ids = control(), tokens(2, 20)
    exact = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids).logits
    assert (rounded.float() - exact).norm() < 0.02 * exact.norm()


def test_impossible_shapes_are_refused():
    with pytest.raises(Exception, match="multiple of num_key_value_heads"):
        TransformerConfig(num_attention_heads=6, num_key_value_heads=4)
    with pytest.raises(Exception, match="must be even"):
        TransformerConfig(head_dim=7)
