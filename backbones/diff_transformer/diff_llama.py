"""Hugging Face `DiffLlama` folders in; rows of matrices move, no number changes, so logits are equal.

With h differential heads and g groups, their model computes V1 with the same grouping, in another order:

* The two maps of head i are their query heads i and i + h; of group j their key heads j and j + g. Ours are neighbours.
* The value of group j is their value heads j and j + g side by side.
* Rotary pairs are channels j and j + d/2; ours are 2j and 2j + 1.
* The norm of heads has no weight; ours gets ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from transformers import DiffLlamaConfig

from nlrl.backbones import checkpoint
from nlrl.backbones.diff_transformer.configuration import DiffTransformerConfig
from nlrl.backbones.diff_transformer.modeling import DiffTransformerForCausalLM
from nlrl.backbones.layout import check_layout
from nlrl.backbones.rotary import ROPE_TYPES
from nlrl.errors import NLRLError

SHARED_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "max_position_embeddings",
    "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "initializer_range", "pad_token_id", "bos_token_id",
    "eos_token_id",
)  # fmt: skip
OUTER = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
IN_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.lambda_.q1": "self_attn.lambda_q1",
    "attention.lambda_.k1": "self_attn.lambda_k1",
    "attention.lambda_.q2": "self_attn.lambda_q2",
    "attention.lambda_.k2": "self_attn.lambda_k2",
    "attention.output.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
"""Our tensor: Hugging Face's, taken over as it is."""


def from_hf_diff_llama(folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> DiffTransformerForCausalLM:
    """The V1 model of a Hugging Face `DiffLlama` folder, in evaluation mode.

    Raises:
        NLRLError: a file is missing or torn, tensors are missing, unknown or misshapen (all are listed), or the model
            has a part that ours lacks (biases, other activations or rotary types, an odd number of heads).
    """
    folder = Path(folder)
    config = _our_config(folder)
    theirs, _ = checkpoint.read_tensors(folder)
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        theirs.pop("lm_head.weight", None)
    check_layout(_their_shapes(config), theirs, folder, "DiffLlama")
    return checkpoint.build(DiffTransformerForCausalLM, config, _ours(theirs, config), folder, dtype)


def _our_config(folder: Path) -> DiffTransformerConfig:
    path = folder / "config.json"
    fields = checkpoint.read_json(path)
    if fields.get("model_type") != "diffllama":
        raise NLRLError(f"{path}: model_type is {fields.get('model_type')!r}, not 'diffllama'")
    try:
        theirs = DiffLlamaConfig.from_dict(fields)
        _refuse_what_ours_lacks(theirs)
        heads = {
            "num_attention_heads": theirs.num_attention_heads // 2,
            "num_key_value_heads": (theirs.num_key_value_heads or 0) // 2,
        }
        return DiffTransformerConfig(version=1, **heads, **{name: getattr(theirs, name) for name in SHARED_FIELDS})
    except Exception as error:  # each of its validators has its own type
        raise NLRLError(f"{path}: {error}") from None


def _refuse_what_ours_lacks(theirs: DiffLlamaConfig) -> None:
    if theirs.attention_bias or theirs.hidden_act != "silu":
        raise ValueError("only DiffLlama models without biases and with hidden_act 'silu' can be loaded")
    if getattr(theirs, "quantization_config", None):
        raise ValueError("quantised weights (quantization_config) cannot be loaded")
    kind = (theirs.rope_parameters or {}).get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope_type is {kind!r}; known are {', '.join(ROPE_TYPES)}")
    for name in ("num_attention_heads", "num_key_value_heads"):
        if (getattr(theirs, name) or 0) % 2:
            raise ValueError(f"{name} is {getattr(theirs, name)}; it must be even: a differential head has two maps")


def _their_shapes(config: DiffTransformerConfig) -> dict[str, tuple[int, ...]]:
    width, head_dim, inner = config.hidden_size, config.head_dim or 0, config.intermediate_size or 0
    query, key = (2 * n * head_dim for n in (config.num_attention_heads, config.num_key_value_heads or 0))
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (width,)}
    shapes["model.embed_tokens.weight"] = (config.vocab_size, width)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    layer = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (query, width),
        "self_attn.k_proj.weight": (key, width),
        "self_attn.v_proj.weight": (key, width),
        "self_attn.o_proj.weight": (width, query),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    } | {f"self_attn.lambda_{name}": (head_dim,) for name in ("q1", "k1", "q2", "k2")}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def _ours(theirs: dict[str, Tensor], config: DiffTransformerConfig) -> dict[str, Tensor]:
    ours = {name: theirs[their_name] for name, their_name in OUTER.items() if their_name in theirs}
    for i in range(config.num_hidden_layers):
        a, b = f"layers.{i}.", f"model.layers.{i}."
        ours |= {a + name: theirs[b + their_name] for name, their_name in IN_LAYER.items()}
        query, key, value = (theirs[f"{b}self_attn.{part}_proj.weight"] for part in "qkv")
        head_dim = config.head_dim or 0
        parts = [_turned(_paired(query, head_dim)), _turned(_paired(key, head_dim)), _paired(value, head_dim)]
        ours[a + "attention.qkv.weight"] = torch.cat([part.flatten(0, 1) for part in parts])
        ours[a + "attention.head_norm.weight"] = query.new_ones(2 * head_dim)
        ours[a + "mlp.up_gate.weight"] = torch.cat([theirs[f"{b}mlp.{part}_proj.weight"] for part in ("up", "gate")])
    return ours


def _paired(weight: Tensor, head_dim: int) -> Tensor:
    """Heads `(2 n, head_dim, width)` in the order 0, n, 1, n + 1, ..."""
    heads = weight.unflatten(0, (-1, head_dim))
    return heads.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def _turned(heads: Tensor) -> Tensor:
    """Channels of each head in the order 0, d/2, 1, d/2 + 1, ..."""
    return heads.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
