"""Mamba-2 and Bi-Mamba: golden numbers of a mixer in float64, binary matrices, bits, `generate`, foreign layouts."""

import json
import math
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedTokenizerFast,
)

import nlrl.backbones
from nlrl.backbones import BiMambaConfig, BiMambaForCausalLM, StateCache, save_packed, to_hf_mamba2
from nlrl.backbones.bimamba.fbi_linear import FBILinear, PackedFBILinear
from nlrl.backbones.bimamba.network import Context, Mixer
from nlrl.backbones.bimamba.packed import pack, unpack
from nlrl.backbones.engine import Engine
from nlrl.backbones.language_model import Request, Sampling
from nlrl.errors import NLRLError
from nlrl.kernels.bit_linear.reference import pack_signs, unpack_signs

VOCABULARY = 32
SIZES = dict(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, head_dim=8, state_size=6, chunk_size=4)


def model(**changes) -> BiMambaForCausalLM:
    torch.manual_seed(0)
    made = BiMambaForCausalLM(BiMambaConfig(**(SIZES | changes))).eval()
    with torch.no_grad():  # so that nothing hides behind an initial one
        for name, weight in made.named_parameters():
            if weight.dim() == 1 and "alpha" not in name:
                weight.add_(0.1 * torch.randn_like(weight))
    return made


def tokens(batch: int = 2, time: int = 11) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(of, ids: torch.Tensor | None = None) -> torch.Tensor:
    return of(tokens() if ids is None else ids).logits


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="w1", eos_token="w2", pad_token="w0")


# A mixer of width 16 with state_size 8 and head_dim 8, from the oracle that `golden` describes: name: (sum, norm).
GOLDEN_Y = (-17.761257414053, 17.042269656278)
GOLDEN_Y_FIRST = (0.654643483924, 2.187292682459, 0.197091552159, 0.897235671782)
GOLDEN_GRADIENTS = {
    "u": (-10.437358081068, 23.648261751478),
    "cw": (-5.928817337444, 21.367246843531),
    "cb": (-17.845675206638, 28.127605550661),
    "dt_bias": (0.000444366805, 0.158402317544),
    "A_log": (0.023797824703, 0.028067399938),
    "D": (0.479863254543, 2.072691203877),
    "nw": (5.631294051646, 10.993807885963),
    "in.w": (-10.849756895927, 16.880015702217),
    "in.beta": (-10.258659962912, 37.992275142052),
    "in.alpha": (-10.890474489802, 100.216212072315),
    "out.w": (0.209965228537, 15.403955068053),
    "out.beta": (5.901781446157, 12.833962302487),
    "out.alpha": (26.196831221120, 61.824484057170),
}


def fill(shape: tuple[int, ...], k: int) -> torch.Tensor:
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(k + 0.7 * n + (0.003 * n * n) % 6.28318).view(shape)


def parts(mixer: Mixer) -> dict[str, torch.nn.Parameter]:
    """The mixer's tensors under the oracle's names, in its order."""
    linears = {"in": mixer.in_proj, "out": mixer.out_proj}
    own = {"cw": mixer.conv_weight, "cb": mixer.conv_bias, "dt_bias": mixer.dt_bias, "A_log": mixer.A_log,
           "D": mixer.D, "nw": mixer.norm.weight}  # fmt: skip
    for name, linear in linears.items():
        own |= {f"{name}.w": linear.weight, f"{name}.beta": linear.beta, f"{name}.alpha": linear.alpha}
    return own


RULES = {
    "cw": lambda v: 0.4 * v, "cb": lambda v: 0.4 * v, "dt_bias": lambda v: v - 3, "A_log": lambda v: (2 + v).log(),
    "D": lambda v: 1 + 0.2 * v, "nw": lambda v: 1 + 0.2 * v, "w": lambda v: 0.3 * v, "beta": lambda v: 0.02 * v,
    "alpha": lambda v: 0.2 + 0.1 * v,
}  # fmt: skip


