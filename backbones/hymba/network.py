"""Hymba (arXiv 2411.13676): attention heads and Mamba heads side by side, behind learned meta tokens.

1. A layer is `x + mixer(norm(x))`, then `x + mlp(norm(x))`. One matrix of the mixer feeds both kinds of heads; their
   outputs, equally wide, are each normalised with learned scales and averaged (equation 3; the division by 2 is in
   NVIDIA's code).
2. Attention: queries and keys have `head_dim`, values `v_head_dim` channels a head. Few layers see the whole text, the
   others a window; some of these use the keys and values of the layer before.
3. Mamba-1 heads: a short convolution, then a recurrence whose step size, input and output maps depend on the token
   (equation 2; low-rank step sizes, the convolution, the skip D and the norms on step, B and C are in the code alone).
4. Meta tokens are learned vectors that stand before every text at positions 0 .. M-1, so text position p is turned as
   M + p. Nothing before them exists: what they leave behind (keys and values, convolution inputs, recurrent states) is
   computed from the weights alone, once a call for training, once for each version of the weights for decoding, and
   every document begins from it.

Paper and code disagree on the width of the values, the attention scale 1 / sqrt(head_dim), the sharing groups and the
window's size (W + 1 keys while training); the code is followed, as the published weights were trained with it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nlrl import kernels
from nlrl.backbones.hymba.fields import HymbaFields
from nlrl.backbones.hymba.places import Call, check, masks, spans_of, visible_in_call, write
from nlrl.backbones.hymba.prefix import MetaTokens, Prefix
from nlrl.backbones.hymba.state import HymbaState, PagedHymbaState
from nlrl.backbones.network import CheckpointedLayer, Network
from nlrl.backbones.rotary import angles, frequencies, rotary
from nlrl.kernels.prefix_attention.eager import masked_attention


class Writer(nn.Linear):
    """A matrix that writes into the residual stream."""


class Seen(NamedTuple):
    """Keys and values that a layer's queries meet; where they are shared, more than one layer's."""

    keys: list[Tensor]
    """Each `(batch or 1, kv_heads, n, head_dim)`: meta tokens, earlier text, the call's own tokens."""
    values: list[Tensor]

    def add(self, keys: Tensor, values: Tensor) -> None:
        self.keys.append(keys)
        self.values.append(values)


class Left(NamedTuple):
    """What a layer leaves for later calls."""

    key: Tensor | None = None
    """`(batch, kv_heads, time, head_dim)`."""
    value: Tensor | None = None
    conv: Tensor | None = None
    """`(batch, d_conv - 1, d_inner)`."""
    ssm: Tensor | None = None
    """`(batch, d_inner, d_state)`."""


class Shared(NamedTuple):
    """What every layer of one call needs beside the hidden states."""

    cos: Tensor
    sin: Tensor
    positions: Tensor
    whole: Tensor | None
    """bool `(batch, 1, time, keys)`: what global layers see, in the order of `Seen`. None where there are `spans`, and
    where the call `decodes` or `extends`."""
    window: Tensor | None
    """The same for windowed layers."""
    spans: tuple[Tensor | None, Tensor | None] | None
    """Of the call's own tokens the first that each sees, `(batch, time)`, in global and in windowed layers (None: the
    first of all), where nothing but them and the meta tokens is seen and a kernel skips what masks would hide."""
    call: Call
    prefix: Prefix
    state: HymbaState | None
    decodes: bool
    """One new token a row behind a state: an op of its own attends to it, which needs neither masks nor spans."""
    extends: bool
    """The same for several: `kernels.extend_attention`."""


