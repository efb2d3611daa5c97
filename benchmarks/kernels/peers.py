"""Other implementations of our ops, with our ops' named arguments. A package is imported when one of them is called.

Each reads its inputs in the memory order it is made for: `prepare` copies them into that order before the clock runs.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.benchmarks.kernels import attention_peers as attention
from nlrl.kernels.adam_normalise.reference import SMALLEST_NORM
from nlrl.kernels.bit_linear.reference import unpack_signs
from nlrl.kernels.paged_attention.reference import PAGE
from nlrl.kernels.peers import PEERS, SSD_CHUNK

Inputs = dict[str, Any]
Shape = dict[str, Any]


@dataclass(frozen=True)
class BenchPeer:
    """One implementation."""

    package: str
    call: Callable[..., Any]
    """Takes what `prepare` made, gives what the op gives."""
    fits: Callable[[Shape], bool] = lambda shape: True
    """Which shapes it can do; those with `documents` hold several texts in a row."""
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs
    joined: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda gradients: gradients
    """Turns gradients of the prepared arguments into those of the op's."""
    same: bool = True
    """False: it does less than the op. It is timed as a yardstick, and its result is not compared."""
    through: tuple[str, ...] | None = None
    """Outputs whose gradients its backward looks at, if those are not all; the others are held to nothing."""

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def ordered(inputs: Inputs, **order: tuple[int, ...]) -> Inputs:
    """The same tensors, those named with their memory in the order of these dimensions."""

    def moved(value: Tensor, dims: tuple[int, ...]) -> Tensor:
        back = sorted(range(len(dims)), key=dims.__getitem__)
        return value.permute(dims).contiguous().permute(back)

    return inputs | {name: moved(inputs[name], dims) for name, dims in order.items() if inputs.get(name) is not None}


def served(op: str, provider: str, fits: Callable[[Shape], bool]) -> BenchPeer:
    """A peer that can also take the op's place (`nlrl.kernels.peers`)."""
    peer = PEERS[op][provider]
    return BenchPeer(peer.package, peer.call, fits)


def _whole(shape: Shape) -> bool:
    return shape["time"] > 1 and not shape.get("documents")


def _sequence(shape: Shape) -> bool:
    return shape["time"] > 1


def _token(shape: Shape) -> bool:
    return shape["time"] == 1


def _adamw(inputs: Inputs) -> None:
    torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
        [inputs["weight"]], [inputs["grad"]], [inputs["exp_avg"]], [inputs["exp_avg_sq"]], [], [inputs["step"]],
        lr=inputs["learning_rate"], beta1=inputs["betas"][0], beta2=inputs["betas"][1], weight_decay=0.0,
        eps=inputs["eps"], amsgrad=False, maximize=False,
    )  # fmt: skip


def adamw_alone(**inputs: Any) -> None:
    _adamw(inputs)


def adamw_and_norm(**inputs: Any) -> None:
    _adamw(inputs)
    weight = inputs["weight"]
    weight.div_(torch.linalg.vector_norm(weight, dim=inputs["axis"], keepdim=True).clamp_min_(SMALLEST_NORM))
    if inputs.get("rounded") is not None:
        inputs["rounded"].copy_(weight)


def fla_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from fla.modules.rotary import rotary_embedding

    return rotary_embedding(x, cos[0, :, 0], sin[0, :, 0])


def _halves(inputs: Inputs) -> Inputs:
    up, gate = inputs["up_gate"].chunk(2, -1)
    return {"up": up.contiguous(), "gate": gate.contiguous()}


def _whole_gradient(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"up_gate": torch.cat((gradients["up"], gradients["gate"]), -1)}


def liger_swiglu(up: Tensor, gate: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)  # pyright: ignore[reportReturnType]


def fla_swiglu(up: Tensor, gate: Tensor) -> Tensor:
    from fla.modules.activations import swiglu

    return swiglu(gate, up)


def fla_conv(x, weight, bias, position_ids) -> tuple[Tensor, Tensor]:
    from fla.modules.convolution import causal_conv1d

    y = causal_conv1d(x, weight, bias, activation=None)
    return (y[0] if isinstance(y, tuple) else y), x[:, 1 - weight.shape[1] :]


def cuda_conv(x, weight, bias, position_ids) -> tuple[Tensor, Tensor]:
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore

    y = causal_conv1d_fn(x.transpose(1, 2), weight, bias)
    return y.transpose(1, 2), x[:, 1 - weight.shape[1] :]


