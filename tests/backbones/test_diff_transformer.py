"""The Differential Transformer: published numbers in float64, Hugging Face's DiffLlama, and what the maths promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM, PreTrainedTokenizerFast

import nlrl.backbones
from nlrl import kernels
from nlrl.backbones import DiffTransformerConfig, DiffTransformerForCausalLM, from_hf_diff_llama
from nlrl.backbones.attention import context, first_visible
from nlrl.backbones.diff_transformer.network import AttentionV1, AttentionV2, differential
from nlrl.backbones.packing import block_mask
from nlrl.backbones.rotary import frequencies
from nlrl.errors import NLRLError
from nlrl.kernels.diff_attention.eager import head_norm

VOCABULARY = 61


def model(version: int = 1, **changes) -> DiffTransformerForCausalLM:
    sizes = dict(
        vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2
    )
    torch.manual_seed(0)
    return DiffTransformerForCausalLM(DiffTransformerConfig(version=version, **(sizes | changes))).eval()


def tokens(batch: int = 2, time: int = 9) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(1))


def positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


# -- golden numbers ----------------------------------------------------------------------------------------------------
# One attention layer of width 32 with 4 heads in 2 groups (V1: the third layer), 6 tokens: name: (sum, Frobenius norm).
GOLDEN = {
    1: {
        "y": (9.437340165888, 8.404036904941), "x": (1.898176868246, 44.547139192865),
        "lq1": (0.024330479835, 0.138848469956), "lk1": (0.262123754876, 0.152362898101),
        "lq2": (0.280018572707, 0.154498038001), "lk2": (0.236547474092, 0.149872538687),
        "w": (-3.284438315500, 7.299541317326), "q": (0.270998745999, 18.997229242995),
        "k": (-0.054781390785, 3.204825790149), "v": (-6.322419201645, 135.995594188466),
        "o": (1.442561308475, 27.901745095762),
    },
    2: {
        "y": (-12.468969178424, 10.008100102052), "x": (1.556191545431, 10.331673689954),
        "q": (0.894136311043, 29.982530356332), "k": (-0.126198258965, 11.861325673786),
        "v": (0.030563261274, 18.815103788811), "o": (-0.860088126668, 30.731128914394),
        "lam": (0.233716712417, 7.258622271545),
    },
}  # fmt: skip
FIRST = {
    1: (1.37146790962, -0.352099015156, 0.096243205748, -0.167341445963),
    2: (-1.292579484381, -1.706773265681, -0.826977318755, -0.79452558789),
}
ORDER = {
    1: ("lq1", "lk1", "lq2", "lk2", "w", "q", "k", "v", "o"),
    2: ("q", "k", "v", "o", "lam"),
}


def fill(shape: tuple[int, ...], k: int) -> torch.Tensor:
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(k + 0.7 * n + (0.003 * n * n) % 6.28318).view(shape)


def parts(layer, of=lambda weight: weight) -> dict[str, torch.Tensor]:
    """An attention layer's tensors under the oracle's names."""
    rows = layer.qkv.weight.shape[0]
    key = (2 if isinstance(layer, AttentionV1) else 1) * layer.kv_heads * layer.head_dim
    query, key, value = of(layer.qkv.weight).split((rows - 2 * key, key, key))
    found = {"q": query, "k": key, "v": value, "o": of(layer.output.weight)}
    if isinstance(layer, AttentionV2):
        return found | {"lam": of(layer.gate.weight)}
    vectors = {f"l{name}": of(getattr(layer.lambda_, name)) for name in ("q1", "k1", "q2", "k2")}
    return found | vectors | {"w": of(layer.head_norm.weight)}


@pytest.fixture(params=[1, 2], scope="module")
def golden(request):
    """(version, output, gradients) of the layer filled as the golden numbers were: entry n of tensor k is
    sin(k + 0.7 n + 0.003 n^2 mod 2 pi), the tensors numbered in `ORDER`; matrices times 0.3, lambda vectors times 0.1,
    the norm's weight 1 + 0.2 of it."""
    version = request.param
    config = DiffTransformerConfig(version=version, hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    layer = {1: AttentionV1, 2: AttentionV2}[version](config, 2).double()
    with torch.no_grad():
        for k, name in enumerate(ORDER[version], start=1):
            weight = parts(layer, lambda weight: weight.data)[name]
            value = fill(tuple(weight.shape), k)
            weight.copy_({"w": 1 + 0.2 * value, "lam": 0.3 * value}.get(name, (0.1 if name[0] == "l" else 0.3) * value))
    x = fill((1, 6, 32), 9).requires_grad_()
    turns = frequencies(config.head_dim, {"rope_theta": 10000.0}, x)
    y = layer(x, context(torch.arange(6)[None], turns))
    y.backward(fill((1, 6, 32), 11))
    return version, layer, y.detach(), {"x": x.grad} | parts(layer, lambda weight: weight.grad)


def test_attention_gives_the_golden_output(golden):
    version, layer, y, _ = golden
    assert (y.sum().item(), y.norm().item()) == pytest.approx(GOLDEN[version]["y"], rel=0, abs=1e-10)
    assert y.flatten()[:4].tolist() == pytest.approx(FIRST[version], rel=0, abs=1e-10)
    if version == 1:
        assert layer.lambda_().item() == pytest.approx(0.4676493662125452, abs=1e-14)


def test_attention_gives_the_golden_gradients(golden):
    version, _, _, gradients = golden
    for name, expected in GOLDEN[version].items():
        if name != "y":
            found = gradients[name].sum().item(), gradients[name].norm().item()
            assert found == pytest.approx(expected, rel=0, abs=1e-10), name


# -- what the maths promises -------------------------------------------------------------------------------------------
def heads(seed: int = 0, time: int = 7, heads: int = 4, kv_heads: int = 2, width: int = 6) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, time, 2 * heads, width), (2, time, 2 * kv_heads, width), (2, time, kv_heads, 2 * width)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