class Mamba(nn.Module):
    """The Mamba-1 heads between the mixer's matrices."""

    def __init__(self, config: HymbaFields, layer: int):
        super().__init__()
        width, states, rank = config.d_inner, config.mamba_d_state, config.mamba_dt_rank
        self.index = config.ssm_layers.index(layer)
        self.conv_weight = nn.Parameter(torch.empty(width, config.mamba_d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(width))
        self.x_proj = nn.Linear(width, rank + 2 * states, bias=False)
        self.dt_norm = nn.RMSNorm(rank, config.rms_norm_eps)
        self.B_norm = nn.RMSNorm(states, config.rms_norm_eps)
        self.C_norm = nn.RMSNorm(states, config.rms_norm_eps)
        self.dt_proj = nn.Linear(rank, width)
        self.A_log = nn.Parameter(torch.zeros(width, states))
        self.D = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor, shared: Shared) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x, gate: `(batch, time, d_inner)`. Returns as much, and what `Left` keeps: nothing if it is kept already."""
        if steps_alone(x, shared.state):
            return self._step(x[:, 0], gate[:, 0], shared)[:, None], None, None
        i, state, prefix = self.index, shared.state, shared.prefix
        before = (None, None) if state is None else (state.conv[i], state.ssm[i])
        first = (None if part is None else part[i] for part in (prefix.conv, prefix.ssm))
        eps = self.dt_norm.eps
        return kernels.mamba1_mixer(x, gate, *self._weights(), shared.positions, eps, *before, *first)  # pyright: ignore

    def _weights(self) -> tuple[Tensor, ...]:
        """In the order of `kernels.mamba1_mixer`."""
        norms = self.dt_norm.weight, self.B_norm.weight, self.C_norm.weight
        steps = self.dt_proj.weight, self.dt_proj.bias
        return self.conv_weight, self.conv_bias, self.x_proj.weight, *norms, *steps, self.A_log, self.D

    def _step(self, x: Tensor, gate: Tensor, shared: Shared) -> Tensor:
        """One new token a row, `(batch, d_inner)`; the state is written over."""
        i, state = self.index, shared.state
        assert state is not None
        first = (None if part is None else part[i] for part in (state.meta_conv, state.meta_ssm))
        weights, where = self._weights(), shared.positions[:, 0]
        return kernels.mamba1_step(x, gate, state.conv[i], state.ssm[i], *weights, where, self.dt_norm.eps, *first)

    def keep(self, left: Left, state: HymbaState) -> None:
        if left.conv is not None and left.ssm is not None:
            state.conv[self.index].copy_(left.conv)
            state.ssm[self.index].copy_(left.ssm)


class Attention(nn.Module):
    """The attention heads between the mixer's matrices; it has no weights of its own."""

    def __init__(self, config: HymbaFields, layer: int):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.v_head_dim = config.head_dim, config.v_head_dim
        self.is_global = layer in config.global_attn_idx
        source = config.kv_source[layer]
        self.owns, self.reach = source == layer, config.reach
        self.reads_last = layer == max(i for i, other in config.kv_source.items() if other == source)
        alike = [i for i in config.kv_layers if (i in config.global_attn_idx) == self.is_global]
        self.index, self.index_of_kind = config.kv_layers.index(source), alike.index(source)
        kv = (self.kv_heads * self.head_dim, self.kv_heads * self.v_head_dim) if self.owns else ()
        self.sizes = (self.heads * self.head_dim, *kv)
        self.width = self.heads * self.v_head_dim

    def forward(self, parts: tuple[Tensor, ...], shared: Shared, seen: Seen | None) -> tuple[Tensor, Seen, Left]:
        """Args: parts: queries, and keys and values where the layer has its own, else `seen` holds the producer's.
        Returns: `(batch, time, width)`, what was seen, and what is left."""
        if shared.decodes:
            return self._decode(parts, shared, seen)
        left = Left()
        if self.owns:
            key = rotary(parts[1].unflatten(-1, (-1, self.head_dim)), shared.cos, shared.sin, interleaved=False)
            value = parts[2].unflatten(-1, (-1, self.v_head_dim))
            left = Left(key.transpose(1, 2), value.transpose(1, 2))
            seen = self._seen(key.transpose(1, 2), value.transpose(1, 2), shared)
        assert seen is not None
        query = rotary(parts[0].unflatten(-1, (-1, self.head_dim)), shared.cos, shared.sin, interleaved=False)
        if shared.spans is not None:
            return attend_spans(query, seen, shared.spans[0 if self.is_global else 1]), seen, left
        if shared.extends:
            return self._extend(query, seen, shared), seen, left
        mask = shared.whole if self.is_global else shared.window
        assert mask is not None
        return attend(query, seen, mask), seen, left

    def _decode(self, parts: tuple[Tensor, ...], shared: Shared, seen: Seen | None) -> tuple[Tensor, Seen, Left]:
        """`forward` for one new token a row. What is seen is the token's own key, not yet turned, and value; what the
        state holds of it is written by the last layer that reads there, after reading."""
        if self.owns:
            key, value = parts[1].unflatten(-1, (-1, self.head_dim)), parts[2].unflatten(-1, (-1, self.v_head_dim))
            seen = Seen([key[:, 0]], [value[:, 0]])
        assert seen is not None
        assert shared.state is not None
        first = shared.prefix.of(self.index)
        new = parts[0].unflatten(-1, (-1, self.head_dim))[:, 0], seen.keys[0], seen.values[0]
        given, extras = (*new, shared.positions[:, 0]), (*first, shared.cos, shared.sin)
        if self.is_global:
            y = shared.state.attend_whole(self.index_of_kind, *given, extras)
        else:
            y = shared.state.attend_ring(self.index_of_kind, *given, self.reach, self.reads_last, extras)
        return y.flatten(1)[:, None], seen, Left()

    def _extend(self, query: Tensor, seen: Seen, shared: Shared) -> Tensor:
        """Several new tokens a row go on from a state, `(batch, time, width)`; the last that is seen is their own."""
        assert shared.state is not None
        own = seen.keys[-1].transpose(1, 2), seen.values[-1].transpose(1, 2)
        reach = None if self.is_global else self.reach
        first = shared.prefix.of(self.index)
        return shared.state.extend(self.index_of_kind, query, *own, shared.call, reach, first).flatten(2)

    def _seen(self, key: Tensor, value: Tensor, shared: Shared) -> Seen:
        """Meta tokens, what the state holds, and the call's own tokens, which global layers write into the state first;
        windowed ones write at the end of the call (`keep`), as a ring's new tokens replace old ones that the call's
        first tokens still see."""
        seen, prefix, state, i = Seen([], []), shared.prefix, shared.state, self.index_of_kind
        if prefix.keys is not None and prefix.values is not None:
            seen.add(prefix.keys[self.index][None], prefix.values[self.index][None])
        masked = shared.spans is None and not shared.extends
        if state is not None and self.is_global and masked:
            key, value = state.write_whole(i, key, value, shared.call)
        elif state is not None and self.is_global:
            state.keep_whole(i, key, value, shared.call)
        elif state is not None and masked:
            seen.add(state.ring_keys[i], state.ring_values[i])
        seen.add(key, value)
        return seen

    def keep(self, left: Left, state: HymbaState, call: Call) -> None:
        if left.key is not None and left.value is not None and not self.is_global:
            write(state.ring_keys[self.index_of_kind], left.key, call)
            write(state.ring_values[self.index_of_kind], left.value, call)