def _conv_update(update: Callable, x, weight, bias, window) -> tuple[Tensor, Tensor]:
    y = update(x[:, 0], window.transpose(1, 2), weight, bias, None)
    return y[:, None], window


def cuda_conv_update(x, weight, bias, position_ids, window) -> tuple[Tensor, Tensor]:
    from causal_conv1d import causal_conv1d_update

    return _conv_update(causal_conv1d_update, x, weight, bias, window)


def vllm_conv_update(x, weight, bias, position_ids, window) -> tuple[Tensor, Tensor]:
    from vllm.model_executor.layers.mamba.ops.causal_conv1d import causal_conv1d_update

    return _conv_update(causal_conv1d_update, x, weight, bias, window)


def _window_by_channel(inputs: Inputs) -> Inputs:
    return ordered(inputs, window=(0, 2, 1))


def mamba_scan(x, delta, A, B, C, D, position_ids) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y, state = selective_scan_fn(*(part.transpose(1, 2) for part in (x, delta)), A, B.transpose(1, 2),
                                 C.transpose(1, 2), D, return_last_state=True)  # fmt: skip
    return y.transpose(1, 2), state


def _by_time(inputs: Inputs) -> Inputs:
    return ordered(inputs, x=(0, 2, 1), delta=(0, 2, 1), B=(0, 2, 1), C=(0, 2, 1))


def _scan_update(update: Callable, x, delta, A, B, C, D, state, **more) -> tuple[Tensor, Tensor]:
    y = update(state, x[:, 0], delta[:, 0], A, B[:, 0], C[:, 0], D=D, **more)
    return (more["out"] if y is None else y)[:, None], state


def mamba_scan_update(x, delta, A, B, C, D, position_ids, state) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return _scan_update(selective_state_update, x, delta, A, B, C, D, state)


def vllm_scan_update(x, delta, A, B, C, D, position_ids, state) -> tuple[Tensor, Tensor]:
    from vllm.model_executor.layers.mamba.ops.mamba_ssm import selective_state_update

    return _scan_update(selective_state_update, x, delta, A, B, C, D, state, out=torch.empty_like(x[:, 0]))


