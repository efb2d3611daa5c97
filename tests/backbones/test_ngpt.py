"""nGPT: the published numbers of its block in float64, and the properties its normalisations promise."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import nlrl.backbones
from nlrl.backbones import NGPTConfig, NGPTForCausalLM, attach_renormalisation, from_nvidia
from nlrl.backbones.attention import context
from nlrl.backbones.ngpt.network import Layer, official_rotary
from nlrl.backbones.ngpt.optimizer import NormalisedAdam
from nlrl.backbones.packing import TokenExample
from nlrl.backbones.rotary import angles, frequencies, rotary
from nlrl.backbones.training import Trainer
from nlrl.errors import NLRLError

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


# -- the authors' checkpoints ------------------------------------------------------------------------------------------
NVIDIA = dict(n_layer=2, n_head=3, n_embd=24, vocab_size=VOCABULARY, block_size=64, bias=False, use_nGPT=1)


def nvidia_tensors(base_scale: float = 24**-0.5) -> dict[str, torch.Tensor]:
    """A state dict in the layout of NVIDIA/ngpt: block matrices in bfloat16 as there, the rest in float64 (there
    float32), so that a difference is a difference of formulas."""
    draw = torch.Generator().manual_seed(5)
    width = NVIDIA["n_embd"]

    def matrix(rows: int, columns: int, axis: int) -> torch.Tensor:
        drawn = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
        return drawn / drawn.norm(dim=axis, keepdim=True)

    def scale(size: int, stored: float = base_scale) -> torch.Tensor:
        return stored * (1 + 0.3 * torch.randn(size, generator=draw, dtype=torch.float64))

    tensors = {"transformer.wte.weight": matrix(VOCABULARY, width, 1), "lm_head.weight": matrix(VOCABULARY, width, 1)}
    tensors["sz"] = scale(VOCABULARY)
    for i in range(NVIDIA["n_layer"]):
        reads = {name: matrix(width, width, 1).bfloat16() for name in ("query", "key", "value")}
        reads |= {"c_fc": matrix(8 * width, width, 1).bfloat16()}
        reads |= {
            "att_c_proj": matrix(width, width, 0).bfloat16(),
            "mlp_c_proj": matrix(width, 4 * width, 0).bfloat16(),
        }
        tensors |= {f"transformer.h.{i}.{name}.weight": tensor for name, tensor in reads.items()}
        scales = {
            "attn_alpha": scale(width),
            "mlp_alpha": scale(width),
            "sqk": scale(width),
            "suv": scale(8 * width, 1),
        }
        tensors |= {f"transformer.h.{i}.{name}": tensor for name, tensor in scales.items()}
    return tensors


def nvidia_file(folder, tensors=None, **arguments):
    content = {
        "model": nvidia_tensors() if tensors is None else tensors,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]},
        "model_args": NVIDIA | {"base_scale": 24**-0.5, "dropout": 0.0} | arguments,
        "iter_num": 3, "best_val_loss": torch.tensor(4.5), "config": {"dataset": "openwebtext"},
    }  # fmt: skip
    torch.save(content, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def nvidia_logits(tensors: dict[str, torch.Tensor], ids: torch.Tensor, base_scale: float) -> torch.Tensor:
    """The authors' model in float64, written from its formulas, rotary embedding as it is there."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    width, heads = NVIDIA["n_embd"], NVIDIA["n_head"]
    channels, time = width // heads, ids.shape[1]
    angle = torch.arange(time).double()[:, None] * 10000.0 ** (-torch.arange(0, channels, 2).double() / channels)
    table = torch.zeros(time, channels, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
    first, second = table[:, : channels // 2], table[:, channels // 2 :]

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    def turned(x):
        y = torch.empty_like(x)
        for j in range(channels // 2):
            y[..., 2 * j] = -x[..., 2 * j + 1] * second[:, j]
            y[..., 2 * j + 1] = x[..., 2 * j] * first[:, j]
        return y

    def split(x):
        return x.view(*x.shape[:2], heads, channels).transpose(1, 2)

    def towards(h, x, alpha):
        share = (alpha * 0.05 / base_scale).abs()
        return unit(unit(h) + share * (unit(x) - unit(h)))

    h = t["transformer.wte.weight"][ids]
    later = torch.ones(time, time, dtype=torch.bool).triu(1)
    for i in range(NVIDIA["n_layer"]):
        layer = {name.removeprefix(f"transformer.h.{i}."): x for name, x in t.items()}
        query, key, value = (split(h @ layer[f"{name}.weight"].T) for name in ("query", "key", "value"))
        sqk = (layer["sqk"] / base_scale).view(heads, 1, channels)
        scores = (sqk * unit(turned(query))) @ (sqk * unit(turned(key))).transpose(-1, -2) * channels**0.5
        y = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
        h = towards(h, y.transpose(1, 2).flatten(2) @ layer["att_c_proj.weight"].T, layer["attn_alpha"])
        u, v = (h @ layer["c_fc.weight"].T * layer["suv"] * width**0.5).chunk(2, -1)
        h = towards(h, (u * v * v.sigmoid()) @ layer["mlp_c_proj.weight"].T, layer["mlp_alpha"])
    return h @ t["lm_head.weight"].T * t["sz"] / base_scale


@pytest.mark.parametrize("base_scale", [24**-0.5, 1024**-0.5])
@torch.no_grad()
def test_a_checkpoint_of_the_authors_gives_their_logits(tmp_path, base_scale):
    tensors, ids = nvidia_tensors(base_scale), tokens(2, 15)
    path = nvidia_file(tmp_path, {f"_orig_mod.{name}": x for name, x in tensors.items()}, base_scale=base_scale)
    expected = nvidia_logits(tensors, ids, base_scale)
    net = from_nvidia(path, torch.float64)
    torch.testing.assert_close(net.logits(net.hidden(ids, positions(ids))), expected, rtol=0, atol=1e-10)
    net = from_nvidia(tmp_path)
    torch.testing.assert_close(net(ids).logits.double(), expected, rtol=0, atol=2e-5)
    turning = from_nvidia(path, torch.float64, rope="rotary")
    assert (turning(ids).logits - expected).abs().max() > 0.05


def test_load_finds_the_authors_checkpoints_beside_a_tokenizer(tmp_path):
    path, ids = nvidia_file(tmp_path), tokens(1, 6)
    with pytest.raises(NLRLError, match="is missing: a model is loaded with the tokenizer"):
        nlrl.backbones.load(tmp_path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    with pytest.raises(NLRLError, match=r"ckpt\.pt is a pickle.*pickles=True"):
        nlrl.backbones.load(tmp_path)
    with torch.no_grad():
        expected = nvidia_logits(nvidia_tensors(), ids, 24**-0.5).float()
        for name in (tmp_path, path):
            net, tokenizer = nlrl.backbones.load(name, pickles=True)
            torch.testing.assert_close(net(ids).logits, expected, rtol=0, atol=2e-5)
            assert len(tokenizer) == VOCABULARY


def test_wrong_tensors_of_a_checkpoint_are_all_named(tmp_path):
    tensors = nvidia_tensors()
    del tensors["sz"], tensors["transformer.h.1.suv"]
    tensors["transformer.h.0.rmsnorm_att.weight"] = torch.ones(24)
    tensors["lm_head.weight"] = torch.ones(VOCABULARY, 25)
    with pytest.raises(NLRLError) as refused:
        from_nvidia(nvidia_file(tmp_path, tensors))
    for said in ("sz, transformer.h.1.suv", "rmsnorm_att", "lm_head.weight (61, 25) for (61, 24)"):
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"use_nGPT": 0}, "baseline GPT"),
        ({"bias": True}, "no biases"),
        ({"n_head": 7}, "multiple of num_attention_heads"),
    ],
)
def test_checkpoints_that_are_no_ngpt_are_refused(tmp_path, arguments, named):
    with pytest.raises(NLRLError, match=named):
        from_nvidia(nvidia_file(tmp_path, **arguments))