@pytest.fixture(params=[3, 10])
def golden(request):
    """The mixer filled as the golden numbers were: entry n of tensor k is sin(k + 0.7 n + 0.003 n^2 mod 2 pi), the
    tensors numbered in the order of `parts`, each passed through its rule; chunks of 3 tokens or all 10."""
    config = BiMambaConfig(hidden_size=16, num_hidden_layers=1, state_size=8, head_dim=8, chunk_size=request.param)
    mixer = Mixer(config, 0).double()
    with torch.no_grad():
        for k, (name, weight) in enumerate(parts(mixer).items(), start=1):
            weight.copy_(RULES[name.split(".")[-1]](fill(tuple(weight.shape), k)))
    u = fill((1, 10, 16), 9).requires_grad_()
    y = mixer(u, Context(torch.arange(10)[None], None))
    y.backward(fill((1, 10, 16), 11))
    return y.detach(), {"u": u.grad} | {name: weight.grad for name, weight in parts(mixer).items()}


def test_mixer_gives_the_golden_output_and_gradients(golden):
    y, gradients = golden
    assert (y.sum().item(), y.norm().item()) == pytest.approx(GOLDEN_Y, abs=1e-10)
    assert y.flatten()[:4].tolist() == pytest.approx(GOLDEN_Y_FIRST, abs=1e-10)
    for name, expected in GOLDEN_GRADIENTS.items():
        found = (gradients[name].sum().item(), gradients[name].norm().item())
        assert found == pytest.approx(expected, abs=1e-10), name