def separate_mamba1(**inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Our own convolution and scan, with PyTorch's calls between them."""
    from nlrl.kernels.mamba1_mixer.eager import compiled

    return compiled(**inputs)


def mamba_mixer(
    x, gate, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, dt_bias, A_log, D, position_ids
) -> tuple[Tensor, Tensor, Tensor]:
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    from nlrl.kernels.mamba1_mixer.reference import projected

    u = causal_conv1d_fn(x.transpose(1, 2), conv_weight, conv_bias, activation="silu")
    maps = projected(u.transpose(1, 2), x_proj, (dt_norm, B_norm, C_norm), dt_proj.shape[1], 1e-6)
    d, B, C = (part.transpose(1, 2) for part in maps)
    y, state = selective_scan_fn(u, dt_proj @ d, -A_log.float().exp(), B.contiguous(), C.contiguous(), D,
                                 gate.transpose(1, 2), dt_bias, True, True)  # fmt: skip
    return y.transpose(1, 2), x[:, 1 - conv_weight.shape[1] :], state


def separate_mamba2(**inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Our own convolution and recurrence, with PyTorch's calls around them."""
    from nlrl.kernels.mamba2_mixer.eager import compiled

    return compiled(**inputs)


def mamba2_split(
    projected, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, position_ids, eps, groups
) -> tuple[Tensor, Tensor, Tensor]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined

    head_dim, first = len(norm_weight) // len(D), len(norm_weight)
    y, state = mamba_split_conv1d_scan_combined(
        projected, conv_weight, conv_bias, dt_bias, -A_log.float().exp(), D, SSD_CHUNK, return_final_states=True,
        activation="silu", rmsnorm_weight=norm_weight, rmsnorm_eps=eps, headdim=head_dim, ngroups=groups,
        norm_before_gate=False,
    )  # fmt: skip
    return y, projected[:, 1 - conv_weight.shape[1] :, first : first + len(conv_weight)], state


def _mixer_by_time(inputs: Inputs) -> Inputs:
    return ordered(inputs, x=(0, 2, 1), gate=(0, 2, 1))


def mamba_ssd(x, dt, A, B, C, position_ids, D) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(x, dt, A, B, C, SSD_CHUNK, D=D, return_final_states=True)


def _with_bias(inputs: Inputs) -> Inputs:
    """The kernels look whether the bias of dt differs within a head, even if there is none."""
    return inputs | {"bias": torch.zeros_like(inputs["A"])}


def _ssd_update(update: Callable, x, dt, A, B, C, state, D, bias, **more) -> tuple[Tensor, Tensor]:
    """A, D, dt and its bias are the same for all channels of a head: strides of zero tell the kernel so."""
    heads, head_dim, states = state.shape[1:]
    step = dt[:, 0, :, None].expand(-1, -1, head_dim)
    decay, skip = A[:, None, None].expand(heads, head_dim, states), D[:, None].expand(heads, head_dim)
    more["dt_bias"] = bias[:, None].expand(heads, head_dim)
    y = update(state, x[:, 0], step, decay, B[:, 0], C[:, 0], D=skip, **more)
    return (more["out"] if y is None else y)[:, None], state


def mamba_ssd_update(x, dt, A, B, C, position_ids, state, D, bias, overwrite=True) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return _ssd_update(selective_state_update, x, dt, A, B, C, state, D, bias)


def vllm_ssd_update(x, dt, A, B, C, position_ids, state, D, bias, overwrite=True) -> tuple[Tensor, Tensor]:
    from vllm.model_executor.layers.mamba.ops.mamba_ssm import selective_state_update

    return _ssd_update(selective_state_update, x, dt, A, B, C, state, D, bias, out=torch.empty_like(x[:, 0]))


def _one_head_a_key(shape: Shape) -> bool:
    return shape["kv_heads"] == shape["v_heads"] and not shape.get("prefix")


def _unpaged(inputs: Inputs) -> Inputs:
    """Keys and values of every row side by side, which no engine has: the best that dense attention could do."""

    def gathered(pool: Tensor) -> Tensor:
        pages = pool[inputs["table"]].transpose(1, 2).flatten(2, 3)
        return pages[:, :, :length].contiguous()

    length = int(inputs["positions"][0]) + 1
    keys, values = gathered(inputs["keys"]), gathered(inputs["values"])
    last = (inputs["positions"] // PAGE * PAGE + inputs["positions"] % PAGE)[0]
    keys[:, :, last], values[:, :, last] = inputs["key"], inputs["value"]
    return {"query": inputs["query"][:, :, None], "dense_keys": keys, "dense_values": values}


def dense_sdpa(query: Tensor, dense_keys: Tensor, dense_values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, dense_keys, dense_values, enable_gqa=True)[:, :, 0]


def liger_rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None):
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    if residual is None:
        return LigerRMSNormFunction.apply(x, weight, 1e-6, 0.0, "llama", False)
    return LigerFusedAddRMSNormFunction.apply(x, residual, weight, 1e-6, 0.0, "llama", False)


def liger_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Of equal weights, 1 each."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Loss

    found: Any = Loss.apply(hidden, matrix, targets, None, None, -100, 0.0, 0.0, "sum")
    return (found[0] if isinstance(found, tuple) else found).float()


def fla_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Of equal weights, 1 each."""
    from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

    return fused_linear_cross_entropy_loss(hidden, targets, matrix, reduction="sum").float()


def _dense_matrix(inputs: Inputs) -> Inputs:
    """x, and the matrix that signs, scales and shifts say."""
    x = inputs["x"]
    signs = unpack_signs(inputs["bits"], x.shape[1], x.dtype)
    return {"input": x, "weight": signs * inputs["alpha"] + inputs["beta"]}


def _gemlite_layer(inputs: Inputs) -> Inputs:
    """alpha x, and a layer that multiplies by the signs: its scales belong to outputs, so it does not do alpha."""
    from gemlite.core import DType, GemLiteLinearTriton

    x, kind = inputs["x"], {torch.float16: DType.FP16, torch.bfloat16: DType.BF16}[inputs["x"].dtype]
    signs = unpack_signs(inputs["bits"], x.shape[1], x.dtype)
    size = {"in_features": x.shape[1], "out_features": len(signs), "group_size": x.shape[1]}
    layer = GemLiteLinearTriton(W_nbits=1, input_dtype=kind, output_dtype=kind, **size)
    row = x.new_ones(len(signs), 1)
    layer.pack((signs > 0).to(torch.uint8), 2 * row, row / 2)
    return {"x": x * inputs["alpha"], "layer": layer}


def _one_row(shape: Shape) -> bool:
    """For more it tunes itself for half a minute a size; one row is what is compared."""
    return shape["rows"] == 1


def gemlite_linear(x: Tensor, layer: Any) -> Tensor:
    return layer(x)


_OUTPUT = ("y",)
"""The scan of Mamba-1 there takes no gradient of the last state (documented with `selective_scan_fn`)."""

PEERS_TIMED: dict[str, dict[str, BenchPeer]] = {
    "adam_normalise": {
        "fused AdamW alone": BenchPeer("torch", adamw_alone, same=False),
        "fused AdamW + norm": BenchPeer("torch", adamw_and_norm),
    },
    "bit_linear": {
        "matrix in 2 bytes": BenchPeer("torch", F.linear, prepare=_dense_matrix, same=False),
        "gemlite": BenchPeer("gemlite", gemlite_linear, _one_row, _gemlite_layer, same=False),
    },
    "linear_cross_entropy": {
        "liger_kernel": BenchPeer("liger_kernel", liger_cross_entropy),
        "fla": BenchPeer("fla", fla_cross_entropy),
    },
    "rms_norm": {"liger_kernel": BenchPeer("liger_kernel", liger_rms_norm)},
    "rotary": {"fla": BenchPeer("fla", fla_rotary)},
    "swiglu": {
        "liger_kernel": BenchPeer("liger_kernel", liger_swiglu, prepare=_halves, joined=_whole_gradient),
        "fla": BenchPeer("fla", fla_swiglu, prepare=_halves, joined=_whole_gradient),
    },
    "causal_conv1d": {
        "causal_conv1d kernel": BenchPeer("causal_conv1d", cuda_conv, _whole),
        "causal_conv1d": served("causal_conv1d", "causal_conv1d", _sequence),
        "fla": BenchPeer("fla", fla_conv, _whole),
        "causal_conv1d update": BenchPeer("causal_conv1d", cuda_conv_update, _token, _window_by_channel),
        "vllm": BenchPeer("vllm", vllm_conv_update, _token, _window_by_channel),
    },
    "selective_scan": {
        "mamba_ssm": BenchPeer("mamba_ssm", mamba_scan, _whole, _by_time, through=_OUTPUT),
        "mamba_ssm update": BenchPeer("mamba_ssm", mamba_scan_update, _token),
        "vllm": BenchPeer("vllm", vllm_scan_update, _token),
    },
    "mamba1_mixer": {
        "separate calls": BenchPeer("torch", separate_mamba1),
        "mamba_ssm": BenchPeer("mamba_ssm", mamba_mixer, _whole, _mixer_by_time, through=_OUTPUT),
    },
    "mamba2_mixer": {
        "separate calls": BenchPeer("torch", separate_mamba2),
        "mamba_ssm": BenchPeer("mamba_ssm", mamba2_split, _whole),
    },
    "ssd": {
        "mamba_ssm kernel": BenchPeer("mamba_ssm", mamba_ssd, _whole),
        "mamba_ssm": served("ssd", "mamba_ssm", _sequence),
        "mamba_ssm update": BenchPeer("mamba_ssm", mamba_ssd_update, _token, _with_bias),
        "vllm": BenchPeer("vllm", vllm_ssd_update, _token, _with_bias),
    },
    "diff_attention": {
        name: BenchPeer("torch", call, fits, attention.maps, attention.joined_maps)
        for name, call, fits in (
            ("2 x sdpa", attention.two_sdpa, lambda shape: not shape.get("documents")),
            ("2 x flex", attention.two_flex, attention.compiled_soon),
        )
    }
    | {"composed": served("diff_attention", "composed", _whole)},
    "diff_attention_v2": {"composed": served("diff_attention_v2", "composed", _whole)},
    "prefix_attention": {
        "flex": BenchPeer(
            "torch",
            attention.prefix_flex,
            attention.compiled_soon,
            attention.behind_prefix,
            attention.prefix_apart,
        ),
    },
    "paged_attention": {
        "sdpa, dense": BenchPeer("torch", dense_sdpa, _one_head_a_key, _unpaged),
    },
    "sample_head": {"two launches": served("sample_head", "two launches", lambda shape: True)},
}
"""By op, then by provider."""
