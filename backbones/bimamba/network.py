"""Mamba-2 (arXiv 2405.21060) and Bi-Mamba, its binary form (arXiv 2411.11843).

1. A layer is one mixer: h = h + Mixer(RMSNorm(h)). There is no feed-forward layer. The residual stream is float32.
2. A mixer projects its input to a gate z, to x, B and C, which a short convolution and SiLU pass, and to a step dt for
   each head. A head keeps a matrix S of head_dim * state_size numbers:

       S_t = exp(dt_t A) S_(t-1) + dt_t x_t B_t^T        y_t = S_t C_t + D x_t        dt = softplus(dt + dt_bias)

   with scalars A = -exp(A_log) and D for each head. B and C are shared by the heads of a group (one group in the
   papers). The gate comes before the norm: out = OutProj(RMSNorm(y * SiLU(z))).
3. Bi-Mamba makes `in_proj` and `out_proj` binary (`FBILinear`), with the rows that make B, C and dt. Everything else
   (embedding, convolution, norms, A, D, dt_bias, scales and shifts) keeps its precision.

"Bi" is for binary: texts are read in one direction. Where the papers' code and text differ the code is followed: scales
belong to input columns, sign gradients are not clipped, dt is not clamped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nlrl import kernels
from nlrl.backbones.bimamba.fbi_linear import FBILinear, PackedFBILinear
from nlrl.backbones.bimamba.fields import BiMambaFields
from nlrl.backbones.decode_state import Axes, DecodeState
from nlrl.backbones.network import CheckpointedLayer, Network


@dataclass
class BiMambaState(DecodeState):
    """As large for a long text as for a short one."""

    windows: Tensor
    """What the convolutions saw last, `(layers, batch, conv_kernel - 1, channels)`."""
    states: Tensor
    """S of every head, float32, `(layers, batch, heads, head_dim, state_size)`."""
    room: int
    AXES: ClassVar[dict[str, Axes]] = {"windows": (1, None), "states": (1, None)}

    @property
    def length(self) -> int:
        """What was asked for; there is room for any number of tokens."""
        return self.room


class Context(NamedTuple):
    """What every layer of one call needs beside the hidden states."""

    position_ids: Tensor
    state: BiMambaState | None


class RMSNorm(nn.Module):
    """Divides by the root mean square, of each of `groups` parts by itself; computes in float32, returns the dtype of
    its weight."""

    def __init__(self, size: int, eps: float, groups: int = 1):
        super().__init__()
        self.weight, self.eps, self.groups = nn.Parameter(torch.ones(size)), eps, groups

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(at_least_float32(x)).unflatten(-1, (self.groups, -1))
        wide = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (wide.flatten(-2) * self.weight).to(self.weight.dtype)


def steps_alone(x: Tensor, state: BiMambaState | None) -> bool:
    """Whether a call is one new token a row, and a kernel is made for that."""
    return x.is_cuda and x.shape[1] == 1 and state is not None and not torch.is_grad_enabled()


class Mixer(nn.Module):
    def __init__(self, config: BiMambaFields, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.sizes = (config.inner_size, config.conv_size, config.num_heads)
        self.in_proj = projection(config, config.hidden_size, sum(self.sizes))
        self.conv_weight = nn.Parameter(torch.empty(config.conv_size, config.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(config.conv_size)) if config.use_conv_bias else None
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads))
        self.A_log = nn.Parameter(torch.empty(config.num_heads))
        self.D = nn.Parameter(torch.empty(config.num_heads))
        self.norm = RMSNorm(config.inner_size, config.layer_norm_epsilon, config.norm_groups)
        self.out_proj = projection(config, config.inner_size, config.hidden_size)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if steps_alone(x, context.state):
            return self.out_proj(self._step(self.in_proj(x), context))
        return self.out_proj(self._mixed(self.in_proj(x), context))

    def _mixed(self, projected: Tensor, context: Context) -> Tensor:
        """Any number of tokens a row."""
        state, c, i = context.state, self.config, self.layer
        before = (None, None) if state is None else (state.windows[i], state.states[i])
        where = context.position_ids, c.layer_norm_epsilon, c.n_groups, c.norm_groups
        y, _window, _state = kernels.mamba2_mixer(
            projected, *self._weights(), *where, *before, c.chunk_size, overwrite=state is not None
        )
        return y

    def _weights(self) -> tuple[Tensor | None, ...]:
        """In the order of `kernels.mamba2_mixer`."""
        return self.conv_weight, self.conv_bias, self.A_log, self.D, self.dt_bias, self.norm.weight

    def _step(self, projected: Tensor, context: Context) -> Tensor:
        """One new token a row."""
        state, c, i = context.state, self.config, self.layer
        assert state is not None
        where = context.position_ids[:, 0], c.layer_norm_epsilon, c.n_groups, c.norm_groups
        held = state.windows[i], state.states[i]
        return kernels.mamba2_step(projected[:, 0], *held, *self._weights(), *where)[:, None]


class Layer(CheckpointedLayer):
    def __init__(self, config: BiMambaFields, layer: int):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = Mixer(config, layer)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        return h + self.mixer(self.norm(h), context)


class BiMambaNetwork(Network):
    """Mamba-2, binary or not; see `Network` for its methods."""

    fields_class = BiMambaFields
    recurrent = True
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: BiMambaFields):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def hidden(self, input_ids, position_ids, mask=None, state=None) -> Tensor:
        """As `Network.hidden`. The mask is not needed: a document's positions begin at 0."""
        h = self.embed_tokens(input_ids)
        h = h.to(at_least_float32(h))
        assert state is None or isinstance(state, BiMambaState)
        context = Context(position_ids, state)
        for layer in self.layers:
            h = layer(h, context)
        return self.norm(h)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def new_state(self, batch: int, length: int, device=None, dtype=None) -> BiMambaState:
        """See `Network.new_state`. dtype is that of the windows; states are float32 at least."""
        c, device, dtype = self.config, device or self.device, dtype or self.dtype
        windows = torch.zeros(c.num_hidden_layers, batch, c.conv_kernel - 1, c.conv_size, device=device, dtype=dtype)
        shape = (c.num_hidden_layers, batch, c.num_heads, c.head_dim, c.state_size)
        return BiMambaState(windows, torch.zeros(shape, device=device, dtype=at_least_float32(windows)), length)

    def new_paged_state(self, batch, length, pages, device=None, dtype=None) -> BiMambaState:
        """See `Network`. Nothing here grows with a text, so there are no pages."""
        return self.new_state(batch, length, device, dtype)


def projection(config: BiMambaFields, inputs: int, outputs: int) -> FBILinear | PackedFBILinear | nn.Linear:
    if config.packed:
        return PackedFBILinear(inputs, outputs)
    return FBILinear(inputs, outputs) if config.binary else nn.Linear(inputs, outputs, bias=False)


def at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