def linear(inputs: int = 13, outputs: int = 9) -> FBILinear:
    torch.manual_seed(0)
    made = FBILinear(inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_()
    return made


def test_a_binary_matrix_is_its_dense_form_with_the_published_gradients():
    binary = linear()
    x, dy = torch.randn(4, 5, 13, dtype=torch.float64, requires_grad=True), torch.randn(4, 5, 9, dtype=torch.float64)
    y = binary(x)
    torch.testing.assert_close(y, x @ binary.dense().T)
    y.backward(dy)
    W, alpha, beta, flat = binary.weight, binary.alpha, binary.beta, x.detach().flatten(0, 1)
    u, c = dy.flatten(0, 1) @ W.sign(), dy.flatten(0, 1).sum(-1, keepdim=True)
    torch.testing.assert_close(x.grad.flatten(0, 1), alpha * u + beta * c)
    torch.testing.assert_close(alpha.grad, (flat * u).sum(0))
    torch.testing.assert_close(beta.grad, (flat * c).sum(0))
    torch.testing.assert_close(W.grad, dy.flatten(0, 1).T @ (alpha * flat))


def test_the_gradient_passes_large_weights_too():
    binary = linear()
    with torch.no_grad():
        binary.weight.mul_(100)
    binary(torch.ones(1, 13, dtype=torch.float64)).sum().backward()
    assert (binary.weight.grad != 0).all()


@torch.no_grad()
def test_scales_begin_as_mean_and_mean_distance_of_a_column():
    binary = linear()
    binary.fit_scales()
    torch.testing.assert_close(binary.beta, binary.weight.mean(0))
    torch.testing.assert_close(binary.alpha, (binary.weight - binary.weight.mean(0)).abs().mean(0))


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_whole_numbers_stay_exact_and_zero_stays_zero(packed):
    binary = linear(70, 33)
    binary.alpha.fill_(1)
    binary.beta.zero_()
    x = torch.randint(-50, 50, (6, 70)).float()
    net = packed_linear(binary).float() if packed else binary.float()
    expected = x.long() @ torch.where(binary.weight >= 0, 1, -1).T
    assert torch.equal(net(x), expected.float())
    assert torch.equal(net(0 * x), torch.zeros(6, 33))


def packed_linear(binary: FBILinear) -> PackedFBILinear:
    made = PackedFBILinear(*reversed(binary.weight.shape), dtype=torch.float64)
    made.bits.copy_(pack_signs(binary.weight))
    made.alpha.data.copy_(binary.alpha)
    made.beta.data.copy_(binary.beta)
    return made


@torch.no_grad()
def test_outputs_follow_a_permutation_of_the_rows():
    binary, order, x = linear(), torch.randperm(9), torch.randn(3, 13, dtype=torch.float64)
    before = binary(x)
    binary.weight.copy_(binary.weight[order])
    torch.testing.assert_close(binary(x), before[:, order])


@pytest.mark.parametrize("inputs", [1, 7, 8, 9, 64, 100])
@torch.no_grad()
def test_packing_is_exact_both_ways(inputs):
    weight = torch.randn(11, inputs)
    bits = pack_signs(weight)
    assert bits.dtype == torch.uint8
    assert bits.shape == (11, math.ceil(inputs / 8))
    signs = unpack_signs(bits, inputs, torch.float32)
    assert torch.equal(signs, weight.sign())
    assert torch.equal(pack_signs(signs), bits)


@torch.no_grad()
def test_zeros_and_what_rounds_to_zero_keep_one_sign_everywhere():
    binary = linear(8, 1)
    binary.weight.copy_(torch.tensor([[0.0, -0.0, 1e-9, -1e-9, 1.0, -1.0, 1e-30, -1e-30]]))
    signs = torch.tensor([[1.0, -1, 1, -1, 1, -1, 1, -1]], dtype=torch.float64)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(unpack_signs(pack_signs(binary.weight.to(dtype)), 8, torch.float64), signs)
    torch.testing.assert_close(binary.dense(), binary.alpha * signs + binary.beta)


@pytest.mark.parametrize("block", [1, 26, 1 << 18])
@torch.no_grad()
def test_a_packed_matrix_is_the_same_function_in_any_blocks(block, monkeypatch):
    monkeypatch.setattr(import_module("nlrl.kernels.bit_linear.eager"), "BLOCK_WEIGHTS", block)
    binary, x = linear(), torch.randn(2, 5, 13, dtype=torch.float64)
    torch.testing.assert_close(packed_linear(binary)(x), binary(x), rtol=1e-13, atol=1e-13)


@torch.no_grad()
def test_a_packed_model_holds_one_bit_a_weight_and_unpacks_to_the_same_signs():
    latent = model()
    bits = pack(latent)
    assert torch.equal(logits(bits), logits(latent))
    for name, module in latent.named_modules():
        if isinstance(module, FBILinear):
            held = bits.get_submodule(name)
            assert held.bits.nbytes == module.weight.shape[0] * math.ceil(module.weight.shape[1] / 8)
            assert "weight" not in dict(held.named_parameters())
    again = unpack(bits)
    assert torch.equal(logits(again), logits(latent))
    assert all(torch.equal(a.bits, b.bits) for a, b in zip(matrices(pack(again)), matrices(bits), strict=True))
    assert not torch.equal(logits(bits), logits(model(num_hidden_layers=3)))


def matrices(of: BiMambaForCausalLM) -> list[PackedFBILinear]:
    return [module for module in of.modules() if isinstance(module, PackedFBILinear)]


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(NLRLError, match="can be packed"):
        pack(model(binary=False))
    with pytest.raises(NLRLError, match="can be packed"):
        pack(pack(model()))
    with pytest.raises(NLRLError, match="can be unpacked"):
        unpack(model())


@pytest.mark.parametrize("door", ["load", "auto class"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_packed_folder_has_a_bit_a_weight_and_loads_with_equal_logits(tmp_path, door, dtype):
    latent = model()
    size = save_packed(latent, tokenizer(), tmp_path / "m", torch.float32)
    stored = load_file(tmp_path / "m/model.safetensors")
    bits = [tensor for name, tensor in stored.items() if name.endswith(".bits")]
    assert {tensor.dtype for tensor in bits} == {torch.uint8}
    assert size.binary_weights == sum(w.numel() for n, w in latent.named_parameters() if n.endswith("proj.weight"))
    assert size.binary_bytes == sum(tensor.nbytes for tensor in bits) == size.binary_weights / 8
    assert size.file_bytes == (tmp_path / "m/model.safetensors").stat().st_size
    assert size.zeros == 0
    if door == "load":
        loaded, _ = nlrl.backbones.load(tmp_path / "m", dtype=dtype)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=dtype)
    assert {part.bits.dtype for part in matrices(loaded)} == {torch.uint8}
    torch.testing.assert_close(logits(loaded), logits(latent.to(dtype)), rtol=0, atol=0)
    assert loaded.generate(tokens(1, 4), max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 7)


def test_half_precision_and_int8_leave_the_bits_alone(tmp_path):
    latent = model()
    for dtype in (torch.float16, torch.int8):
        save_packed(latent, tokenizer(), tmp_path / "m", dtype)
        loaded = nlrl.backbones.load(tmp_path / "m")[0]
        for ours, theirs in zip(matrices(pack(latent)), matrices(loaded), strict=True):
            assert torch.equal(ours.bits, theirs.bits)
        assert (logits(loaded) - logits(latent)).norm() < 2e-2 * logits(latent).norm()


def test_saved_zeros_are_reported(tmp_path):
    latent = model()
    with torch.no_grad():
        latent.layers[0].mixer.in_proj.weight[0, :3] = 0
    assert save_packed(latent, tokenizer(), tmp_path / "m").zeros == 3


@pytest.mark.parametrize("binary", [True, False])
def test_a_step_of_training_changes_every_weight(binary):
    net = model(binary=binary).train()
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert all(not torch.equal(weight, before[name]) for name, weight in net.named_parameters())
    assert binary == any("alpha" in name for name in before)


def test_initial_values_are_the_published_ones():
    net = BiMambaForCausalLM(BiMambaConfig(**(SIZES | {"hidden_size": 64, "num_hidden_layers": 4, "binary": False})))
    for layer in net.layers:
        mixer = layer.mixer
        dt = torch.nn.functional.softplus(mixer.dt_bias)
        for value, lowest, highest in ((dt, 1e-3, 0.1), (mixer.A_log.exp(), 1, 16)):
            assert value.min() > 0.999 * lowest
            assert value.max() < 1.001 * highest
        assert torch.equal(mixer.D, torch.ones(16))
        for weight, bound in (
            (mixer.in_proj.weight, 64**-0.5), (mixer.out_proj.weight, 128**-0.5 / 2),
            (mixer.conv_weight, 0.5), (mixer.conv_bias, 0.5),
        ):  # fmt: skip
            assert 0.9 * bound < weight.abs().max() <= bound


@torch.no_grad()
def test_a_bfloat16_model_keeps_its_residual_stream_and_states_in_float32():
    net = model(binary=False)
    exact, seen = logits(net), []
    net.bfloat16().layers[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].dtype))
    assert (logits(net).float() - exact).norm() < 0.05 * exact.norm()
    assert seen == [torch.float32]
    state = net.new_state(1, 5)
    assert (state.windows.dtype, state.states.dtype) == (torch.bfloat16, torch.float32)