def attend_spans(query: Tensor, seen: Seen, starts: Tensor | None) -> Tensor:
    """The same where the meta tokens and a span of the call's own are seen.

    Args: starts: `(batch, time)`, as `Shared.spans` has them.
    """
    key, value = seen.keys[-1].transpose(1, 2), seen.values[-1].transpose(1, 2)
    prefix = (seen.keys[0][0], seen.values[0][0]) if len(seen.keys) > 1 else (None, None)
    return kernels.prefix_attention(query, key, value, *prefix, starts).flatten(2)


def attend(query: Tensor, seen: Seen, mask: Tensor) -> Tensor:
    """Softmax attention, scores divided by sqrt(head_dim).

    Args:
        query: `(batch, time, heads, head_dim)`; heads is a multiple of the keys' heads.
        mask: bool `(batch, 1, time, keys)`, True = may attend.
    Returns: `(batch, time, heads * v_head_dim)`.
    """
    keys, values = (
        torch.cat([part.to(query.dtype).expand(len(query), -1, -1, -1) for part in parts], 2) for parts in seen
    )
    return masked_attention(query.transpose(1, 2), keys, values, mask).transpose(1, 2).flatten(2)


class Mixer(nn.Module):
    """Both kinds of heads, or one (`HymbaFields.mixer`)."""

    def __init__(self, config: HymbaFields, layer: int):
        super().__init__()
        kind = config.mixers[layer]
        self.attention = Attention(config, layer) if kind != "mamba" else None
        self.mamba = Mamba(config, layer) if kind != "attention" else None
        attention_sizes = self.attention.sizes if self.attention is not None else ()
        mamba_sizes = (config.d_inner, config.d_inner) if self.mamba is not None else ()
        width = self.attention.width if self.attention is not None else config.d_inner
        self.sizes = (*attention_sizes, *mamba_sizes)
        self.in_proj = nn.Linear(config.hidden_size, sum(self.sizes), bias=False)
        self.averages = kind == "parallel"
        if self.averages:
            self.attention_norm = nn.RMSNorm(width, config.rms_norm_eps)
            self.mamba_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.out_proj = Writer(width, config.hidden_size, bias=False)

    def forward(self, u: Tensor, shared: Shared, seen: Seen | None) -> tuple[Tensor, Seen | None, Left]:
        parts = self.in_proj(u).split(self.sizes, -1)
        a = y = None
        left = Left()
        if self.attention is not None:
            a, seen, left = self.attention(parts, shared, seen)
        if self.mamba is not None:
            y, window, ssm = self.mamba(parts[-2], parts[-1], shared)
            left = left._replace(conv=window, ssm=ssm)
        if self.averages:
            weights = self.attention_norm.weight, self.mamba_norm.weight
            return self.out_proj(kernels.dual_norm(a, y, *weights, self.attention_norm.eps)), seen, left
        return self.out_proj(y if a is None else a), seen, left

    def keep(self, left: Left, state: HymbaState, call: Call) -> None:
        """Writes what a call leaves into the state (global layers have written their keys and values already)."""
        if self.attention is not None:
            self.attention.keep(left, state, call)
        if self.mamba is not None:
            self.mamba.keep(left, state)


