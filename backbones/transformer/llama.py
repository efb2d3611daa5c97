"""Hugging Face Llama folders in and out; the two layouts hold the same numbers, so logits are equal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from nlrl.backbones import checkpoint
from nlrl.backbones.fields import BOOKKEEPING
from nlrl.backbones.rotary import ROPE_TYPES
from nlrl.backbones.transformer.fields import TransformerFields
from nlrl.backbones.transformer.network import TransformerNetwork
from nlrl.errors import NLRLError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nlrl.backbones.transformer.configuration import TransformerConfig
    from nlrl.backbones.transformer.modeling import TransformerForCausalLM

Model = TypeVar("Model", bound=TransformerNetwork)

SHARED_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
PLAIN = {"attention_bias": False, "hidden_act": "silu", "mlp_bias": False}
"""What our model has no part for, and `save_hf_llama` writes."""
INDIFFERENT = {"attention_dropout", "pretraining_tp", "use_cache"}
OUTER = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
IN_LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.output.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.up_gate.weight": ("mlp.up_proj.weight", "mlp.gate_proj.weight"),
    "mlp.down.weight": ("mlp.down_proj.weight",),
}
"""Our tensor: Hugging Face's, stacked row on row."""


def from_hf_llama(folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> TransformerForCausalLM:
    """The model of a Hugging Face Llama folder, in evaluation mode.

    Raises:
        NLRLError: a file is missing or torn, or the model has a part that ours lacks (biases, other activations or
            rotary types).
    """
    from nlrl.backbones.transformer.modeling import TransformerForCausalLM

    folder = Path(folder)
    return _read(TransformerForCausalLM, _our_config(folder), folder, dtype)


def network_of_llama(folder: Path, written: Mapping[str, Any], dtype: torch.dtype) -> TransformerNetwork | None:
    """As `from_hf_llama`, without importing `transformers`; None where it must translate the config.json.

    Args: written: the config.json.
    """
    others = {name: value for name, value in written.items() if name not in {*SHARED_FIELDS, *BOOKKEEPING}}
    plain = {name: value for name, value in others.items() if name not in INDIFFERENT}
    if plain != PLAIN or not written.keys() >= {*SHARED_FIELDS}:
        return None
    if (written["rope_parameters"] or {}).get("rope_type") not in ROPE_TYPES:
        return None
    fields = TransformerFields(**{name: written[name] for name in SHARED_FIELDS})
    return _read(TransformerNetwork, fields, folder, dtype)


def _read(made_by: type[Model], config: TransformerFields, folder: Path, dtype: torch.dtype) -> Model:
    theirs, _ = checkpoint.read_tensors(folder)
    if config.tie_word_embeddings:
        theirs.pop("lm_head.weight", None)
    return checkpoint.build(made_by, config, _stack(theirs, config, folder), folder, dtype)


def save_hf_llama(
    model: TransformerForCausalLM,
    folder: str | os.PathLike,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a folder that `transformers.LlamaForCausalLM`, vLLM and others read; dtype defaults to the model's."""
    from transformers import GenerationConfig, LlamaConfig

    dtype = dtype or model.dtype
    shared = {name: getattr(model.config, name) for name in SHARED_FIELDS}
    config = LlamaConfig(**shared, architectures=["LlamaForCausalLM"], dtype=dtype)
    with checkpoint.new_folder(Path(folder)) as fresh:
        config.save_pretrained(fresh)
        GenerationConfig(**{name: shared[name] for name in shared if name.endswith("token_id")}).save_pretrained(fresh)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        checkpoint.write_weights(fresh / checkpoint.WEIGHTS, _unstack(model), dtype, {})


def _our_config(folder: Path) -> TransformerConfig:
    from transformers import LlamaConfig

    from nlrl.backbones.transformer.configuration import TransformerConfig

    path = folder / "config.json"
    fields = checkpoint.read_json(path)
    if fields.get("model_type") != "llama":
        raise NLRLError(f"{path}: model_type is {fields.get('model_type')!r}, not 'llama'")
    try:
        theirs = LlamaConfig.from_dict(fields)
    except Exception as error:  # each of its validators has its own type
        raise NLRLError(f"{path}: {error}") from None
    if theirs.attention_bias or theirs.mlp_bias or theirs.hidden_act != "silu":
        raise NLRLError(f"{path}: only Llama models without biases and with hidden_act 'silu' can be loaded")
    if getattr(theirs, "quantization_config", None):
        raise NLRLError(f"{path}: quantised weights (quantization_config) cannot be loaded")
    kind = (theirs.rope_parameters or {}).get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise NLRLError(f"{path}: rope_type is {kind!r}; known are {', '.join(ROPE_TYPES)}")
    return TransformerConfig(**{name: getattr(theirs, name) for name in SHARED_FIELDS})


def _names(config: TransformerFields) -> dict[str, tuple[str, ...]]:
    """Every tensor of ours and the ones of theirs it is stacked from."""
    names: dict[str, tuple[str, ...]] = {
        ours: (theirs,) for ours, theirs in OUTER.items() if ours != "lm_head.weight" or not config.tie_word_embeddings
    }
    for i in range(config.num_hidden_layers):
        for ours, parts in IN_LAYER.items():
            names[f"layers.{i}.{ours}"] = tuple(f"model.layers.{i}.{part}" for part in parts)
    return names


def _rows(config: TransformerFields, ours: str) -> list[int]:
    if ours.endswith("qkv.weight"):
        return [
            config.head_dim * n
            for n in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        ]
    return [config.intermediate_size] * 2


def _stack(theirs: dict[str, Tensor], config: TransformerFields, folder: Path) -> dict[str, Tensor]:
    stacked = {}
    for ours, parts in _names(config).items():
        missing = [part for part in parts if part not in theirs]
        if missing:
            raise NLRLError(f"{folder} lacks tensor {missing[0]}, a part of a Llama model of this config")
        tensors = [theirs.pop(part) for part in parts]
        stacked[ours] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    leftover = [name for name in theirs if not name.endswith("rotary_emb.inv_freq")]
    if leftover:
        raise NLRLError(f"{folder} holds tensor {min(leftover)}, which is no part of a Llama model of this config")
    return stacked


def _unstack(model: TransformerForCausalLM) -> dict[str, Tensor]:
    theirs, tensors = {}, model.state_dict()
    for ours, parts in _names(model.config).items():
        pieces = [tensors[ours]] if len(parts) == 1 else tensors[ours].split(_rows(model.config, ours))
        theirs.update(zip(parts, pieces, strict=True))
    return theirs
