"""What a machine allows: FLOPs of a token, bytes of a decoding step."""

from __future__ import annotations

from torch import nn

from nlrl.benchmarks.cache import footprint
from nlrl.benchmarks.serve_hymba import roofline as hymba_roofline
from nlrl.kernels.costs import cost

PEAK = 989e12
"""FLOP a second that NVIDIA names for an H100 SXM, bfloat16 without sparsity."""


def training_flops(model, time: int) -> float:
    """Of one token of a text of `time`, forward and backward: three times forward. Nothing is counted that is done
    again, nor are norms, gates, embedding and optimizer."""
    return 3 * forward_flops(model, time)


def forward_flops(model, time: int, head: bool = True) -> float:
    """Of one token, on average over a text: 2 for each weight of a matrix, and what `costs.py` of attention, scan and
    convolution say. head: whether the vocabulary's matrix is among them."""
    c = model.config
    within = sum(_weights(module) for name, module in model.named_modules() if name.rpartition(".")[2] != "lm_head")
    return 2 * within + 2 * c.vocab_size * c.hidden_size * head + MIXING[c.model_type](c, time) / time


def _weights(module: nn.Module) -> int:
    bits, weight = getattr(module, "bits", None), getattr(module, "weight", None)
    if bits is not None:
        return len(bits) * module.inputs  # pyright: ignore
    return weight.numel() if weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding) else 0


def _attention(c, time: int, prefix: int = 0, window: int = 0, value_dim: int = 0) -> float:
    return cost(
        "prefix_attention", "forward", 2, batch=1, time=time, heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads, key_dim=c.head_dim, value_dim=value_dim or c.head_dim, prefix=prefix,
        window=window,
    ).flops  # fmt: skip


def _transformer(c, time: int) -> float:
    return c.num_hidden_layers * _attention(c, time)


def _differential(c, time: int) -> float:
    op = "diff_attention" if c.version == 1 else "diff_attention_v2"
    shape = {"batch": 1, "time": time, "heads": c.num_attention_heads, "kv_heads": c.num_key_value_heads}
    return c.num_hidden_layers * cost(op, "forward", 2, width=c.head_dim, **shape).flops


def _mamba2(c, time: int) -> float:
    shape = {"heads": c.num_heads, "head_dim": c.head_dim, "groups": c.n_groups, "states": c.state_size}
    scan = cost("ssd", "forward", 2, batch=1, time=time, **shape).flops
    return c.num_hidden_layers * (scan + _convolution(c.conv_size, c.conv_kernel, time))


def _convolution(channels: int, taps: int, time: int) -> float:
    return cost("causal_conv1d", "forward", 2, batch=1, time=time, channels=channels, taps=taps).flops


def _hymba(c, time: int) -> float:
    whole = len(c.global_attn_idx)
    windowed = len(c.attention_layers) - whole
    attention = [_attention(c, time, c.num_memory_tokens, window, c.v_head_dim) for window in (0, c.reach)]
    scan = cost(
        "selective_scan", "forward", 2, batch=1, time=time, channels=c.d_inner, states=c.mamba_d_state
    ).flops + _convolution(c.d_inner, c.mamba_d_conv, time)
    return whole * attention[0] + windowed * attention[1] + len(c.ssm_layers) * scan


MIXING = {
    "transformer": _transformer, "ngpt": _transformer, "diff_transformer": _differential, "bimamba": _mamba2,
    "hymba": _hymba,
}  # fmt: skip


def weight_bytes(model) -> int:
    """That a decoding step reads: all but an embedding that is not the head too."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    tied = model.lm_head.weight is model.embed_tokens.weight
    return sum(tensor.nbytes for tensor in tensors.values()) - (0 if tied else model.embed_tokens.weight.nbytes)


def decoding_rate(model, batch: int, length: int, copy: float) -> float:
    """Tokens a second, if a step took the time of its bytes at the measured rate of copying:

        batch copy / (weights + batch (keys and values + 2 (states + inputs of convolutions)))

    Keys, values of `length` tokens are read, states read and written in the types that they are kept in (recurrent
    ones float32). Hymba's layers that share keys and values each read them, and its activations count
    (`serve_hymba.roofline`).
    """
    weights = weight_bytes(model)
    if model.config.model_type == "hymba":
        return hymba_roofline(model.config, weights, batch, length, copy)
    kept = footprint(model, length)
    return batch * copy / (weights + batch * (kept.kv + 2 * (kept.conv + kept.recurrent)))


def reading_rate(model, length: int, matmul: float) -> float:
    """Tokens a second of prompts of `length`, if all FLOPs of the layers ran at the measured rate of products."""
    return matmul / forward_flops(model, length, head=False)