class MLP(nn.Module):
    def __init__(self, config: HymbaFields):
        super().__init__()
        self.up_gate = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = Writer(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(kernels.swiglu(self.up_gate(x)))


class Layer(CheckpointedLayer):
    def __init__(self, config: HymbaFields, layer: int):
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer = Mixer(config, layer)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, added: Tensor | None, shared: Shared, seen: Seen | None
    ) -> tuple[Tensor, Tensor, Seen | None, Left]:
        """Takes and returns the residual stream with its last addend apart, which the norm behind it adds."""
        u, x = add_and_norm(x, added, self.mixer_norm)
        y, seen, left = self.mixer(u, shared, seen)
        g, x = add_and_norm(x, y, self.mlp_norm)
        return x, self.mlp(g), seen, left


def add_and_norm(x: Tensor, added: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """The norm of a sum, and the sum."""
    if added is None:
        return norm(x), x
    return kernels.rms_norm(added, norm.weight, norm.eps, x)  # pyright: ignore


def steps_alone(x: Tensor, state: HymbaState | None) -> bool:
    """Whether a call is one new token a row, and a kernel is made for that."""
    return x.is_cuda and x.shape[1] == 1 and state is not None and not torch.is_grad_enabled()


def takes_spans(x: Tensor, state: HymbaState | None) -> bool:
    """Whether a call's tokens see nothing but the meta tokens and each other, and a kernel is made for that."""
    return x.is_cuda and x.shape[1] > 1 and (state is None or state.fresh)


def goes_on(x: Tensor, state: HymbaState | None) -> bool:
    """Whether a call is several new tokens a row on top of a state, and a kernel is made for that."""
    return x.is_cuda and x.shape[1] > 1 and state is not None and not state.fresh and not torch.is_grad_enabled()


class HymbaNetwork(Network):
    """Hymba; see `Network` for its methods. `from_pretrained` reads NVIDIA's checkpoints too."""

    fields_class = HymbaFields
    recurrent = True
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HymbaFields):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        meta = torch.empty(config.num_memory_tokens, config.hidden_size)
        self.memory_tokens = nn.Parameter(meta) if config.num_memory_tokens else None
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._meta = MetaTokens()

    def hidden(self, input_ids, position_ids, mask=None, state: HymbaState | None = None) -> Tensor:
        if state is None:
            prefix = self.read_meta()
        else:
            self._meta.refresh(self)
            prefix = state.prefix
        x = self.embed_tokens(input_ids)
        shared = self._shared(x, position_ids, mask, state, prefix)
        x, added, left = self._run(x, shared, keeps=state is not None)
        for layer, one in zip(self.layers, left, strict=False):
            layer.mixer.keep(one, state, shared.call)  # pyright: ignore
        return add_and_norm(x, added, self.norm)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def new_state(self, batch: int, length: int, device=None, dtype=None) -> HymbaState:
        device, dtype = torch.device(device or self.device), dtype or self.dtype
        prefix = self._meta.prefix(self, device, dtype)
        return HymbaState.zeros(self.config, batch, length, prefix, device, dtype)

    def new_paged_state(self, batch, length, pages, device=None, dtype=None) -> PagedHymbaState:
        rows = self.new_state(batch, min(length, self.config.reach), device, dtype)
        return PagedHymbaState.of(rows, length, pages)

    def after_step(self) -> None:
        self._meta.forget()

    def train(self, mode: bool = True):
        self._meta.forget()
        return super().train(mode)

    def read_meta(self) -> Prefix:
        """Reads the meta tokens, with gradients where they are on."""
        if self.memory_tokens is None:
            return Prefix()
        x = self.memory_tokens[None]
        positions = torch.arange(x.shape[1], device=x.device)[None]
        shared = self._shared(x, positions - self.config.num_memory_tokens, None, None, Prefix())
        seen_all = visible_in_call(positions)
        spans = None if shared.spans is None else (None, None)
        shared = shared._replace(positions=positions, whole=seen_all, window=seen_all, spans=spans)
        left = self._run(x, shared, keeps=True)[2]

        def stacked(field: str) -> Tensor | None:
            parts = [getattr(one, field)[0] for one in left if getattr(one, field) is not None]
            return torch.stack(parts) if parts else None

        return Prefix(*map(stacked, ("key", "value", "conv", "ssm")))

    def _run(self, x: Tensor, shared: Shared, keeps: bool) -> tuple[Tensor, Tensor | None, list[Left]]:
        """All layers, as `Layer` returns them; and, if asked for, what each leaves (gradient checkpointing would
        otherwise save little)."""
        added, seen, left = None, None, []
        for layer in self.layers:
            x, added, seen, one = layer(x, added, shared, seen)
            left += [one] if keeps else []
        return x, added, left

    def _shared(self, x: Tensor, position_ids: Tensor, mask, state: HymbaState | None, prefix: Prefix) -> Shared:
        c, call = self.config, Call.of(position_ids)
        turns = frequencies(c.head_dim, {"rope_theta": c.rope_base}, x)
        cos, sin = angles(position_ids + c.num_memory_tokens, turns)
        spans, whole, window = None, None, None
        decodes, extends = state is not None and x.shape[1] == 1, goes_on(x, state)
        if decodes or extends:
            check(mask, state)
        elif takes_spans(x, state):
            spans = spans_of(call, mask, c.reach)
        else:
            whole, window = masks(call, mask, state, c.reach, c.num_memory_tokens)
        return Shared(cos, sin, position_ids, whole, window, spans, call, prefix, state, decodes, extends)
