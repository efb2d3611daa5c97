"""Decoders of attention and feed-forward layers: `decoder.h`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlrl.backbones.diff_transformer.network import DiffTransformerNetwork
from nlrl.backbones.engine.cpu.pack import Layer, Packed, beside, gated, panels, scaled_queries, table, turn_table
from nlrl.backbones.engine.cpu.states import keys_and_values
from nlrl.backbones.ngpt.network import NGPTNetwork, official_rotary
from nlrl.backbones.rotary import rotary
from nlrl.backbones.transformer.network import TransformerNetwork

PLAIN, NGPT, DIFFERENTIAL_1, DIFFERENTIAL_2 = range(4)
"""`decoder.h`: Kind."""


def _decoder_sizes(config, **more) -> dict[str, Any]:
    fields = {
        "layers": config.num_hidden_layers, "hidden": config.hidden_size, "intermediate": config.intermediate_size,
        "vocab": config.vocab_size, "heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads,
        "key_dim": config.head_dim, "value_dim": config.head_dim,
    }  # fmt: skip
    return fields | more


def transformer(model: TransformerNetwork, lanes: int) -> Packed:
    c = model.config

    def packed(layer) -> Layer:
        qkv = layer.attention.qkv.weight * layer.attention_norm.weight
        qkv = scaled_queries(qkv, c.num_attention_heads * c.head_dim, c.head_dim)
        up_gate, down = gated(layer, lanes)
        output = panels(layer.attention.output.weight, lanes)
        return panels(qkv, lanes), None, None, output, None, up_gate, down, None

    return Packed(
        "nlrl_decoder_step",
        _decoder_sizes(c, kind=PLAIN, interleaved=0, eps=c.rms_norm_eps),
        table(model.embed_tokens.weight),
        panels(model.lm_head.weight * model.norm.weight, lanes),
        [packed(layer) for layer in model.layers],
        keys_and_values,
        lambda count: turn_table(
            lambda x, cos, sin: rotary(x, cos, sin, False), c.rope_parameters, c.head_dim, count, False
        ),
    )


def ngpt(model: NGPTNetwork, lanes: int) -> Packed:
    c = model.config

    def packed(layer) -> Layer:
        attention, mlp = layer.attention, layer.mlp
        up_gate = mlp.up_gate.weight * (mlp.up_gate_scale() * mlp.width**0.5)[:, None]
        return (
            panels(attention.qkv.weight, lanes),
            (attention.qk_scale().square() * c.head_dim**-0.5).contiguous(),
            None,
            panels(attention.output.weight, lanes),
            layer.attention_alpha().abs(),
            panels(beside(up_gate, lanes), lanes),
            panels(mlp.down.weight, lanes),
            layer.mlp_alpha().abs(),
        )

    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return official_rotary(x, cos, sin) if c.rope == "official" else rotary(x, cos, sin, True)

    return Packed(
        "nlrl_decoder_step",
        _decoder_sizes(c, kind=NGPT, interleaved=1, eps=0.0),
        table(model.embed_tokens.weight),
        panels(model.lm_head.weight * model.logit_scale()[:, None], lanes),
        [packed(layer) for layer in model.layers],
        keys_and_values,
        lambda count: turn_table(turn, {"rope_theta": c.rope_theta}, c.head_dim, count, True),
    )


def diff_transformer(model: DiffTransformerNetwork, lanes: int) -> Packed:
    c = model.config
    queries = 2 * c.num_attention_heads * c.head_dim

    def packed(layer) -> Layer:
        attention, lambda_ = layer.attention, None
        qkv, output = attention.qkv.weight, attention.output.weight
        if c.version == 1:
            lambda_ = attention.lambda_().reshape(1)
            head_norm = attention.head_norm.weight * (1 - attention.lambda_.first)
            output = output * head_norm.repeat(c.num_attention_heads)
        else:
            qkv = torch.cat((qkv, attention.gate.weight))
        qkv = scaled_queries(qkv * layer.attention_norm.weight, queries, c.head_dim)
        up_gate, down = gated(layer, lanes)
        return panels(qkv, lanes), None, lambda_, panels(output, lanes), None, up_gate, down, None

    kind, value_dim = (DIFFERENTIAL_1, 2 * c.head_dim) if c.version == 1 else (DIFFERENTIAL_2, c.head_dim)
    return Packed(
        "nlrl_decoder_step",
        _decoder_sizes(c, kind=kind, value_dim=value_dim, interleaved=1, eps=c.rms_norm_eps),
        table(model.embed_tokens.weight),
        panels(model.lm_head.weight * model.norm.weight, lanes),
        [packed(layer) for layer in model.layers],
        keys_and_values,
        lambda count: turn_table(
            lambda x, cos, sin: rotary(x, cos, sin, True), c.rope_parameters, c.head_dim, count, True
        ),
    )
