"""One door to every checkpoint: what was saved comes back, and what cannot work is refused by name."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import nlrl.backbones
from nlrl.backbones import NGPTConfig, NGPTForCausalLM, TransformerConfig, TransformerForCausalLM, loading, registry
from nlrl.errors import NLRLError

WORDS = ["<bos>", "<eos>", "<pad>", "<answer>", *"abcdefghij"]
SIZES = dict(vocab_size=16, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)


def tokenizer(words=WORDS) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        chat_template="{{ bos_token }}{{ messages[0]['content'] }}<answer>",
    )  # fmt: skip


def make(kind: str = "transformer", **changes):
    torch.manual_seed(0)
    if kind == "ngpt":
        return NGPTForCausalLM(NGPTConfig(**(SIZES | changes))).eval()
    return TransformerForCausalLM(TransformerConfig(**(SIZES | changes))).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[0, 5, 9, 3]])).logits


@pytest.fixture
def saved(tmp_path) -> Path:
    nlrl.backbones.save(make(), tokenizer(), tmp_path / "saved")
    return tmp_path / "saved"


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder) -> str:
    with pytest.raises(NLRLError) as caught:
        nlrl.backbones.load(folder)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "tied"), [("transformer", True), ("transformer", False), ("ngpt", False)])
def test_a_float32_checkpoint_comes_back_bit_for_bit(tmp_path, kind, tied):
    model = make(kind, tie_word_embeddings=tied)
    nlrl.backbones.save(model, tokenizer(), tmp_path / "m", dtype=torch.float32)
    loaded, words = nlrl.backbones.load(tmp_path / "m")
    assert torch.equal(logits(loaded), logits(model))
    assert not loaded.training
    assert all(weight.requires_grad for weight in loaded.parameters())
    assert words.apply_chat_template([{"role": "user", "content": "a b"}], tokenize=False) == "<bos>a b<answer>"


@pytest.mark.parametrize("kind", ["transformer", "ngpt"])
def test_half_precision_on_disk_is_computed_in_the_dtype_asked_for(tmp_path, kind):
    model = make(kind)
    nlrl.backbones.save(model, tokenizer(), tmp_path / "m")
    assert {tensor.dtype for tensor in load_file(tmp_path / "m/model.safetensors").values()} == {torch.float16}
    for dtype in (torch.float32, torch.bfloat16):
        loaded, _ = nlrl.backbones.load(tmp_path / "m", dtype=dtype)
        assert {weight.dtype for weight in loaded.parameters()} == {dtype}
        error = (logits(loaded).float() - logits(model)).norm() / logits(model).norm()
        assert error < (2e-3 if dtype == torch.float32 else 3e-2)


def test_rounded_ngpt_weights_are_unit_again(tmp_path):
    nlrl.backbones.save(make("ngpt"), tokenizer(), tmp_path / "m")
    stored = load_file(tmp_path / "m/model.safetensors")["embed_tokens.weight"].float().norm(dim=1)
    loaded = nlrl.backbones.load(tmp_path / "m")[0].embed_tokens.weight.norm(dim=1)
    assert (stored - 1).abs().max() > 1e-5
    torch.testing.assert_close(loaded, torch.ones_like(loaded), rtol=0, atol=3e-7)


def test_weights_are_as_readable_as_the_config(saved):
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_loading_draws_no_random_numbers(saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    nlrl.backbones.load(saved)
    assert torch.equal(torch.rand(3), expected)


def test_bundled_names_are_folders_with_a_config(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "BUNDLED", tmp_path)
    nlrl.backbones.save(make("ngpt"), tokenizer(), tmp_path / "ngpt-base")
    (tmp_path / "notes").mkdir()
    assert nlrl.backbones.bundled_names() == ["ngpt-base"]
    assert nlrl.backbones.load("ngpt-base")[0].config.model_type == "ngpt"
    assert "ngpt-base" in refusal("transformer-large")


def test_hugging_face_llama_folders_load(tmp_path):
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()
    theirs.save_pretrained(tmp_path)
    assert "tokenizer.json is missing" in refusal(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    torch.testing.assert_close(logits(nlrl.backbones.load(tmp_path)[0]), logits(theirs), rtol=0, atol=1e-5)


def test_unknown_architectures_are_refused(saved):
    edit_config(saved, model_type="gpt2")
    known = ", ".join([*sorted(registry.MODELS), *loading.FOREIGN])
    assert f"model_type is 'gpt2'; known are {known}" in refusal(saved)
    edit_config(saved, model_type=None)
    assert "None" in refusal(saved)


def test_weights_of_another_architecture_are_refused(saved):
    edit_config(saved, model_type="ngpt", tie_word_embeddings=False)
    message = refusal(saved)
    assert "lacks tensor" in message
    assert "'ngpt' model" in message


def test_impossible_configs_are_refused(saved):
    edit_config(saved, num_key_value_heads=3)
    assert "multiple of num_key_value_heads" in refusal(saved)


def test_shape_mismatch_names_the_tensor_and_both_shapes(saved):
    edit_config(saved, intermediate_size=48)
    assert "layers.0.mlp.up_gate.weight has shape (80, 24), but config.json asks for (96, 24)" in refusal(saved)


def test_missing_and_foreign_tensors_are_named(saved):
    edit_weights(saved, lambda tensors: tensors.update(stray=torch.zeros(2)))
    assert "holds tensor stray (1 such" in refusal(saved)
    edit_weights(saved, lambda tensors: (tensors.pop("stray"), tensors.pop("norm.weight")))
    assert "lacks tensor norm.weight (1 such" in refusal(saved)


def test_another_vocabulary_of_the_same_size_is_refused(saved):
    tokenizer([*WORDS[:4], *WORDS[:3:-1]]).save_pretrained(saved)
    assert "another vocabulary" in refusal(saved)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, saved):
    long = tokenizer([*WORDS, *"klmnopq"])
    with pytest.raises(NLRLError, match="21 tokens, but the model knows 16"):
        nlrl.backbones.save(make(), long, tmp_path / "n")
    assert not (tmp_path / "n").exists()
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "llama")
    long.save_pretrained(tmp_path / "llama")
    assert "21 tokens, but the model knows 16" in refusal(tmp_path / "llama")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_and_torn_files_are_named(saved, name):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: len(whole) // 2])
    assert name in refusal(saved) or (name == "tokenizer.json" and "tokenizer of" in refusal(saved))
    (saved / name).unlink()
    assert f"{name} is missing" in refusal(saved)


def test_saving_replaces_a_folder_whole_and_leaves_nothing_beside_it(saved):
    (saved / "stale.txt").touch()
    nlrl.backbones.save(make("ngpt"), tokenizer(), saved)
    assert nlrl.backbones.load(saved)[0].config.model_type == "ngpt"
    assert not (saved / "stale.txt").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


def test_values_that_half_precision_cannot_hold_are_refused_and_nothing_is_replaced(saved):
    model = make()
    model.norm.weight.data[3] = 1e6
    with pytest.raises(NLRLError, match=r"norm\.weight has values"):
        nlrl.backbones.save(model, tokenizer(), saved)
    assert torch.equal(nlrl.backbones.load(saved)[0].norm.weight, torch.ones(24))


def test_a_save_that_is_killed_leaves_the_old_checkpoint(saved):
    before = logits(nlrl.backbones.load(saved)[0])
    script = f"""
