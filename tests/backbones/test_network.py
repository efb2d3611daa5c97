"""Models and tokenizers as the engine loads them: without `transformers`, and the same in everything that answers."""

from __future__ import annotations

import json
import os
import random
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import nlrl.backbones
from nlrl.backbones import Backbone, load_network, load_trainable
from nlrl.backbones.engine import Engine
from nlrl.backbones.engine.server.vocabulary import Vocabulary
from nlrl.backbones.language_model import Constraint, Message, Request, Sampling
from nlrl.backbones.plain_tokenizer import PlainTokenizer, read_plain_tokenizer
from nlrl.backbones.prompts import PromptEncoder, encode_texts
from nlrl.backbones.registry import BUNDLED, MODELS, NETWORKS, bundled_bases, network_class
from nlrl.backbones.transformer.llama import save_hf_llama
from nlrl.errors import NLRLError

CHATS = [
    (Message("user", "Which move?"),),
    (Message("system", "Say it in one line. <eos>"), Message("user", " 1 | X\n---")),
    (Message("user", "a"), Message("assistant", "best_move: 5"), Message("user", "b\n")),
]
TEXTS = ["", " ", "best_move: 5", "O on 1 7; X on 5 8. +0.42", "naïve 🂡\n\n\t<bos>x<answer>"]

whole = cache(load_trainable)
lean = cache(load_network)


@pytest.fixture(params=sorted(bundled_bases().values()))
def name(request) -> str:
    return request.param


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of the control's folder, to change."""
    return Path(shutil.copytree(BUNDLED / "transformer-base", tmp_path / "model"))


