"""nGPT: the published numbers of its block in float64, and the properties its normalisations promise."""

import math

import pytest
import torch

from nlrl.backbones import NGPTConfig, NGPTForCausalLM, attach_renormalisation
from nlrl.backbones.attention import context
from nlrl.backbones.ngpt.modeling import Layer
from nlrl.backbones.rotary import frequencies

VOCABULARY = 61


def model(**changes) -> NGPTForCausalLM:
    sizes = dict(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=3, num_attention_heads=6)
    torch.manual_seed(0)
    return NGPTForCausalLM(NGPTConfig(**(sizes | changes))).eval()


def tokens(batch: int = 2, time: int = 9) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(1))


def positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


# The block of width 16 with 2 heads, from the oracle that `golden` describes: name: (sum, Frobenius norm).
GOLDEN_Y = (-0.387127351066, 2.236067977500)
GOLDEN_Y_FIRST = (0.157186871838, -0.101889069988, -0.30551466988, -0.351090608365)
GOLDEN_GRADIENTS = {
    "h": (0.237523542263, 5.864934109819),
    "p_A": (0.324122751601, 0.341199351329),
    "p_M": (0.722850100630, 0.408783617185),
    "p_qk": (0.393039511413, 0.282250377144),
    "p_uv": (0.038927986729, 0.071506135459),
    "q": (-0.019163655883, 0.071905096488),
    "k": (-0.049858349100, 0.098472883297),
    "v": (0.008201712469, 0.292518737627),
    "o": (-0.084592079723, 0.306902167861),
    "uv": (-0.004203719265, 0.189019252555),
    "down": (-0.194613465964, 0.345115604779),
}
ORDER = ("p_A", "p_M", "p_qk", "p_uv", "q", "k", "v", "o", "uv", "down")


def fill(shape: tuple[int, ...], k: int) -> torch.Tensor:
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(k + 0.7 * n + (0.003 * n * n) % 6.28318).view(shape)


def parts(layer: Layer, of=lambda weight: weight) -> dict[str, torch.Tensor]:
    """The layer's tensors under the oracle's names."""
    query, key, value = of(layer.attention.qkv.weight).chunk(3)
    return {
        "p_A": of(layer.attention_alpha.weight), "p_M": of(layer.mlp_alpha.weight),
        "p_qk": of(layer.attention.qk_scale.weight), "p_uv": of(layer.mlp.up_gate_scale.weight),
        "q": query, "k": key, "v": value, "o": of(layer.attention.output.weight),
        "uv": of(layer.mlp.up_gate.weight), "down": of(layer.mlp.down.weight),
    }  # fmt: skip


@pytest.fixture
def golden():
    """The layer filled as the golden numbers were: entry n of tensor k is sin(k + 0.7 n + 0.003 n^2 mod 2 pi), the
    tensors numbered in `ORDER`; matrices times 0.3 and then normalised, scales their first value times 1 + 0.2 of
    it."""
    config = NGPTConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    layer = NGPTForCausalLM(config).double().layers[0]
    with torch.no_grad():
        for k, name in enumerate(ORDER, start=1):
            weight = parts(layer, lambda weight: weight.data)[name]
            value = fill(tuple(weight.shape), k)
            first = 1.0 if name == "p_uv" else 0.25
            weight.copy_(first * (1 + 0.2 * value) if name.startswith("p_") else 0.3 * value)
    layer.normalise()
    h = fill((1, 5, 16), 9)
    h = (h / h.norm(dim=-1, keepdim=True)).requires_grad_()
    turns = frequencies(config.head_dim, {"rope_theta": config.rope_theta}, h)
    y = layer(h, context(torch.arange(5)[None], turns))
    y.backward(fill((1, 5, 16), 11))
    return y.detach(), {"h": h.grad} | parts(layer, lambda weight: weight.grad)


def test_block_gives_the_golden_output(golden):
    y, _ = golden
    assert (y.sum().item(), y.norm().item()) == pytest.approx(GOLDEN_Y, abs=1e-12)
    assert y.flatten()[:4].tolist() == pytest.approx(GOLDEN_Y_FIRST, abs=1e-12)


@pytest.mark.parametrize("name", GOLDEN_GRADIENTS)
def test_block_gives_the_golden_gradient(golden, name):
    gradient = golden[1][name]
    assert (gradient.sum().item(), gradient.norm().item()) == pytest.approx(GOLDEN_GRADIENTS[name], abs=1e-11)


@torch.no_grad()
def test_hidden_states_are_unit_after_every_half_layer():
    net, ids, seen = model(), tokens(), []
    for layer in net.layers:
        layer.mlp.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        layer.register_forward_hook(lambda _, __, h: seen.append(h))
    net.hidden(ids, positions(ids))
    assert len(seen) == 6
    for h in seen:
        torch.testing.assert_close(h.norm(dim=-1), torch.ones(ids.shape), rtol=0, atol=1e-6)