@torch.no_grad()
def test_a_state_is_no_longer_for_a_longer_text():
    net = model()
    c = net.config
    assert net.new_state(1, 10).nbytes == net.new_state(1, 100_000).nbytes
    assert net.new_state(3, 10).nbytes == 3 * 4 * 2 * (3 * c.conv_size + c.inner_size * c.state_size)


@torch.no_grad()
def test_a_cached_step_compiles_and_writes_the_state():
    net, now = model(), torch.full((3, 1), 4)
    torch._dynamo.reset()
    compiled = torch.compile(net.hidden, backend="aot_eager", fullgraph=True)
    states = [net.new_state(3, 8) for _ in range(2)]
    found, expected = (f(tokens(3, 1), now, state=s) for f, s in zip((compiled, net.hidden), states, strict=True))
    torch.testing.assert_close(found, expected)
    for name in ("windows", "states"):
        torch.testing.assert_close(getattr(states[0], name), getattr(states[1], name))
        assert getattr(states[0], name).any()


def test_training_compiles_without_a_break():
    net, at = model(), torch.arange(11).expand(2, 11)
    torch._dynamo.reset()
    compiled = torch.compile(lambda ids: net.logits(net.hidden(ids, at)), backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (compiled, lambda ids: net.logits(net.hidden(ids, at))):
        net.zero_grad()
        function(tokens()).square().mean().backward()
        gradients.append([weight.grad for weight in net.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 7}, "multiple of head_dim"),
        ({"n_groups": 4}, "multiple of n_groups"),
        ({"norm_groups": 5}, "multiple of norm_groups"),
        ({"state_size": 0}, "state_size .0. must be at least 1"),
        ({"packed": True, "binary": False}, "packed must be false"),
    ],
)
def test_configs_that_cannot_work_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        BiMambaConfig(**(SIZES | changes))


