"""Checkpoints in NVIDIA's layout: names, shapes, refusals, tokenizer and chat format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from nlrl.backbones import HymbaConfig, HymbaForCausalLM, load, save
from nlrl.backbones.hymba import official
from nlrl.errors import NLRLError

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "hymba_tiny"
IDS = torch.arange(20)[None] % 61


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def expected():
    return logits(official.from_official(TINY, torch.float64))


def tokenizer(size: int, **special) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(size - 3))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece("")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **special
    )


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of NVIDIA's layout with a tokenizer."""
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    (tmp_path / "golden.safetensors").unlink()
    tokenizer(61).save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_published_model_has_611_tensors_of_these_shapes():
    config = HymbaConfig.from_dict(json.loads((GOLDEN / "hymba_1.5b_config.json").read_text()))
    golden = json.loads((GOLDEN / "hymba_1.5b_shapes.json").read_text())
    shapes = {name: tuple(shape) for name, shape in golden["outer"].items()}
    for name, kinds in golden["in_layer"].items():
        for shape, layers in kinds:
            for i in range(32) if layers == "all" else layers:
                shapes[f"model.layers.{i}.{name}"] = tuple(shape)
    assert len(shapes) == 611
    assert official.official_shapes(config) == shapes
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_522_797_824


def test_the_published_config_is_read_as_it_is_with_the_cache_on_and_its_own_padding():
    config = HymbaConfig.from_dict(json.loads((GOLDEN / "hymba_1.5b_config.json").read_text()))
    assert (config.use_cache, config.pad_token_id, config.window_semantics) == (True, 32000, "training")
    assert not any(hasattr(config, name) for name in ("num_mamba", "layer_type", "seq_length"))


def test_load_recognises_the_layout(folder, expected):
    model, _ = load(folder, dtype=torch.float64)
    assert type(model) is HymbaForCausalLM
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("options", [{"dtype": torch.float64}, {"dtype": "float64"}, {"torch_dtype": torch.float64}])
def test_auto_classes_read_it_without_remote_code(folder, expected, options):
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    assert torch.equal(logits(model), expected)
    assert not model.training


def test_without_a_type_it_is_computed_in_what_it_is_stored_in(folder):
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    assert HymbaForCausalLM.from_pretrained(folder, device_map="cpu").dtype == torch.bfloat16


def test_a_config_passed_along_counts(folder, expected):
    config = HymbaConfig.from_pretrained(folder)
    config.window_semantics = "hf_decode"
    model = HymbaForCausalLM.from_pretrained(folder, config=config, dtype=torch.float64)
    assert not torch.equal(logits(model), expected)


def test_a_name_on_the_hub_is_fetched_file_by_file(folder, expected, monkeypatch):
    asked = []

    def cached_file(name, file, **options):
        asked.append((name, file, options))
        return str(folder / file)

    monkeypatch.setattr(official, "cached_file", cached_file)
    fields = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(HymbaConfig, "get_config_dict", classmethod(lambda cls, name, **options: (fields, {})))
    model = HymbaForCausalLM.from_pretrained("nvidia/some-hymba", dtype=torch.float64, revision="main")
    assert torch.equal(logits(model), expected)
    assert asked[0] == ("nvidia/some-hymba", "model.safetensors", {"revision": "main"})


def test_an_option_without_meaning_here_is_refused(folder):
    with pytest.raises(NLRLError, match="quantization_config does not work"):
        HymbaForCausalLM.from_pretrained(folder, quantization_config={"load_in_8bit": True})


@pytest.mark.parametrize("saved_by", ["save", "save_pretrained"])
def test_saved_in_our_layout_it_is_the_same_model(folder, expected, tmp_path_factory, saved_by):
    model, words = load(folder, dtype=torch.float64)
    target = tmp_path_factory.mktemp("ours") / "model"
    if saved_by == "save":
        save(model, words, target, torch.float32)
    else:
        model.save_pretrained(target)
        words.save_pretrained(target)
    assert official.is_official(json.loads((target / "config.json").read_text())) is False
    for again in (
        load(target, dtype=torch.float64)[0],
        AutoModelForCausalLM.from_pretrained(target, dtype=torch.float64),
    ):
        torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-12)
        assert again.config.to_dict().get("auto_map") is None


