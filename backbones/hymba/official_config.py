"""NVIDIA's config.json of Hymba checkpoints, in our fields."""

from __future__ import annotations

MARKS = ("num_mamba", "layer_type", "kv_reuse_every_i_layer", "memory_tokens_interspersed_every")
"""Keys that only NVIDIA's config.json has."""
ONLY = {
    "num_mamba": 1, "num_experts": 1, "memory_tokens_interspersed_every": 0, "kv_reuse_every_i_layer": -1,
    "kv_weight_reuse": False, "kq_norm": "none", "rope": True, "mlp_hidden_act": "silu", "mamba_conv_bias": True,
    "mamba_proj_bias": False, "mamba_inner_layernorms": True,
}  # fmt: skip
"""What every published checkpoint says, and the only value we have a part for."""
DROPPED = (*ONLY, "layer_type", "attn_implementation", "attn_implementation_new", "seq_length", "auto_map", "conv_dim",
           "calc_logits_for_entire_prompt", "kq_head_dim", "use_cache")  # fmt: skip
PAD = 32000
"""[PAD] of the tokenizer, the last row of its vocabulary; the config's 0 is `<unk>`."""


def is_official(fields: dict) -> bool:
    """Whether a config.json is of NVIDIA's layout rather than ours; both say `model_type` "hymba"."""
    return fields.get("model_type") == "hymba" and any(mark in fields for mark in MARKS)


def translated(fields: dict) -> dict:
    """Our fields. The cache is on whatever theirs says (false: they recompute the text for every token).

    Raises:
        ValueError: a setting has another value than published checkpoints, or a layer is no hybrid one.
    """
    for name, value in ONLY.items():
        if fields.get(name, value) != value:
            raise ValueError(f"{name} is {fields[name]!r}; Hymba checkpoints with {value!r} can be loaded")
    kinds = fields.get("layer_type") or []
    if any(kind != "h" for kind in kinds):
        raise ValueError(f"layer_type is {kinds}; Hymba checkpoints of hybrid layers ('h') can be loaded")
    ours = {name: value for name, value in fields.items() if name not in DROPPED}
    if fields.get("kq_head_dim", -1) > 0:
        ours["head_dim"] = fields["kq_head_dim"]
    ours.setdefault("kv_reuse_group", [])
    if fields.get("vocab_size", 0) > PAD:
        ours["pad_token_id"] = PAD
    return ours