def edit(path: Path, **changes) -> None:
    """Changes fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def logits(model) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 9, 77, 300]])
    with torch.no_grad():
        return model.logits(model.hidden(ids, torch.arange(5)[None]))


# -- models ------------------------------------------------------------------------------------------------------------
def test_every_architecture_has_a_network():
    assert NETWORKS.keys() == MODELS.keys()


def test_a_network_is_the_same_model_without_hugging_face(name):
    network, model = lean(name)[0], whole(name)[0]
    assert isinstance(model, (network_class(model.config.model_type), PreTrainedModel))
    assert not isinstance(network, PreTrainedModel)
    ours, theirs = network.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(logits(network), logits(model))
    assert not network.training
    assert (network.dtype, network.device) == (model.dtype, model.device)
    assert (network.lm_head.weight is network.embed_tokens.weight) == model.config.tie_word_embeddings


def test_head_and_vocabulary_make_its_logits(name):
    network, hidden = lean(name)[0], torch.randn(3, lean(name)[0].config.hidden_size)
    matrix, scale = network.head()
    with torch.no_grad():
        scaled = hidden @ matrix.T * (1 if scale is None else scale)
        for logits in (scaled, hidden @ network.vocabulary().T):
            torch.testing.assert_close(logits, network.logits(hidden), rtol=1e-4, atol=1e-4)
    assert matrix.data_ptr() == network.lm_head.weight.data_ptr(), "no copy a step"


def test_its_configuration_says_the_same(name):
    config, full = lean(name)[0].config, whole(name)[0].config
    assert {field: getattr(full, field) for field in vars(config)} == vars(config)
    assert config.model_type == full.model_type


def test_both_answer_alike(name):
    choice = Constraint("choice", ("best_move: 1", "best_move: 5"))
    requests = [Request(messages=chat, sampling=Sampling(max_tokens=5), seed=i) for i, chat in enumerate(CHATS)]
    requests += [Request(messages=CHATS[0], sampling=Sampling(constraint=choice, top_logprobs=2), seed=1)]
    answers = []
    for load in (lean, whole):
        with Engine(*load(name), max_rows=4, memory_bytes=1 << 26) as engine:
            answers.append(engine.generate(requests))
            engine.load_weights(whole(name)[0].state_dict(), "trained")  # what a trainer sends fits either
    assert answers[0] == answers[1]
    assert all(answer.tokens for answer in answers[0])


def test_it_comes_in_the_dtype_asked_for():
    network, _ = load_network("ngpt-base", dtype=torch.bfloat16)
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    model, _ = load_trainable("ngpt-base", dtype=torch.bfloat16)
    assert torch.equal(network.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("stored", [torch.float32, torch.int8])
def test_what_save_writes_is_read(tmp_path, stored):
    nlrl.backbones.save(*whole("hymba-base"), tmp_path / "m", dtype=stored)
    network, _ = load_network(tmp_path / "m")
    assert not isinstance(network, Backbone)
    assert torch.equal(logits(network), logits(nlrl.backbones.load(tmp_path / "m")[0]))


def test_what_save_hf_llama_writes_is_read(tmp_path):
    model, tokenizer = whole("transformer-base")
    save_hf_llama(model, tmp_path / "m", tokenizer)
    network, words = load_network(tmp_path / "m")
    assert not isinstance(network, Backbone)
    assert isinstance(words, PlainTokenizer)
    assert torch.equal(logits(network), logits(model))


@pytest.mark.parametrize("layout", ["ours", "llama"])
def test_what_only_transformers_understands_is_left_to_it(copied, layout):
    if layout == "llama":
        save_hf_llama(whole("transformer-base")[0], copied, whole("transformer-base")[1])
    edit(copied / "config.json", rope_parameters=None, rope_theta=500.0)  # as older versions wrote it
    network, _ = load_network(copied)
    assert isinstance(network, Backbone)
    assert network.config.rope_parameters["rope_theta"] == 500.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_key_value_heads": 4}, "num_attention_heads"),
        ({"head_dim": 31}, "head_dim"),
        ({"hidden_size": 96}, "embed_tokens.weight has shape"),
        ({"vocab_size": 700}, "embed_tokens.weight has shape"),
        ({"num_hidden_layers": 7}, "lacks tensor layers.6"),
        ({"model_type": "gpt9"}, "model_type is 'gpt9'"),
    ],
)
def test_what_cannot_work_is_refused_as_load_refuses_it(copied, changes, reason):
    edit(copied / "config.json", **changes)
    for load in (load_network, nlrl.backbones.load):
        with pytest.raises(NLRLError, match=reason):
            load(copied)


def test_another_vocabulary_is_refused(copied):
    inner = json.loads((copied / "tokenizer.json").read_text())
    vocabulary = inner["model"]["vocab"]
    one, two = sorted(vocabulary)[500:502]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (copied / "tokenizer.json").write_text(json.dumps(inner))
    with pytest.raises(NLRLError, match="another vocabulary"):
        load_network(copied)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory in use")
def test_pages_take_no_memory_before_they_are_written():
    def used() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    network, before = lean("transformer-base")[0], used()
    state = network.new_paged_state(4, 1024, pages=8192)
    assert state.nbytes > 2**27
    assert used() - before < 2**24
    keys = state.keys  # pyright: ignore[reportAttributeAccessIssue]
    keys[:, 7] = 1.5
    assert keys[:, 6:9].mean((0, 2, 3, 4)).tolist() == [0, 1.5, 0]


def test_loading_draws_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_network("bimamba-base")
    assert torch.equal(torch.rand(3), expected)


def test_hugging_face_may_skip_layers_in_gradient_checkpointing():
    model, _ = nlrl.backbones.load("transformer-base")
    model.gradient_checkpointing_enable(every_n_layers=2)
    assert [layer.gradient_checkpointing for layer in model.layers] == [True, False] * 3
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


# -- tokenizers --------------------------------------------------------------------------------------------------------
def random_texts() -> list[str]:
    draw = random.Random(3)
    letters = "abco XO159+-.,;:\n|é🂡<>"
    return ["".join(draw.choices(letters, k=draw.randrange(60))) for _ in range(200)]


def both(name: str = "transformer-base") -> tuple[PlainTokenizer, PreTrainedTokenizerFast]:
    plain, full = lean(name)[1], whole(name)[1]
    assert isinstance(plain, PlainTokenizer)
    return plain, full


def test_the_plain_tokenizer_encodes_and_decodes_alike():
    plain, full = both()
    texts = TEXTS + random_texts()
    for text in texts:
        for special in (True, False):
            ids = plain(text, add_special_tokens=special)["input_ids"]
            assert ids == full(text, add_special_tokens=special)["input_ids"]
    rows = encode_texts(plain, texts)
    assert rows == encode_texts(full, texts)
    for row in [*rows, list(range(len(plain)))]:
        assert plain.decode(row) == full.decode(row)
        assert plain.decode(row, skip_special_tokens=True) == full.decode(row, skip_special_tokens=True)


def test_it_knows_the_same_tokens(name):
    plain, full = both(name)
    assert plain.get_vocab() == full.get_vocab()
    assert len(plain) == len(full)
    for kind in ("bos", "eos", "pad"):
        assert getattr(plain, f"{kind}_token") == getattr(full, f"{kind}_token")
        assert getattr(plain, f"{kind}_token_id") == getattr(full, f"{kind}_token_id")
    assert set(plain.all_special_ids) == set(full.all_special_ids)
    assert [plain.convert_ids_to_tokens(i) for i in (0, 700)] == [full.convert_ids_to_tokens(i) for i in (0, 700)]
    words, all_words = Vocabulary(plain), Vocabulary(full)
    assert all(words.bytes(i) == all_words.bytes(i) for i in range(len(plain) + 1))


@pytest.mark.parametrize("chat", CHATS)
def test_it_renders_chats_alike(name, chat):
    plain, full = both(name)
    turns = [{"role": message.role, "content": message.content} for message in chat]
    for asks in (True, False):
        rendered = plain.apply_chat_template(turns, add_generation_prompt=asks, tokenize=False)
        assert rendered == full.apply_chat_template(turns, add_generation_prompt=asks, tokenize=False)
    request = Request(messages=chat)
    assert PromptEncoder(plain).prompts([request]) == PromptEncoder(full).prompts([request])


@pytest.mark.parametrize(
    "changes",
    [
        {"clean_up_tokenization_spaces": True},
        {"add_bos_token": True},
        {"tokenizer_class": "LlamaTokenizer"},
        {"eos_token": {"content": "<eos>", "lstrip": True}},
        {"extra_special_tokens": ["<answer>", "<new>"]},
        {"pad_token": None},
    ],
)
def test_settings_that_are_not_ours_are_left_to_transformers(copied, changes):
    edit(copied / "tokenizer_config.json", **changes)
    assert read_plain_tokenizer(copied) is None


def test_the_tokenizer_and_its_model_are_then_of_transformers(copied):
    edit(copied / "tokenizer_config.json", padding_side="left")
    network, tokenizer = load_network(copied)
    assert isinstance(network, Backbone)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)


def test_a_template_that_is_not_ours_is_left_to_transformers(copied):
    (copied / "chat_template.jinja").write_text("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}")
    tokenizer = load_network(copied)[1]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_torn_tokenizer_is_refused(copied, file):
    (copied / file).write_text('{"half')
    with pytest.raises(NLRLError, match="tokenizer"):
        load_network(copied)
