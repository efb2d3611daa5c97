"""Checkpoint folders: weights, configs, tokenizers; ours and those of others."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

from nlrl.backbones.registry import BUNDLED
from nlrl.errors import NLRLError
from nlrl.testing.fuzz import target
from nlrl.testing.fuzz.folders import folder

_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_LARGEST = 1 << 16
"""Sizes in a config up to which a model is made at all: somebody may ask for a large one."""


@cache
def tiny() -> Path:
    """A model of one layer, with the tokenizer of a bundled one."""
    import torch

    from nlrl.backbones.loading import save
    from nlrl.backbones.tokenizer import load_tokenizer
    from nlrl.backbones.transformer.configuration import TransformerConfig
    from nlrl.backbones.transformer.modeling import TransformerForCausalLM

    tokenizer = load_tokenizer(BUNDLED / "transformer-base")
    config = TransformerConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=16, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    save(TransformerForCausalLM(config), tokenizer, folder("tiny"))
    return folder("tiny")


def _damaged(name: str, data: bytes, among: str = "damaged") -> Path:
    """A copy of the tiny model with one other file."""
    place = folder(f"{among}-{name}")
    if not (place / "config.json").exists():
        shutil.copytree(tiny(), place, dirs_exist_ok=True)
    (place / name).write_bytes(data)
    return place


def _seeds(name: str):
    return lambda: [(tiny() / name).read_bytes()]


@target("weights", _seeds("model.safetensors"), NLRLError, slow=True)
def weights(data: bytes) -> None:
    from nlrl.backbones.loading import load_network

    load_network(_damaged("model.safetensors", data))


def _small_safetensors() -> list[bytes]:
    import torch
    from safetensors.torch import save

    floats = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    return [save(floats, {"vocabulary": "x"}), save({"a": torch.zeros(2, 2, dtype=torch.int8)})]


@target("safetensors", _small_safetensors, NLRLError)
def safetensors(data: bytes) -> None:
    """All readers of such files."""
    from nlrl.backbones import checkpoint
    from nlrl.backbones.engine.weights import read
    from nlrl.backbones.tuning.weights import TunedWeights, shapes

    place = folder("safetensors")
    path = place / "model.safetensors"
    path.write_bytes(data)
    refused = 0
    for reader in (
        lambda: checkpoint.read_tensors(place),
        lambda: checkpoint.dequantised_files([path]),
        lambda: read(path),
        lambda: TunedWeights.read(path),
        lambda: shapes(place),
    ):
        try:
            reader()
        except NLRLError:
            refused += 1
    if refused:
        raise NLRLError("refused")


def _indices() -> list[bytes]:
    return [
        b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
        b'{"weight_map": {"a": "../safetensors/model.safetensors"}}',
        b'{"weight_map": {"a": "/etc/passwd", "b": "\\u0000"}}',
    ]


@target("indices of shards", _indices, NLRLError)
def indices(data: bytes) -> None:
    from nlrl.backbones import checkpoint

    place = folder("shards")
    (place / checkpoint.INDEX).write_bytes(data)
    checkpoint.read_tensors(place)


@target("model configs", _seeds("config.json"), NLRLError, slow=True)
def model_configs(data: bytes) -> None:
    from nlrl.backbones import checkpoint
    from nlrl.backbones.loading import load_network

    place = _damaged("config.json", data)
    sizes = [value for value in checkpoint.read_json(place / "config.json").values() if isinstance(value, int | float)]
    if all(abs(size) <= _LARGEST for size in sizes):
        load_network(place)


@target("tokenizers", _seeds("tokenizer.json"), NLRLError, slow=True)
def tokenizers(data: bytes) -> None:
    from nlrl.backbones.loading import load_network

    load_network(_damaged("tokenizer.json", data))


@target("tokenizer configs", _seeds("tokenizer_config.json"), NLRLError, slow=True)
def tokenizer_configs(data: bytes) -> None:
    from nlrl.backbones.loading import load_network

    load_network(_damaged("tokenizer_config.json", data))


def _pickles() -> list[bytes]:
    import io
    import pickle

    import torch

    class Runs:
        def __reduce__(self):
            import os

            return os.mkdir, (str(folder("pickles") / "it-ran"),)

    torched = io.BytesIO()
    torch.save({"model": {"sz": torch.ones(3)}, "model_args": {"use_nGPT": 1, "n_embd": 8}}, torched)
    return [torched.getvalue(), pickle.dumps(Runs()), pickle.dumps({"model": Runs(), "model_args": {}})]


@target("pickles", _pickles, NLRLError)
def pickles(data: bytes) -> None:
    """Whatever stands in a checkpoint of another kind, nothing of it runs."""
    from nlrl.backbones.ngpt.nvidia import from_nvidia
    from nlrl.testing.fuzz import Finding

    path = folder("pickles") / "ckpt.pt"
    path.write_bytes(data)
    try:
        from_nvidia(path)
    finally:
        if (folder("pickles") / "it-ran").exists():
            raise Finding("a checkpoint ran code")