def at(time: int, mask=None):
    return context(torch.arange(time)[None], torch.ones(1, dtype=torch.float64), mask)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def plainly(query, key, value, lambda_):
    """Equation 1, one head at a time."""
    per_group = query.shape[2] // key.shape[2]
    later = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).triu(1)
    outputs = []
    for head in range(query.shape[2] // 2):
        group = head // per_group
        maps = []
        for branch in range(2):
            scores = query[:, :, 2 * head + branch] @ key[:, :, 2 * group + branch].transpose(1, 2)
            maps.append((scores * query.shape[-1] ** -0.5).masked_fill(later, -torch.inf).softmax(-1))
        outputs.append((maps[0] - lambda_ * maps[1]) @ value[:, :, group])
    return torch.stack(outputs, 2)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_path_is_equation_1(kv_heads):
    """Whole sequences, with a mask, and one token on top of keys already there."""
    query, key, value = heads(kv_heads=kv_heads)
    expected = plainly(query, key, value, number(0.7))
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None].expand(2, 1, 7, 7)
    for shared in (at(7), at(7, causal)):
        torch.testing.assert_close(differential(query, key, value, number(0.7), 0, shared), expected)
    last = differential(query[:, -1:], key, value, number(0.7), 0, at(7, causal[:, :, -1:]))
    torch.testing.assert_close(last, expected[:, -1:])


def test_the_fused_head_reads_the_documents_of_a_mask():
    """As a CUDA device does it: where documents begin instead of a mask."""
    query, key, value = heads()
    mask = block_mask(torch.tensor([[1, 1, 1, 2, 2, 3, 0], [1, 2, 2, 2, 2, 0, 0]]))
    starts = first_visible(mask)
    assert starts.tolist() == [[0, 0, 0, 3, 3, 5, 6], [0, 1, 1, 1, 1, 5, 5]]
    norm = torch.linspace(0.5, 2, 12, dtype=torch.float64), 0.3, 1e-5
    expected = head_norm(differential(query, key, value, number(0.7), 0, at(7, mask)), *norm)
    torch.testing.assert_close(kernels.diff_attention(query, key, value, number(0.7), *norm, starts), expected)


