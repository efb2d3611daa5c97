"""Int8 storage: half the bytes, nearly the same numbers, and no silence about scales that are missing or torn."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import nlrl.backbones
import nlrl.backbones.loading
from nlrl.backbones import (
    BiMambaConfig,
    BiMambaForCausalLM,
    NGPTConfig,
    NGPTForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from nlrl.backbones.int8 import dequantised, matrix_names, quantised
from nlrl.backbones.tokenizer import load_tokenizer
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.models import open_model
from nlrl.orchestration.trainer import TrainerActor

SIZES = dict(vocab_size=1024, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4)
QKV = "layers.1.attention.qkv.weight"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(nlrl.backbones.loading.BUNDLED / "transformer-base")


def make(kind: str):
    torch.manual_seed(0)
    if kind == "ngpt":
        return NGPTForCausalLM(NGPTConfig(**SIZES)).eval()
    return TransformerForCausalLM(TransformerConfig(**SIZES)).eval()


@pytest.fixture
def saved(tmp_path, tokenizer):
    nlrl.backbones.save(make("transformer"), tokenizer, tmp_path / "m", dtype=torch.int8)
    return tmp_path / "m"


def logits(model) -> torch.Tensor:
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        return model.logits(model.hidden(ids, torch.arange(20).expand(2, 20))).float()


def edit_weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder) -> str:
    with pytest.raises(NLRLError) as caught:
        nlrl.backbones.load(folder)
    return str(caught.value)


# -- the numbers -------------------------------------------------------------------------------------------------------
def test_an_error_is_at_most_half_a_scale_and_the_largest_weight_is_exact(tmp_path):
    matrix = torch.randn(50, 37) * torch.logspace(-6, 3, 50)[:, None]
    stored = quantised({"w": matrix})
    back = dequantised(stored, tmp_path)["w"]
    assert stored["w"].dtype == torch.int8
    assert stored["w"].abs().amax(1).eq(127).all(), "every row uses the whole range"
    assert ((back - matrix).abs() <= stored["w.scale"][:, None] * 0.5001).all()
    torch.testing.assert_close(back.abs().amax(1), matrix.abs().amax(1), rtol=3e-7, atol=0)


def test_zeros_stay_zeros_and_rows_of_nothing_do_not_become_nan(tmp_path):
    matrix = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -2.0], [1e-44, 0.0, -1e-44]])
    back = dequantised(quantised({"w": matrix}), tmp_path)["w"]
    assert torch.equal(back == 0, torch.tensor([[True] * 3, [False, True, False], [True] * 3]))


def test_storing_again_changes_nothing(tmp_path):
    once = quantised({"w": torch.randn(30, 20)})
    again = quantised(dequantised(once, tmp_path))
    assert torch.equal(again["w"], once["w"])
    torch.testing.assert_close(again["w.scale"], once["w.scale"], rtol=3e-7, atol=0)


def test_only_linear_and_embedding_matrices_are_integers():
    others = {"c": nn.Conv1d(2, 2, 3), "n": nn.LayerNorm(3)}
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "e": nn.Embedding(5, 2), **others})
    model.A_log = nn.Parameter(torch.zeros(6, 16))
    assert matrix_names(model) == {"a.weight", "e.weight"}


# -- folders -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["transformer", "ngpt"])
@pytest.mark.parametrize("how", ["load", "Auto classes"])
def test_a_folder_comes_back_as_nearly_the_same_model(tmp_path, tokenizer, kind, how):
    model = make(kind)
    nlrl.backbones.save(model, tokenizer, tmp_path / "m", dtype=torch.int8)
    if how == "load":
        loaded = nlrl.backbones.load(tmp_path / "m")[0]
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    error = (logits(loaded) - logits(model)).norm() / logits(model).norm()
    assert 0 < error < 0.03


def test_auto_classes_and_load_give_the_same_weights(saved):
    ours = nlrl.backbones.load(saved)[0].state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_matrices_take_one_byte_a_weight_and_the_rest_stays_in_half_precision(saved):
    tensors = load_file(saved / "model.safetensors")
    model = make("transformer")
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            assert tensors[name].dtype == (torch.int8 if weight.dim() == 2 else torch.float16)
    numbers = sum(weight.numel() for weight in model.parameters())
    assert (saved / "model.safetensors").stat().st_size < 1.25 * numbers
    assert json.loads((saved / "config.json").read_text())["dtype"] == "float16"


def test_ngpt_vectors_are_unit_again(tmp_path, tokenizer):
    nlrl.backbones.save(make("ngpt"), tokenizer, tmp_path / "m", dtype=torch.int8)
    model = nlrl.backbones.load(tmp_path / "m")[0]
    for vectors in (model.embed_tokens.weight, model.layers[1].attention.output.weight.T):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)), rtol=0, atol=3e-7)


# -- models of bits ----------------------------------------------------------------------------------------------------
@pytest.fixture
def packed(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = BiMambaForCausalLM(BiMambaConfig(vocab_size=1024, hidden_size=64, num_hidden_layers=2)).eval()
    nlrl.backbones.loading.store(model, tokenizer, tmp_path / "bits", "bits")
    return tmp_path / "bits"


@pytest.mark.parametrize("dtype", ["int8", "bits", "float32"])
def test_the_bits_of_a_packed_model_survive_every_conversion(packed, tmp_path, dtype):
    after = nlrl.backbones.convert(packed, tmp_path / "again", dtype)
    ours, theirs = load_file(packed / "model.safetensors"), load_file(after)
    bits = [name for name, tensor in ours.items() if tensor.dtype == torch.uint8]
    assert len(bits) == 4
    assert all(torch.equal(ours[name], theirs[name]) for name in bits)
    error = logits(nlrl.backbones.load(tmp_path / "again")[0]) - logits(nlrl.backbones.load(packed)[0])
    assert error.norm() <= (0.02 if dtype == "int8" else 1e-6) * logits(nlrl.backbones.load(packed)[0]).norm()


def test_a_packed_base_can_be_trained_and_served(packed):
    """Trainer and server open it alike: what one has trained fits into the other."""
    held = nlrl.backbones.load(packed)[0]
    torch.testing.assert_close(logits(nlrl.backbones.load_trainable(packed)[0]), logits(held), rtol=0, atol=1e-4)
    weights = TrainerActor(str(packed), "cpu").weights("actor")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    server = open_model(ModelConfig(name=str(packed), device="cpu", dtype="float32"))
    server.load_weights({name: tensor + 0.01 for name, tensor in weights.items()}, "next")
    assert server.weight_version == "next"


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("read", [refusal, lambda folder: auto_refusal(folder)])
def test_a_missing_scale_is_named(saved, read):
    edit_weights(saved, lambda tensors: tensors.pop(f"{QKV}.scale"))
    assert f"lacks tensor {QKV}.scale: {QKV} is int8" in read(saved)


def auto_refusal(folder) -> str:
    with pytest.raises(NLRLError) as caught:
        AutoModelForCausalLM.from_pretrained(folder)
    return str(caught.value)


def test_a_scale_of_another_length_is_named_with_both_shapes(saved):
    edit_weights(saved, lambda tensors: tensors.update({f"{QKV}.scale": torch.ones(7)}))
    assert f"{QKV}.scale has shape (7,), but {QKV} of shape (144, 48) needs one scale a row, (144,)" in refusal(saved)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.0, -1.0])
def test_a_scale_that_is_no_positive_number_is_named(saved, bad):
    edit_weights(saved, lambda tensors: tensors[f"{QKV}.scale"].__setitem__(3, bad))
    assert f"{QKV}.scale should hold finite positive numbers" in refusal(saved)


def test_a_scale_without_its_integers_is_named(saved):
    edit_weights(saved, lambda tensors: tensors.update({QKV: tensors[QKV].half()}))
    assert f"holds tensor {QKV}.scale" in refusal(saved)


def test_weights_that_are_not_finite_are_refused_and_nothing_is_replaced(saved, tokenizer):
    model = make("transformer")
    model.layers[1].attention.qkv.weight.data[5, 5] = torch.nan
    with pytest.raises(NLRLError, match=rf"tensor {QKV} has values that are not finite"):
        nlrl.backbones.save(model, tokenizer, saved, dtype=torch.int8)
    nlrl.backbones.load(saved)


# -- converting --------------------------------------------------------------------------------------------------------
def test_converting_a_bundled_base_halves_its_bytes(tmp_path):
    before = nlrl.backbones.loading.BUNDLED / "transformer-base" / "model.safetensors"
    after = nlrl.backbones.convert("transformer-base", tmp_path / "m")
    assert after.stat().st_size < 0.52 * before.stat().st_size
    assert nlrl.backbones.convert(tmp_path / "m", tmp_path / "m", "float32").stat().st_size > before.stat().st_size


def test_converting_refuses_unknown_types_and_folders_that_hold_something_else(saved, tmp_path):
    with pytest.raises(NLRLError, match="stored as 'int4'; known are float32, float16, bfloat16, int8, bits"):
        nlrl.backbones.convert(saved, tmp_path / "n", "int4")
    with pytest.raises(NLRLError, match="only a Bi-Mamba model can be stored as bits, not a 'transformer' model"):
        nlrl.backbones.convert(saved, tmp_path / "n", "bits")
    assert not (tmp_path / "n").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(NLRLError, match="photos is there and is no model folder"):
        nlrl.backbones.convert(saved, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").exists()
