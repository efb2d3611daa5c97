"""Models with recurrent states: `bimamba.h`, `hymba.h`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nlrl.backbones.bimamba.fbi_linear import FBILinear, PackedFBILinear
from nlrl.backbones.bimamba.network import BiMambaNetwork
from nlrl.backbones.engine.cpu.pack import Layer, Packed, gated, panels, scaled_queries, table, turn_table
from nlrl.backbones.engine.cpu.states import hymba_state, windows_and_states
from nlrl.backbones.hymba.network import HymbaNetwork
from nlrl.backbones.rotary import rotary
from nlrl.kernels.bit_linear.reference import unpack_signs


def bimamba(model: BiMambaNetwork, lanes: int) -> Packed:
    c = model.config

    def packed(layer) -> Layer:
        mixer = layer.mixer
        return (
            panels(_dense(mixer.in_proj) * layer.norm.weight, lanes),
            table(mixer.conv_weight.T),
            None if mixer.conv_bias is None else table(mixer.conv_bias),
            table(mixer.dt_bias),
            -mixer.A_log.float().exp(),
            table(mixer.D),
            panels(_dense(mixer.out_proj) * mixer.norm.weight, lanes),
        )

    sizes = {
        "layers": c.num_hidden_layers, "hidden": c.hidden_size, "vocab": c.vocab_size, "inner": c.inner_size,
        "conv": c.conv_size, "taps": c.conv_kernel, "ssm_heads": c.num_heads, "ssm_dim": c.head_dim,
        "states": c.state_size, "groups": c.n_groups, "norm_groups": c.norm_groups, "eps": c.layer_norm_epsilon,
    }  # fmt: skip
    return Packed(
        "nlrl_bimamba_step",
        sizes,
        table(model.embed_tokens.weight),
        panels(model.lm_head.weight * model.norm.weight, lanes),
        [packed(layer) for layer in model.layers],
        windows_and_states,
    )


def _dense(linear: nn.Module) -> Tensor:
    """A projection as a plain `(outputs, inputs)` matrix."""
    if isinstance(linear, PackedFBILinear):
        return linear.alpha * unpack_signs(linear.bits, linear.inputs, torch.float32) + linear.beta
    return linear.dense() if isinstance(linear, FBILinear) else linear.weight  # pyright: ignore[reportReturnType]


def hymba(model: HymbaNetwork, lanes: int) -> Packed:
    c = model.config
    model._meta.refresh(model)  # what the meta tokens leave is in the states, and follows the weights too

    def packed(layer) -> Layer:
        mixer = layer.mixer
        in_proj = mixer.in_proj.weight * layer.mixer_norm.weight
        if mixer.attention is not None:
            in_proj = scaled_queries(in_proj, mixer.attention.sizes[0], c.head_dim)
        norms = (mixer.attention_norm.weight / 2, mixer.mamba_norm.weight / 2) if mixer.averages else (None, None)
        heads = (None,) * 10 if mixer.mamba is None else _mamba(mixer.mamba, lanes)
        return panels(in_proj, lanes), *heads, *norms, panels(mixer.out_proj.weight, lanes), *gated(layer, lanes)

    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotary(x, cos, sin, False)

    return Packed(
        "nlrl_hymba_step",
        _hymba_sizes(c),
        table(model.embed_tokens.weight),
        panels(model.lm_head.weight * model.norm.weight, lanes),
        [packed(layer) for layer in model.layers],
        hymba_state,
        lambda count: turn_table(turn, {"rope_theta": c.rope_base}, c.head_dim, count, False),
        tuple(number for layer in range(c.num_hidden_layers) for number in _place(c, layer)),
    )


def _mamba(mamba, lanes: int) -> Layer:
    return (
        table(mamba.conv_weight.T),
        table(mamba.conv_bias),
        panels(mamba.x_proj.weight, lanes),
        table(mamba.dt_norm.weight),
        table(mamba.B_norm.weight),
        table(mamba.C_norm.weight),
        panels(mamba.dt_proj.weight, lanes),
        _padded(mamba.dt_proj.bias, 2 * lanes),
        -mamba.A_log.float().exp(),
        _padded(mamba.D, 2 * lanes),
    )


def _padded(vector: Tensor, multiple: int) -> Tensor:
    return nn.functional.pad(vector.float(), (0, -len(vector) % multiple))


def _hymba_sizes(c) -> dict[str, Any]:
    return {
        "layers": c.num_hidden_layers, "hidden": c.hidden_size, "intermediate": c.intermediate_size,
        "vocab": c.vocab_size, "heads": c.num_attention_heads, "kv_heads": c.num_key_value_heads,
        "key_dim": c.head_dim, "value_dim": c.v_head_dim, "meta": c.num_memory_tokens, "inner": c.d_inner,
        "taps": c.mamba_d_conv, "states": c.mamba_d_state, "rank": c.mamba_dt_rank, "reach": c.reach,
        "eps": c.rms_norm_eps,
    }  # fmt: skip


def _place(c, layer: int) -> tuple[int, ...]:
    """Fields of `HymbaPlace`."""
    with_mamba = (1, c.ssm_layers.index(layer)) if layer in c.ssm_layers else (0, 0)
    if layer not in c.attention_layers:
        return 0, with_mamba[0], 0, 0, 0, 0, with_mamba[1]
    source, is_global = c.kv_source[layer], layer in c.global_attn_idx
    alike = [i for i in c.kv_layers if (i in c.global_attn_idx) == is_global]
    place = c.kv_layers.index(source), alike.index(source)
    return 1, with_mamba[0], int(source == layer), int(is_global), *place, with_mamba[1]