@torch.no_grad()
def test_output_does_not_depend_on_the_length_of_output_matrices():
    net, ids = model(), tokens()
    before = net(ids).logits
    for layer in net.layers:
        layer.attention.output.weight.mul_(3.7)
        layer.mlp.down.weight.mul_(0.2)
    torch.testing.assert_close(net(ids).logits, before, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_stay_within_their_scales():
    net, ids = model(), tokens()
    net.logit_scale.weight.uniform_(0.1, 2.0)
    logits, bound = net(ids).logits, net.logit_scale()
    assert (logits.abs() <= bound + 1e-6).all()
    net.lm_head.weight[5] = net.hidden(ids, positions(ids))[1, 3]
    assert net(ids).logits[1, 3, 5] == pytest.approx(bound[5].item(), abs=1e-5), "reached where directions agree"


@pytest.mark.parametrize("name", ["layers.0.attention.output.weight", "layers.1.mlp.down.weight"])
def test_gradients_have_no_part_that_would_only_change_a_length(name):
    """Scaling such a matrix as a whole changes nothing, so its gradient is orthogonal to it."""
    net, ids = model().double(), tokens()
    net(ids, labels=ids).loss.backward()
    weight = net.get_parameter(name)
    cosine = (weight * weight.grad).sum() / (weight.norm() * weight.grad.norm())
    assert abs(cosine) < 1e-12


def unit_axes(net: NGPTForCausalLM) -> list[torch.Tensor]:
    """Lengths of all vectors that live in the embedding space."""
    lengths = [net.embed_tokens.weight.norm(dim=1), net.lm_head.weight.norm(dim=1)]
    for layer in net.layers:
        lengths += [layer.attention.qkv.weight.norm(dim=1), layer.mlp.up_gate.weight.norm(dim=1)]
        lengths += [layer.attention.output.weight.norm(dim=0), layer.mlp.down.weight.norm(dim=0)]
    return lengths


def test_weights_are_unit_at_the_start_and_after_every_step():
    net, ids = model().train(), tokens()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)
    hook = attach_renormalisation(optimizer, net)
    before = net.embed_tokens.weight.detach().clone()
    for _ in range(3):
        for lengths in unit_axes(net):
            torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=3e-7)
        net(ids, labels=ids).loss.backward()
        optimizer.step()
    assert not torch.equal(before, net.embed_tokens.weight)
    hook.remove()
    optimizer.step()
    assert any((lengths - 1).abs().max() > 1e-4 for lengths in unit_axes(net))


def test_scales_start_at_their_published_values():
    net = model(alpha_init=0.25)
    layer = net.layers[0]
    for scale, value in (
        (layer.attention_alpha, 0.25), (layer.mlp_alpha, 0.25), (layer.attention.qk_scale, 1.0),
        (layer.mlp.up_gate_scale, 1.0), (net.logit_scale, 1.0),
    ):  # fmt: skip
        torch.testing.assert_close(scale(), torch.full_like(scale.weight, value))
    stored = [layer.attention_alpha, layer.attention.qk_scale, net.logit_scale]
    assert all(scale.weight[0].item() == pytest.approx(48**-0.5) for scale in stored)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@torch.no_grad()
def test_cached_steps_equal_one_pass(kv_heads):
    net, ids = model(num_key_value_heads=kv_heads), tokens(2, 6)
    expected = net.hidden(ids, positions(ids))
    state = net.new_state(2, 8)
    for step in range(6):
        now = torch.full((2, 1), step)
        hidden = net.hidden(ids[:, step : step + 1], now, state=state)
        torch.testing.assert_close(hidden[:, 0], expected[:, step], rtol=0, atol=1e-6)


def test_one_key_head_for_all_equals_six_equal_ones():
    """Grouped heads are the same function as heads that hold copies."""
    grouped, full = model(num_key_value_heads=1), model()
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if name.endswith("qkv.weight"):
            query, key, value = weight.split((48, 8, 8))
            weights[name] = torch.cat((query, key.repeat(6, 1), value.repeat(6, 1)))
    full.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(full(tokens()).logits, grouped(tokens()).logits, rtol=0, atol=1e-6)


def test_generate_with_left_padding_equals_generate_without():
    net, ids = model(), tokens(1, 7)
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), ids), 1)
    real = (torch.arange(11) >= 4).long()[None]
    alone = net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    beside = net.generate(padded, attention_mask=real, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(alone[0], beside[0, 4:])


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointed in (False, True):
        net = model().train()
        if checkpointed:
            net.gradient_checkpointing_enable()
        net(tokens(), labels=tokens()).loss.backward()
        gradients.append([weight.grad for weight in net.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@torch.no_grad()
def test_bfloat16_stays_near_float32():
    net, ids = model(), tokens()
    exact = net(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        autocast = net(ids).logits
    for rounded in (autocast, net.bfloat16()(ids).logits):
        assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


def test_tied_embeddings_are_refused():
    with pytest.raises(Exception, match="tie_word_embeddings must be false"):
        NGPTConfig(tie_word_embeddings=True)


@torch.no_grad()
def test_new_tokens_get_scales_and_unit_rows():
    net, ids = model(), tokens()
    before = net(ids).logits
    net.logit_scale.weight[7] *= 2
    net.resize_token_embeddings(VOCABULARY + 5)
    after = net(ids).logits
    assert after.shape[-1] == VOCABULARY + 5
    torch.testing.assert_close(after[..., 7], 2 * before[..., 7])
    torch.testing.assert_close(net.lm_head.weight.norm(dim=1), torch.ones(VOCABULARY + 5), rtol=0, atol=3e-7)
