"""Which layer of a Hymba does what, and what cannot be."""

from __future__ import annotations

from itertools import groupby

MIXERS = ("parallel", "sequential", "mamba", "attention")
SEMANTICS = ("training", "hf_decode")
ROPE_TYPES = ("default", "ntk")


def layer_mixers(mixer: str, layers: int) -> list[str]:
    """Each layer's mixer; see `HymbaConfig.mixer`."""
    if mixer == "sequential":
        return ["attention" if i % 2 else "mamba" for i in range(layers)]
    return [mixer] * layers


def default_global_layers(attention_layers: list[int], window: int | None) -> list[int]:
    """All without a window, else the first, the middle and the last attention layer (0, 15 and 31 of 32)."""
    if window is None or not attention_layers:
        return list(attention_layers)
    return sorted({attention_layers[0], attention_layers[(len(attention_layers) - 1) // 2], attention_layers[-1]})


def default_groups(attention_layers: list[int], global_layers: list[int]) -> list[list[int]]:
    """Every run of windowed layers in pairs, a triple first if the run is odd (NVIDIA's choice for 32 layers)."""
    groups = []
    for windowed, run in groupby(attention_layers, lambda layer: layer not in global_layers):
        layers = list(run)
        if not windowed or len(layers) < 2:
            continue
        first = 2 + len(layers) % 2
        groups += [layers[:first], *(layers[i : i + 2] for i in range(first, len(layers), 2))]
    return groups


def mistake(config) -> str:
    """Why there can be no such model; empty if there can."""
    checks = (_choices, _sizes, _heads, _rope, _global_layers, _groups)
    return next((reason for reason in (check(config) for check in checks) if reason), "")


def _choices(c) -> str:
    allowed = {"mixer": MIXERS, "window_semantics": SEMANTICS, "rope_type": ROPE_TYPES}
    for field, values in allowed.items():
        if getattr(c, field) not in values:
            return f"{field} is {getattr(c, field)!r}; known are {', '.join(values)}"
    return ""


def _sizes(c) -> str:
    positive = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "v_head_dim", "mamba_expand", "mamba_d_state", "mamba_d_conv", "mamba_dt_rank",
    )  # fmt: skip
    for field in positive:
        if getattr(c, field) < 1:
            return f"{field} is {getattr(c, field)}; it must be at least 1"
    if c.sliding_window is not None and c.sliding_window < 1:
        return f"sliding_window is {c.sliding_window}; a token sees itself at least, so it must be 1 or more, or None"
    if c.num_memory_tokens < 0:
        return f"num_memory_tokens is {c.num_memory_tokens}; it cannot be negative (0 for none)"
    return ""


def _heads(c) -> str:
    if not c.attention_layers:
        return ""
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    if heads % kv_heads:
        return f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
    if c.head_dim % 2:
        return f"head_dim ({c.head_dim}) must be even: rotary embedding turns pairs"
    if c.mixer == "parallel" and heads * c.v_head_dim != c.d_inner:
        return (
            f"num_attention_heads * v_head_dim ({heads} * {c.v_head_dim}) must equal mamba_expand * hidden_size "
            f"({c.d_inner}): the outputs of both kinds of heads are averaged"
        )
    return ""


def _rope(c) -> str:
    if c.rope_type == "default":
        return ""
    if not c.orig_max_position_embeddings or c.orig_max_position_embeddings < 1:
        return "rope_type 'ntk' needs orig_max_position_embeddings, the context that was trained before"
    if c.head_dim < 4:
        return f"head_dim ({c.head_dim}) must be at least 4 for rope_type 'ntk'"
    if 2 * c.max_position_embeddings <= c.orig_max_position_embeddings:
        return (
            f"max_position_embeddings ({c.max_position_embeddings}) must be more than half of "
            f"orig_max_position_embeddings ({c.orig_max_position_embeddings}), or the rotary base is not positive"
        )
    return ""


def _global_layers(c) -> str:
    strangers = [i for i in c.global_attn_idx if i not in c.attention_layers]
    if strangers:
        return f"global_attn_idx names layer {strangers[0]}, but layers with attention are {c.attention_layers}"
    if c.sliding_window is None and sorted(c.global_attn_idx) != c.attention_layers:
        return "without a sliding_window every attention layer is global: leave global_attn_idx out"
    return ""


def _groups(c) -> str:
    seen: set[int] = set()
    for group in c.kv_reuse_group:
        if len(group) < 2:
            return f"kv_reuse_group {group} names fewer than two layers: nothing is shared"
        for layer in group:
            if layer not in c.attention_layers:
                return f"kv_reuse_group {group} names layer {layer}, but layers with attention are {c.attention_layers}"
            if layer in c.global_attn_idx:
                return f"kv_reuse_group {group} names layer {layer}, which is global: its keys are not a window's"
            if layer in seen:
                return f"layer {layer} is in two groups of kv_reuse_group"
            seen.add(layer)
        start = c.attention_layers.index(group[0])
        if group != c.attention_layers[start : start + len(group)]:
            return f"kv_reuse_group {group} must be a run of neighbouring layers in ascending order"
    return ""
