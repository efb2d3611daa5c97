"""Hugging Face Llama folders in and out; the two layouts hold the same numbers, so logits are equal."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from nlrl.backbones import checkpoint
from nlrl.backbones.rotary import ROPE_TYPES
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM
from nlrl.errors import NLRLError

SHARED_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
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
    folder = Path(folder)
    config = _our_config(folder)
    theirs, _ = checkpoint.read_tensors(folder)
    if config.tie_word_embeddings:
        theirs.pop("lm_head.weight", None)
    return checkpoint.build(TransformerForCausalLM, config, _stack(theirs, config, folder), folder, dtype)


def save_hf_llama(
    model: TransformerForCausalLM,
    folder: str | os.PathLike,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a folder that `transformers.LlamaForCausalLM`, vLLM and others read; dtype defaults to the model's."""
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


def _names(config: TransformerConfig) -> dict[str, tuple[str, ...]]:
    """Every tensor of ours and the ones of theirs it is stacked from."""
    names: dict[str, tuple[str, ...]] = {
        ours: (theirs,) for ours, theirs in OUTER.items() if ours != "lm_head.weight" or not config.tie_word_embeddings
    }
    for i in range(config.num_hidden_layers):
        for ours, parts in IN_LAYER.items():
            names[f"layers.{i}.{ours}"] = tuple(f"model.layers.{i}.{part}" for part in parts)
    return names


def _rows(config: TransformerConfig, ours: str) -> list[int]:
    if ours.endswith("qkv.weight"):
        return [
            config.head_dim * n
            for n in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        ]
    return [config.intermediate_size] * 2


def _stack(theirs: dict[str, Tensor], config: TransformerConfig, folder: Path) -> dict[str, Tensor]:
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