# generate, with a StateCache


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 5}, {"num_beams": 3}])
def test_generate_with_a_state_equals_generate_without(options, monkeypatch):
    monkeypatch.setattr("nlrl.backbones.state_cache.SHORTEST", 4)  # so that the state has to grow
    net, ids, real = model().double(), tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    real[1, :3] = 0
    found = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        common = {"attention_mask": real, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": 5}
        found.append(net.generate(ids, use_cache=use_cache, **common, **options))
    assert torch.equal(*found)


@pytest.mark.parametrize("bits", [False, True])
def test_our_sampler_writes_what_generate_writes(bits):
    net = pack(model().double()) if bits else model().double()
    sampler = Engine(net, tokenizer())
    prompts = [tuple(tokens(1, time)[0].tolist()) for time in (9, 2, 5)]
    requests = [Request(tokens=prompt, sampling=Sampling(temperature=0.0, max_tokens=7)) for prompt in prompts]
    for prompt, completion in zip(prompts, sampler.generate(requests), strict=True):
        ids = torch.tensor([prompt])
        whole = net.generate(ids, max_new_tokens=7, do_sample=False, pad_token_id=0, eos_token_id=2)
        assert completion.tokens == tuple(whole[0, len(prompt) :].tolist())
    scores = sampler.score(prompts, [(3, 4)] * 3)
    for prompt, (_, second) in zip(prompts, scores, strict=True):
        expected = logits(net, torch.tensor([[*prompt, 3]]))[0, -1].log_softmax(-1)[4]
        assert second == pytest.approx(expected.item(), abs=1e-5)


@torch.no_grad()
def test_a_conversation_goes_on_with_the_cache_it_returned():
    net, ids = model().double(), tokens(1, 9)
    cache = StateCache(net.new_state)
    first = net(ids[:, :5], past_key_values=cache, use_cache=True)
    assert first.past_key_values is cache
    rest = net(ids[:, 5:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(rest.logits, net(ids).logits[:, 5:])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    began = net.generate(ids, **options)
    went_on = net.generate(began.sequences, past_key_values=began.past_key_values, **options).sequences
    assert torch.equal(went_on, net.generate(ids, **(options | {"max_new_tokens": 8})).sequences)


def test_prefill_in_chunks_changes_nothing():
    net, ids = model().double(), tokens(1, 9)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(net.generate(ids, prefill_chunk_size=4, **options), net.generate(ids, **options))


def test_what_a_recurrence_cannot_do_is_refused():
    net, ids = model(), tokens(1, 5)
    with pytest.raises(ValueError, match="assisted"):
        net.generate(ids, assistant_model=model(), max_new_tokens=3, do_sample=False, pad_token_id=0)
    with pytest.raises(ValueError, match="attention only"):
        net.generate(ids, cache_implementation="static", max_new_tokens=3, pad_token_id=0)
    cache = StateCache(net.new_state)
    cache.room_for(2, 3)
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(1)
    with pytest.raises(ValueError, match="holds 2 rows, but the call brings 1"):
        net(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="not in a DynamicCache"):
        net(ids, past_key_values=DynamicCache(), use_cache=True)


def test_gradients_flow_in_evaluation_mode():
    net = model().eval()
    net(tokens(), labels=tokens()).loss.backward()
    assert all(weight.grad is not None for weight in net.parameters())


# layouts of others


def hf_mamba2(**changes) -> Mamba2ForCausalLM:
    torch.manual_seed(0)
    shared = SIZES | {"num_heads": 6, "n_groups": 1, "tie_word_embeddings": True, "chunk_size": 4} | changes
    theirs = Mamba2ForCausalLM(Mamba2Config(**shared)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return theirs


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_groups": 3}, {"tie_word_embeddings": False}, {"use_conv_bias": False}, {"expand": 1, "num_heads": 3}],
)
def test_hugging_face_mamba2_folders_load_with_equal_logits(tmp_path, changes):
    theirs = hf_mamba2(**changes)
    theirs.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    ours, _ = nlrl.backbones.load(tmp_path)
    assert not ours.config.binary
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-5)
    torch.testing.assert_close(logits(ours.double()), logits(theirs).double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("changes", [{}, {"binary": False}, {"n_groups": 2, "tie_word_embeddings": False}])
def test_an_exported_model_has_equal_logits_in_hugging_face(tmp_path, changes, packed):
    ours = model(**changes)
    to_hf_mamba2(pack(ours) if packed and ours.config.binary else ours, tmp_path / "m", tokenizer())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(theirs) is Mamba2ForCausalLM
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=2e-5)
    torch.testing.assert_close(logits(nlrl.backbones.load(tmp_path / "m")[0]), logits(ours), rtol=0, atol=2e-5)


def test_an_export_with_several_norms_is_refused(tmp_path):
    with pytest.raises(NLRLError, match="norm_groups=2"):
        to_hf_mamba2(model(norm_groups=2), tmp_path / "m")


def mamba_ssm_folder(folder, ours: BiMambaForCausalLM, suffix: str, **fields) -> None:
    """A folder as mamba-ssm, and the public Bi-Mamba code, write it."""
    c, tensors = ours.config, {}
    for name, tensor in ours.state_dict().items():
        name = name.replace("embed_tokens", "embedding").replace("conv_", "conv1d.")
        name = "norm_f.weight" if name == "norm.weight" else name
        name = name.replace(".alpha", ".wscale").replace(".beta", ".wbias")
        tensor = tensor[:, None] if name.endswith("conv1d.weight") else tensor
        tensor = tensor[None] if name.endswith((".wscale", ".wbias")) else tensor
        tensors[name if name.startswith("lm_head") else f"backbone.{name}"] = tensor.clone()
    folder.mkdir()
    if suffix == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    ssm = {"layer": "Mamba2", "d_state": c.state_size, "headdim": c.head_dim, "ngroups": c.n_groups}
    config = {"d_model": c.hidden_size, "d_intermediate": 0, "n_layer": c.num_hidden_layers, "vocab_size": 30,
              "ssm_cfg": ssm, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
              "fused_add_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | fields))
    tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("changes", [{}, {"binary": False}, {"n_groups": 3, "norm_groups": 3}])
def test_mamba_ssm_folders_load_with_equal_logits(tmp_path, changes, suffix):
    ours = model(**changes)
    mamba_ssm_folder(tmp_path / "m", ours, suffix)
    if suffix == "bin":
        assert "pytorch_model.bin is a pickle" in refusal(tmp_path / "m", pickles=False)
    loaded, _ = nlrl.backbones.load(tmp_path / "m", pickles=suffix == "bin")
    assert loaded.config.binary == ours.config.binary
    loaded.config.chunk_size = ours.config.chunk_size
    assert torch.equal(logits(loaded), logits(ours))


def refusal(folder, pickles=True) -> str:
    with pytest.raises(NLRLError) as caught:
        nlrl.backbones.load(folder, pickles=pickles)
    return str(caught.value)


def test_every_wrong_tensor_of_a_foreign_folder_is_listed(tmp_path):
    mamba_ssm_folder(tmp_path / "m", model(), "bin")
    path = tmp_path / "m/pytorch_model.bin"
    tensors = torch.load(path)
    for name in ("A_log", "D"):
        tensors.pop(f"backbone.layers.1.mixer.{name}")
    tensors["stray"] = torch.zeros(1)
    tensors["backbone.layers.0.mixer.in_proj.wscale"] = torch.zeros(114, 1)
    torch.save(tensors, path)
    message = refusal(tmp_path / "m")
    assert "lacks backbone.layers.1.mixer.A_log, backbone.layers.1.mixer.D;" in message
    assert "holds unknown stray;" in message
    assert "in another shape backbone.layers.0.mixer.in_proj.wscale (114, 1) for (1, 24)" in message
    path.write_bytes(b"torn")
    assert "torn" in refusal(tmp_path / "m")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_intermediate": 64}, "d_intermediate is 64; only 0"),
        ({"attn_layer_idx": [3]}, "attn_layer_idx is"),
        ({"ssm_cfg": {}}, "layer is 'Mamba1'; only 'Mamba2'"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate is True"),
        ({"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.0, 0.1]}}, "dt_limit"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 7}}, "multiple of head_dim"),
    ],
)
def test_mamba_ssm_models_with_other_parts_are_refused(tmp_path, fields, message):
    mamba_ssm_folder(tmp_path / "m", model(), "bin", **fields)
    assert message in refusal(tmp_path / "m")


def test_hugging_face_models_with_other_parts_are_refused(tmp_path):
    theirs = hf_mamba2(use_bias=True)
    theirs.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert "use_bias must be false" in refusal(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["bimamba", "mamba2", "packed"])
@torch.no_grad()
def test_the_device_computes_what_the_cpu_does_with_and_without_a_state(kind):
    net, ids = model(binary=kind != "mamba2"), tokens(3, 20)
    net = pack(net) if kind == "packed" else net
    at = torch.arange(20).expand(3, 20)
    expected = net.hidden(ids, at)
    net, there, at = net.cuda(), ids.cuda(), at.cuda()
    state = net.new_state(3, 20)
    found = [net.hidden(there[:, :16], at[:, :16], state=state)]
    found += [net.hidden(there[:, i : i + 1], at[:, i : i + 1], state=state) for i in range(16, 20)]
    for hidden in (torch.cat(found, 1), net.hidden(there, at)):
        torch.testing.assert_close(hidden.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_training_steps_are_captured_as_graphs(compile, caplog):
    from nlrl.backbones.bimamba.distillation import distilled_from
    from nlrl.backbones.packing import TokenBatch, TokenExample
    from nlrl.backbones.packing import pack as pack_rows
    from nlrl.backbones.train_step import TrainStep, make_optimizer

    examples = [TokenExample((3, i % 30, 5), (i % 30, 2)) for i in range(40)]
    batch = TokenBatch.of(pack_rows(examples, 64))
    net, teacher = model().cuda().train(), model(binary=False).cuda()
    optimizer = make_optimizer(net, 1e-2, (0.9, 0.98), 0.0, net.device)
    step = TrainStep(net, optimizer, clip=1.0, bf16=True, compile=compile, loss=distilled_from(teacher))
    losses = []
    for _ in range(20):
        step.loss_sum.zero_()
        step([batch.pinned()], masked=True)
        losses.append(float(step.loss_sum))
    assert losses[-1] < losses[0]
    assert "from now on" not in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_tokens_one_by_one_through_the_step_of_a_device_give_the_same_logits(packed, monkeypatch):
    one = pack(model()) if packed else model()
    ids = tokens()
    found = []
    for alone in (False, True):
        monkeypatch.setattr(
            "nlrl.backbones.bimamba.network.steps_alone", lambda x, state, on=alone: on and state is not None
        )
        state, logits = one.new_state(len(ids), ids.shape[1]), []
        for t in range(ids.shape[1]):
            where = torch.tensor([[t], [t if t < 8 else -1]])
            logits.append(one.logits(one.hidden(ids[:, t : t + 1], where, state=state))[:, 0][: 2 if t < 8 else 1])
        found.append(torch.cat(logits))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