import os, signal, nlrl.backbones
from nlrl.backbones import checkpoint
model, tokenizer = nlrl.backbones.load({str(saved)!r})
model.norm.weight.data.mul_(2)
write = checkpoint.write_weights
def write_half(path, *rest):
    write(path, *rest)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write_weights = write_half
nlrl.backbones.save(model, tokenizer, {str(saved)!r})
"""
    assert python(script).returncode == -signal.SIGKILL
    assert torch.equal(logits(nlrl.backbones.load(saved)[0]), before)


def python(script: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


ORDERS = {
    "ours first": "import nlrl.backbones; from transformers import AutoModelForCausalLM, AutoConfig",
    "transformers first": "from transformers import AutoModelForCausalLM, AutoConfig; import nlrl.backbones",
    "half of transformers first": "import transformers.utils, nlrl.backbones; "
    "from transformers import AutoModelForCausalLM, AutoConfig",
    "a configuration first": "import nlrl.backbones.ngpt.configuration; "
    "from transformers import AutoModelForCausalLM, AutoConfig",
    "the base class first": "import nlrl.backbones.backbone; from transformers import AutoModelForCausalLM, AutoConfig",
    "a search first": "import importlib.util, nlrl.backbones; importlib.util.find_spec('transformers'); "
    "from transformers import AutoModelForCausalLM, AutoConfig",
    "the interface only": "import nlrl.backbones.language_model; "
    "from transformers import AutoModelForCausalLM, AutoConfig",
}


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_our_models_in_any_order_of_imports(tmp_path, order):
    for kind in ("ngpt", "transformer"):
        nlrl.backbones.save(make(kind), tokenizer(), tmp_path / kind)
    script = f"""
{ORDERS[order]}
for kind, name in (("ngpt", "NGPTForCausalLM"), ("transformer", "TransformerForCausalLM")):
    model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r} + "/" + kind)
    assert type(model).__name__ == name, type(model)
    assert type(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind))).__name__ == name
    assert model.generation_config.eos_token_id == 1
"""
    result = python(script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["nlrl.backbones", "nlrl.backbones.language_model"])
def test_the_interface_imports_neither_torch_nor_transformers(module):
    result = python(f"import {module}, sys; assert not {{'torch', 'transformers', 'triton'}} & sys.modules.keys()")
    assert result.returncode == 0, result.stderr


def test_equal_weights_are_equal_files(tmp_path):
    """safetensors shuffles metadata: of twenty files at least two would differ."""
    from nlrl.backbones.checkpoint import read_tensors, write_weights

    tensors = {name: torch.arange(6.0).reshape(2, 3) for name in ("b", "a")}
    found = set()
    for i in range(20):
        folder = tmp_path / str(i)
        folder.mkdir()
        write_weights(folder / "model.safetensors", tensors, torch.float32, {"vocabulary": "x", "another": "ü"})
        found.add((folder / "model.safetensors").read_bytes())
    assert len(found) == 1
    again, metadata = read_tensors(folder)
    assert metadata == {"format": "pt", "vocabulary": "x", "another": "ü"}
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
