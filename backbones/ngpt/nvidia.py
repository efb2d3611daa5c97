"""`ckpt.pt` of the authors' training script (NVIDIA/ngpt) in; weights are taken over bit by bit, with `rope="official"`
the logits are theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlrl.backbones import checkpoint
from nlrl.backbones.layout import check_layout
from nlrl.backbones.ngpt.configuration import NGPTConfig
from nlrl.backbones.ngpt.modeling import NGPTForCausalLM
from nlrl.errors import NLRLError

FILE = "ckpt.pt"
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "block_size",
}
"""Ours: theirs, in `model_args`."""
DEFAULT_BASE_SCALE = 1024**-0.5
"""What their model class stores scales as where `model_args` says nothing."""
PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before names."""
OUTER = {
    "embed_tokens.weight": "transformer.wte.weight",
    "lm_head.weight": "lm_head.weight",
    "logit_scale.weight": "sz",
}
IN_LAYER = {
    "attention.qkv.weight": ("query.weight", "key.weight", "value.weight"),
    "attention.output.weight": ("att_c_proj.weight",),
    "attention.qk_scale.weight": ("sqk",),
    "attention_alpha.weight": ("attn_alpha",),
    "mlp.up_gate.weight": ("c_fc.weight",),
    "mlp.up_gate_scale.weight": ("suv",),
    "mlp.down.weight": ("mlp_c_proj.weight",),
    "mlp_alpha.weight": ("mlp_alpha",),
}
"""Our tensor: theirs, stacked row on row."""
RESCALED = ("logit_scale.weight", "attention.qk_scale.weight", "attention_alpha.weight", "mlp_alpha.weight")
"""Stored as a multiple of their `base_scale`; ours of `hidden_size**-0.5`."""


def from_nvidia(
    path: str | os.PathLike, dtype: torch.dtype = torch.float32, rope: str = "official", pickles: bool = True
) -> NGPTForCausalLM:
    """The nGPT model of a `ckpt.pt`, or of a folder with one, in evaluation mode.

    Args:
        rope: "official" to get the logits that it was trained to give; "rotary" to go on with true rotations.
        pickles: these files are pickles, and whoever calls this function by name asks for one. They are read as tensors
            and numbers only.
    Raises:
        NLRLError: the file is missing, torn or of another layout, tensors are missing, unknown or misshapen (all are
            listed), or it holds their baseline GPT.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not pickles:
        checkpoint.refuse_pickle(path)
    content = _read(path)
    arguments = content["model_args"]
    config = _our_config(arguments, rope, path)
    theirs = {_plain_name(name): tensor for name, tensor in content["model"].items()}
    check_layout(_their_shapes(config), theirs, path, "nGPT")
    base_scale = arguments.get("base_scale", DEFAULT_BASE_SCALE)
    if not isinstance(base_scale, int | float) or not base_scale > 0:
        raise NLRLError(f"{path}: model_args has base_scale={base_scale!r}, which must be a number above 0")
    return checkpoint.build(NGPTForCausalLM, config, _ours(theirs, config, base_scale, dtype), path, dtype)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NLRLError(f"{path} is missing: NVIDIA/ngpt writes its checkpoints under that name")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle calls what it may with arguments of any kind
        raise NLRLError(f"{path} is torn, or holds more than tensors and numbers: {error}") from None
    parts = ("model", "model_args")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), Mapping) for part in parts):
        raise NLRLError(f"{path} is no checkpoint of NVIDIA/ngpt: it lacks 'model' or 'model_args'")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content["model"].items()):
        raise NLRLError(f"{path}: 'model' holds something else than tensors")
    return content


def _our_config(arguments: Mapping[str, Any], rope: str, path: Path) -> NGPTConfig:
    if not arguments.get("use_nGPT"):
        raise NLRLError(f"{path}: model_args has no use_nGPT=1: it is the repository's baseline GPT, no nGPT")
    if arguments.get("bias"):
        raise NLRLError(f"{path}: model_args has bias=True; nGPT has no biases")
    if missing := [theirs for theirs in FIELDS.values() if theirs not in arguments]:
        raise NLRLError(f"{path}: model_args lacks {', '.join(missing)}")
    try:
        return NGPTConfig(**{ours: int(arguments[theirs]) for ours, theirs in FIELDS.items()}, rope=rope)
    except Exception as error:  # each of its validators has its own type
        raise NLRLError(f"{path}: model_args: {error}") from None


def _plain_name(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _their_shapes(config: NGPTConfig) -> dict[str, tuple[int, ...]]:
    width, vocabulary = config.hidden_size, config.vocab_size
    outer = {"transformer.wte.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width), "sz": (vocabulary,)}
    square = {f"{name}.weight": (width, width) for name in ("query", "key", "value", "att_c_proj")}
    scales = {name: (width,) for name in ("attn_alpha", "mlp_alpha", "sqk")}
    gated = {"c_fc.weight": (8 * width, width), "suv": (8 * width,), "mlp_c_proj.weight": (width, 4 * width)}
    layer = square | scales | gated
    layers = range(config.num_hidden_layers)
    return outer | {f"transformer.h.{i}.{name}": shape for i in layers for name, shape in layer.items()}


def _ours(theirs: dict[str, Tensor], config: NGPTConfig, base_scale: float, dtype: torch.dtype) -> dict[str, Tensor]:
    theirs = {name: tensor.to(dtype) for name, tensor in theirs.items()}
    ours = {name: theirs[their_name] for name, their_name in OUTER.items()}
    for i in range(config.num_hidden_layers):
        for name, parts in IN_LAYER.items():
            tensors = [theirs[f"transformer.h.{i}.{part}"] for part in parts]
            ours[f"layers.{i}.{name}"] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    factor = config.hidden_size**-0.5 / base_scale
    return {name: tensor * factor if name.endswith(RESCALED) else tensor for name, tensor in ours.items()}
