"""What every backbone owes its callers, whichever architecture it has."""

import pytest
import torch

from nlrl.backbones import NGPTConfig, NGPTForCausalLM, TransformerConfig, TransformerForCausalLM

VOCABULARY = 53
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
MODELS = {"transformer": (TransformerForCausalLM, TransformerConfig), "ngpt": (NGPTForCausalLM, NGPTConfig)}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model_class, config_class = MODELS[request.param]
    return model_class(config_class(**SIZES)).eval()


def tokens(batch: int, time: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(time))


def positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


@pytest.mark.parametrize("dynamic", [False, True])
def test_training_compiles_without_a_break(model, dynamic):
    torch._dynamo.reset()
    call = torch.compile(
        lambda ids: model.logits(model.hidden(ids, positions(ids))),
        backend="aot_eager",
        fullgraph=True,
        dynamic=dynamic,
    )
    for ids in (tokens(2, 6), tokens(3, 8)):
        gradients = []
        for function in (call, lambda ids: model.logits(model.hidden(ids, positions(ids)))):
            model.zero_grad()
            function(ids).square().mean().backward()
            gradients.append([weight.grad for weight in model.parameters()])
        for compiled, eager in zip(*gradients, strict=True):
            torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_cached_step_compiles_and_writes_the_cache(model):
    torch._dynamo.reset()
    ids, now = tokens(3, 1), torch.full((3, 1), 4)
    call = torch.compile(model.hidden, backend="aot_eager", fullgraph=True)
    caches = [model.new_state(3, 8) for _ in range(2)]
    compiled, eager = (f(ids, now, state=cache) for f, cache in zip((call, model.hidden), caches, strict=True))
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-5)
    torch.testing.assert_close(caches[0].keys, caches[1].keys, rtol=0, atol=1e-5)
    assert caches[0].keys[:, :, :, 4].count_nonzero() > 0
    assert caches[0].values[:, :, :, :4].count_nonzero() == 0


@torch.no_grad()
def test_a_new_state_follows_the_model_unless_told_otherwise(model):
    cache = model.bfloat16().new_state(5, 7)
    assert cache.keys.shape == cache.values.shape == (2, 5, 2, 7, 8)
    assert (cache.length, cache.keys.dtype) == (7, torch.bfloat16)
    assert model.new_state(1, 1, dtype=torch.float32).values.dtype == torch.float32


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_generate_agrees_with_repeated_forward_calls(model, options):
    ids = tokens(1, 5)
    real = torch.ones_like(ids)
    disable = {"disable_compile": True} if "cache_implementation" in options else {}
    found = model.generate(
        ids, attention_mask=real, max_new_tokens=6, do_sample=False, pad_token_id=0, **options, **disable
    )
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(found, ids)


@torch.no_grad()
def test_padding_changes_nothing_on_either_side(model):
    ids, whole = tokens(1, 6), torch.ones(1, 6, dtype=torch.long)
    expected = model(ids, attention_mask=whole).logits
    junk, nothing = tokens(1, 3), torch.zeros(1, 3, dtype=torch.long)
    left = model(torch.cat((junk, ids), 1), attention_mask=torch.cat((nothing, whole), 1)).logits
    right = model(torch.cat((ids, junk), 1), attention_mask=torch.cat((whole, nothing), 1)).logits
    torch.testing.assert_close(left[:, 3:], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(right[:, :6], expected, rtol=0, atol=1e-5)
    assert left.isfinite().all()


@torch.no_grad()
def test_kept_logits_are_the_last_ones(model):
    ids = tokens(2, 6)
    everything = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, everything[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, everything[:, [0, 3]])


def test_embeddings_are_found_by_hugging_face_tools(model):
    assert model.get_input_embeddings() is model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head


def test_a_mask_beside_a_state_is_refused(model):
    ids = tokens(1, 3)
    with pytest.raises(ValueError, match="takes no mask"):
        model.hidden(ids, positions(ids), torch.ones(1, 1, 3, 4, dtype=torch.bool), model.new_state(1, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@torch.no_grad()
def test_the_device_computes_what_the_cpu_does_with_and_without_a_cache(model, dtype, tolerance):
    ids = tokens(5, 20)
    expected = model.hidden(ids, positions(ids))
    model.to("cuda", dtype)
    there = ids.cuda()
    at = positions(there).cuda()
    state = model.new_state(5, 27)
    found = [model.hidden(there[:, :16], at[:, :16], state=state)]
    for now in at[:, 16:, None].unbind(1):
        found.append(model.hidden(there.gather(1, now), now, state=state))
    for hidden in (torch.cat(found, 1), model.hidden(there, at)):
        error = (hidden.float().cpu() - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < tolerance