@pytest.mark.parametrize("lambda_", [-0.3, 0.0, 0.4, 1.7])
def test_rows_of_the_difference_sum_to_one_minus_lambda(lambda_):
    query, key, value = heads()
    y = differential(query, key, torch.ones_like(value), number(lambda_), 0, at(7))
    torch.testing.assert_close(y, torch.full_like(y, 1 - lambda_))


def test_lambda_0_is_standard_attention():
    query, key, value = heads(kv_heads=4)
    y = differential(query, key, value, number(0.0), 0, at(7))
    first = [x.transpose(1, 2) for x in (query[:, :, 0::2], key[:, :, 0::2], value)]
    torch.testing.assert_close(y, F.scaled_dot_product_attention(*first, is_causal=True).transpose(1, 2))


def test_equal_maps_leave_one_minus_lambda_of_attention():
    query, key, value = heads()
    query, key = (x[:, :, 0::2].repeat_interleave(2, 2) for x in (query, key))
    alone = differential(query, key, value, number(0.0), 0, at(7))
    torch.testing.assert_close(differential(query, key, value, number(1.4), 0, at(7)), -0.4 * alone)


def outputs(net: DiffTransformerForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Of the first layer's attention."""
    seen = []
    hook = net.layers[0].attention.register_forward_hook(lambda _, __, y: seen.append(y))
    net.hidden(ids, positions(ids))
    hook.remove()
    return seen[0]


@torch.no_grad()
def test_v1_does_not_notice_the_scale_of_values_and_v2_follows_it():
    for version, factor in ((1, 1.0), (2, 40.0)):
        net = model(version, rms_norm_eps=1e-12).double()
        before = outputs(net, tokens())
        parts(net.layers[0].attention, lambda weight: weight.data)["v"].mul_(40.0)
        torch.testing.assert_close(outputs(net, tokens()), factor * before)


@torch.no_grad()
def test_v2_with_a_closed_gate_is_attention_with_the_first_of_each_two_queries():
    net = model(2).double()
    attention = net.layers[0].attention
    gateless = torch.full((2, 7, 6), -1e9, dtype=torch.float64)
    attention.gate.register_forward_hook(lambda *_: gateless)
    attention.gate.weight.zero_()
    ids = tokens(2, 7)
    changed = outputs(net, ids)
    rows = parts(attention, lambda weight: weight.data)["q"].unflatten(0, (6, 2, 8))
    rows[:, 1] = 17.0
    torch.testing.assert_close(outputs(net, ids), changed)


def test_lambda_starts_by_depth_from_0():
    first = [layer.attention.lambda_.first for layer in model(1, num_hidden_layers=8).layers]
    assert first[:4] == pytest.approx([0.2, 0.3555, 0.4707, 0.5561], abs=1e-4)
    assert first[7] == pytest.approx(0.7265, abs=1e-4)


def test_v1_has_as_many_parameters_as_the_transformer_it_is_matched_to():
    from nlrl.backbones import TransformerConfig, TransformerForCausalLM

    sizes = dict(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=128, num_hidden_layers=2)
    plain = TransformerForCausalLM(TransformerConfig(num_attention_heads=6, **sizes))
    ours = DiffTransformerForCausalLM(DiffTransformerConfig(num_attention_heads=3, **sizes))
    extra = 2 * (4 * 8 + 2 * 8)  # four lambda vectors and the norm of heads, a layer
    assert ours.num_parameters() == plain.num_parameters() + extra
    assert ours.new_state(1, 16).nbytes == plain.new_state(1, 16).nbytes
    second = DiffTransformerForCausalLM(DiffTransformerConfig(version=2, num_attention_heads=6, **sizes))
    assert second.num_parameters() == plain.num_parameters() + 2 * (48 * 48 + 48 * 6)
    assert second.new_state(1, 16).nbytes == plain.new_state(1, 16).nbytes


def test_lambda_and_the_difference_are_float32_in_bfloat16():
    net = model(1).bfloat16()
    assert net.layers[1].attention.lambda_().dtype == torch.float32
    query, key, value = (x.bfloat16() for x in heads())
    assert differential(query, key, value, torch.tensor(0.3), 0, at(7)).dtype == torch.float32


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_bfloat16_stays_near_float32(version):
    net, ids = model(version, initializer_range=0.2), tokens()
    exact = net(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        autocast = net(ids).logits
    for rounded in (autocast, net.bfloat16()(ids).logits):
        assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("version", [1, 2])
def test_compiles_as_one_graph(version):
    net, ids = model(version), tokens()
    state = net.new_state(2, 9)
    compiled = torch.compile(net.hidden, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, positions(ids)), net.hidden(ids, positions(ids)))
        step = compiled(ids[:, :1], positions(ids)[:, :1], state=state)
        torch.testing.assert_close(step, net.hidden(ids[:, :1], positions(ids)[:, :1]))


# -- Hugging Face DiffLlama --------------------------------------------------------------------------------------------
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def diff_llama(**changes) -> DiffLlamaForCausalLM:
    sizes = dict(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=12,
        num_key_value_heads=4, initializer_range=0.2, lambda_std_dev=0.4, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = DiffLlamaForCausalLM(DiffLlamaConfig(**(sizes | changes))).eval()
    for name, weight in theirs.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    return theirs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 12},
        {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": True},
        {"rope_parameters": LLAMA3},
    ],
    ids=["grouped", "multi-head", "one group, tied", "llama3-rope"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_diff_llama_logits_are_equal(tmp_path, changes, dtype):
    """In float64 as exactly as theirs is: rotary tables, lambda and norms are float32 there."""
    theirs, ids = diff_llama(**changes), tokens(2, 40)
    theirs.save_pretrained(tmp_path)
    ours = from_hf_diff_llama(tmp_path, dtype)
    expected = theirs.to(dtype)(ids).logits
    torch.testing.assert_close(ours.logits(ours.hidden(ids, positions(ids))), expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.5


def test_generate_equals_diff_llama_token_for_token_with_left_padding(tmp_path):
    theirs = diff_llama()
    theirs.save_pretrained(tmp_path)
    ours, ids, real = from_hf_diff_llama(tmp_path), tokens(3, 12), torch.ones(3, 12, dtype=torch.long)
    real[1, :5], real[2, :11] = 0, 0
    drawn = [
        net.generate(ids, attention_mask=real, max_new_tokens=20, do_sample=False, pad_token_id=0)
        for net in (theirs, ours)
    ]
    assert torch.equal(*drawn)


def test_load_recognises_diff_llama(tmp_path):
    from tokenizers import Tokenizer, models

    theirs, ids = diff_llama(), tokens()
    theirs.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    ours, _ = nlrl.backbones.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=2e-5)


def test_a_folder_with_wrong_tensors_is_refused_with_all_their_names(tmp_path):
    from safetensors.torch import load_file, save_file

    diff_llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.lambda_q2"]
    tensors["model.layers.0.self_attn.stray"] = torch.zeros(2)
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 5)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(NLRLError) as refused:
        from_hf_diff_llama(tmp_path)
    for said in ("model.norm.weight", "layers.1.self_attn.lambda_q2", "stray", "up_proj.weight (3, 5) for (80, 48)"):
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("attention_bias", True, "without biases"),
        ("hidden_act", "gelu", "hidden_act"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, "yarn"),
        ("num_key_value_heads", 3, "must be even"),
        ("model_type", "llama", "not 'diffllama'"),
    ],
)
def test_models_with_parts_that_ours_lacks_are_refused(tmp_path, field, value, named):
    import json

    fields = diff_llama().config.to_dict() | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(NLRLError, match=named):
        from_hf_diff_llama(tmp_path)


# -- configurations ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": 3}, "must be 1 or 2"),
        ({"num_key_value_heads": 4}, "multiple of num_key_value_heads"),
        ({"head_dim": 7}, "must be even"),
        ({"hidden_size": 50}, "must be a multiple of 12"),
        ({"version": 2, "hidden_size": 50}, "must be a multiple of 6"),
    ],
)
def test_impossible_shapes_are_refused(changes, named):
    with pytest.raises(Exception, match=named):
        DiffTransformerConfig(**({"num_attention_heads": 6, "hidden_size": 48} | changes))