class Unsafe:
    def __reduce__(self):
        return print, ("run by a checkpoint",)


def test_torn_and_foreign_files_are_refused_and_no_code_of_theirs_runs(tmp_path, capsys):
    path = nvidia_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NLRLError, match="torn"):
        from_nvidia(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(NLRLError, match="lacks 'model'"):
        from_nvidia(path)
    torch.save({"model": {}, "model_args": NVIDIA, "more": Unsafe()}, path)
    with pytest.raises(NLRLError, match="more than tensors"):
        from_nvidia(path)
    assert "run by a checkpoint" not in capsys.readouterr().out
    path.unlink()
    with pytest.raises(NLRLError, match="missing"):
        from_nvidia(tmp_path)


def test_official_rotary_is_no_rotation():
    x = torch.randn(1, 5, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn = angles(torch.arange(5)[None], frequencies(8, {"rope_theta": 10000.0}, x))
    ratio = official_rotary(x, *turn).norm(dim=-1) / x.norm(dim=-1)
    assert ((ratio - 1).abs() > 0.01).all()
    torch.testing.assert_close(rotary(x, *turn, interleaved=True).norm(dim=-1), x.norm(dim=-1))


# -- training ----------------------------------------------------------------------------------------------------------
def steps(net: NGPTForCausalLM, optimizer, count: int) -> None:
    ids = tokens(3, 12)
    for _ in range(count):
        optimizer.zero_grad()
        net(ids, labels=ids).loss.backward()
        optimizer.step()
        if not getattr(optimizer, "normalises", False):
            net.after_step()


def adams(net: NGPTForCausalLM):
    settings = dict(lr=1e-2, betas=(0.9, 0.95))
    yield torch.optim.AdamW(net.parameters(), weight_decay=0.0, **settings)
    yield NormalisedAdam(net.parameters(), net.unit_axes(), **settings)


def test_normalised_adam_is_adam_and_after_step():
    nets = [model().double().train() for _ in range(2)]
    for net, optimizer in zip(nets, (next(adams(nets[0])), list(adams(nets[1]))[1]), strict=True):
        steps(net, optimizer, 4)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert (nets[0].lm_head.weight - model().double().lm_head.weight).norm() > 0.1


def test_the_state_of_one_adam_goes_on_in_the_other():
    """A run may move between a CPU and a GPU."""
    for order in ((0, 1), (1, 0)):
        straight, moved = (model().double().train() for _ in range(2))
        first, second = (list(adams(moved))[i] for i in order)
        steps(straight, next(adams(straight)), 5)
        steps(moved, first, 2)
        assert first.state_dict()["state"].keys() == dict(enumerate(moved.parameters())).keys()
        second.load_state_dict(first.state_dict())
        steps(moved, second, 3)
        for one, other in zip(straight.parameters(), moved.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_normalised_adam_takes_no_weight_decay():
    net = model()
    with pytest.raises(ValueError, match="no weight decay"):
        NormalisedAdam(net.parameters(), net.unit_axes(), lr=1e-3, weight_decay=0.1)


def test_training_in_bfloat16_keeps_float32_weights_of_unit_length():
    """Late in training steps are smaller than what bfloat16 resolves; only float32 weights keep them."""
    net = model().train()
    trainer = Trainer(net, 1e-5, precision="bf16")
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    kept = []
    net.layers[1].mlp.register_forward_pre_hook(lambda _, arguments: kept.append(arguments[0].detach()))
    trainer.fit([TokenExample((1, 2, 3), (4, 5, 6))] * 4, epochs=3, batch_size=4, seed=0)
    assert all(weight.dtype == torch.float32 for weight in net.parameters())
    for lengths in unit_axes(net):
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=3e-7)
    moved = net.layers[0].attention.qkv.weight - before["layers.0.attention.qkv.weight"]
    assert 0 < moved.abs().max() < 1e-3
    assert torch.equal(moved + before["layers.0.attention.qkv.weight"], net.layers[0].attention.qkv.weight)
    for h in kept:  # hidden states are float32 and unit although matrices are multiplied in bfloat16
        assert h.dtype == torch.float32
        torch.testing.assert_close(h.norm(dim=-1), torch.ones(h.shape[:-1]), rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_the_device_normalises_within_the_step():
    net = model().cuda()
    net.after_step = lambda: pytest.fail("the optimizer has done that")
    trainer = Trainer(net, 3e-3)
    assert isinstance(trainer.optimizer, NormalisedAdam)
    loss = trainer.fit([TokenExample((1, 2, 3), (4, 5, 6))] * 64, epochs=12, batch_size=16, seed=0).loss
    assert loss < 3.0
    for lengths in unit_axes(net):
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope": "yarn"}, "must be one of rotary, official"),
        ({"alpha_init": 0.0}, "above 0"),
        ({"hidden_size": 50}, "multiple of num_attention_heads"),
        ({"num_key_value_heads": 4}, "multiple of num_key_value_heads"),
        ({"head_dim": 7}, "must be even"),
    ],
)
def test_impossible_configurations_are_refused(changes, named):
    with pytest.raises(Exception, match=named):
        model(**changes)