def test_missing_unknown_and_misshapen_tensors_are_listed_together(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mamba.D.0"], tensors["model.memory_tokens"]
    tensors["model.layers.0.moe.router.weight"] = torch.zeros(1, 80)
    tensors["model.layers.1.mamba.in_proj.weight"] = torch.zeros(400, 80)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(NLRLError) as refusal:
        load(folder)
    for part in (
        "2 missing: model.layers.2.mamba.D.0 (160,), model.memory_tokens (6, 80)",
        "1 unknown: model.layers.0.moe.router.weight (1, 80)",
        "1 of another shape: model.layers.1.mamba.in_proj.weight (400, 80), config.json asks for (448, 80)",
    ):
        assert part in str(refusal.value)


def test_a_refusal_names_some_and_counts_the_rest(folder):
    edit(folder, num_hidden_layers=9)
    with pytest.raises(NLRLError, match=r"19 missing: model\.layers\.8\.input_layernorm\.weight"):
        load(folder)
    edit(folder, num_hidden_layers=12)
    with pytest.raises(NLRLError, match="and 56 more"):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_experts": 8}, "num_experts is 8"),
        ({"kq_norm": "rms"}, "kq_norm is 'rms'"),
        ({"layer_type": ["h", "m"]}, "layer_type"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"kv_reuse_group": [[0, 1]]}, "is global"),
        ({"num_key_value_heads": 2}, "multiple of num_key_value_heads"),
    ],
    ids=str,
)
def test_a_config_of_another_kind_is_refused_with_the_reason(folder, fields, reason):
    edit(folder, **fields)
    with pytest.raises(NLRLError, match=reason):
        load(folder)


def test_head_widths_of_their_config_are_followed():
    fields = json.loads((GOLDEN / "hymba_1.5b_config.json").read_text())
    assert HymbaConfig.from_dict(fields | {"kq_head_dim": 32}).head_dim == 32
    assert HymbaConfig.from_dict(fields).head_dim == 64


CHATS = {
    "user alone": (
        [{"role": "user", "content": "Hi"}],
        {},
        "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n",
    ),
    "system and two turns": (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"},
        ],
        {},
        "<extra_id_0>System\nBe brief.\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nBye\n"
        "<extra_id_1>Assistant\n",
    ),
    "a finished chat": (
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        {"add_generation_prompt": False},
        "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nHello\n",
    ),
    "tools, contexts and a tool's result": (
        [
            {"role": "system", "content": "Use them."},
            {"role": "user", "content": "1+1"},
            {"role": "tool", "content": "2"},
        ],
        {"tools": [{"name": "add"}, {"name": "mul"}], "contexts": ["Sums."]},
        '<extra_id_0>System\nUse them.\n<tool> {"name": "add"} </tool>\n<tool> {"name": "mul"} </tool>\n'
        "<context> Sums. </context>\n\n<extra_id_1>User\n1+1\n<extra_id_1>Tool\n2\n<extra_id_1>Assistant\n",
    ),
}


@pytest.mark.parametrize(("messages", "options", "text"), CHATS.values(), ids=CHATS)
def test_chats_are_rendered_in_their_format_without_a_bos(folder, messages, options, text):
    words = load(folder)[1]
    options = {"add_generation_prompt": True} | options
    assert words.apply_chat_template(messages, tokenize=False, **options) == text


def test_an_unknown_role_is_refused(folder):
    with pytest.raises(Exception, match="knows the roles"):
        load(folder)[1].apply_chat_template([{"role": "judge", "content": ""}], tokenize=False)


def test_a_folders_own_chat_format_stays(folder):
    words = tokenizer(61)
    words.chat_template = "mine"
    words.save_pretrained(folder)
    assert load(folder)[1].chat_template == "mine"


def test_the_padding_token_is_the_last_of_32001():
    llama_2 = tokenizer(32001)
    assert official.official_tokenizer(llama_2).pad_token_id == 32000
    own = tokenizer(32001, pad_token="w5")
    assert official.official_tokenizer(own).pad_token == "w5"
    assert official.official_tokenizer(tokenizer(61)).pad_token is None


def test_a_llama_tokenizer_of_such_a_folder_is_read(folder):
    from transformers import LlamaTokenizer

    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6}
    (folder / "tokenizer_config.json").unlink()
    LlamaTokenizer(vocab=pieces, merges=[("▁", "a")], add_bos_token=True).save_pretrained(folder)
    words = load(folder)[1]
    assert words("ab").input_ids == [1, 6, 5]
    assert AutoTokenizer.from_pretrained(folder)("ab").input_ids == [1, 6, 5]
