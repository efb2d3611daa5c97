"""The Differential Transformer: a decoder whose heads subtract one attention map from another, so that what both give
to irrelevant tokens cancels.

V1 (arXiv 2410.05258, equations 1 to 3; l is the layer's number from 0, d the width of a query):

    head  = (1 - l0) * RMSNorm( (softmax(Q1 K1' / sqrt(d)) - lambda * softmax(Q2 K2' / sqrt(d))) V ),  V of width 2 d
    lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + l0,      l0 = 0.8 - 0.6 exp(-0.3 l),      one lambda a layer

V2 (the authors' note of January 2026): `head = A1 - sigmoid(x W_lambda) * A2`, a gate for every token and head, plain
attention with twice the query heads, no norm of heads, no lambda vectors.

Where sources disagree:

* The paper numbers layers from 1 and writes l - 1; the authors' code counts from 0. Both mean the l0 above.
* The two maps of head i are the projected heads 2i and 2i + 1; in V2 they share a group of keys. Splitting all heads
  into a first and a second half instead would pair heads of different groups.
* With fewer key than query heads the authors' plain variant (`multihead_diffattn`) repeats keys before it splits the
  maps, which gives both maps of a head the same key. Ours splits and then repeats, as `multihead_flashdiff_1` does.
* "GroupNorm" is an RMSNorm over the 2 d channels of each head, one weight for all heads of a layer, no mean.
* lambda is computed and applied in float32; the authors' code rounds it to the activations' type first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nlrl import kernels
from nlrl.backbones.attention import (
    Context,
    attend,
    context,
    decode_pages,
    decodes_pages,
    extend_pages,
    first_visible,
)
from nlrl.backbones.diff_transformer.fields import DiffTransformerFields
from nlrl.backbones.kv_cache import KVCache
from nlrl.backbones.network import CheckpointedLayer, Network
from nlrl.backbones.rotary import frequencies, rotary
from nlrl.kernels.diff_attention.eager import both_maps, head_norm


class Writer(nn.Linear):
    """A matrix that writes into the residual stream."""


class Lambda(nn.Module):
    """How much of the second map a layer subtracts (equation 2); a scalar, unbounded, which may be negative."""

    def __init__(self, head_dim: int, depth: int, std: float):
        super().__init__()
        self.first = 0.8 - 0.6 * math.exp(-0.3 * depth)
        """Its value where the vectors are zero, `lambda_init`; fixed."""
        self.std = std
        self.q1, self.k1, self.q2, self.k2 = (nn.Parameter(torch.empty(head_dim)) for _ in range(4))

    def forward(self) -> Tensor:
        wide = torch.promote_types(self.q1.dtype, torch.float32)
        q1, k1, q2, k2 = (vector.to(wide) for vector in (self.q1, self.k1, self.q2, self.k2))
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.first


def differential(query: Tensor, key: Tensor, value: Tensor, lambda_: Tensor, layer: int, context: Context) -> Tensor:
    """`(softmax(Q1 K1' / sqrt(d)) - lambda softmax(Q2 K2' / sqrt(d))) V` of every differential head.

    Args:
        query: `(batch, time, 2 heads, d)`; 2i and 2i + 1 belong to head i.
        key: `(batch, time, 2 kv_heads, d)`, paired in the same way; heads is a multiple of kv_heads.
        value: `(batch, time, kv_heads, 2 d)`.
        lambda_: `()`, float32 at least.
    Returns: `(batch, time, heads, 2 d)`, in the dtype of lambda_.
    """
    if decodes_pages(query, context):
        maps = query.unflatten(2, (value.shape[2], -1, 2)).transpose(3, 4).flatten(2, 4)
        first, second = decode_pages(maps, key, value, layer, context).unflatten(1, (value.shape[2], 2, -1)).unbind(2)
        return (first.to(lambda_.dtype) - lambda_ * second.to(lambda_.dtype)).flatten(1, 2)[:, None]
    if context.goes_on is not None:
        maps = query.unflatten(2, (value.shape[2], -1, 2)).transpose(3, 4).flatten(2, 4)
        both = extend_pages(maps, key, value, layer, context).unflatten(2, (value.shape[2], 2, -1))
        first, second = both.to(lambda_.dtype).unbind(3)
        return (first - lambda_ * second).flatten(2, 3)
    if context.state is None:
        keys, values = key.transpose(1, 2), value.transpose(1, 2)
    else:
        keys, values = context.state.write(layer, key, value, context.where)
        query = query.to(keys.dtype)
    # (batch, kv_heads, maps, heads of a group, time, d)
    query = query.transpose(1, 2).unflatten(1, (values.shape[1], -1, 2)).transpose(2, 3)
    if context.mask is None or query.shape[4] > 1:
        first, second = both_maps(query, keys, values, context.mask)
        y = first.to(lambda_.dtype) - lambda_ * second.to(lambda_.dtype)
    else:
        y = _one_token(query, keys, values, lambda_, context.mask)
    return y.flatten(1, 2).transpose(1, 2)


def _one_token(query: Tensor, keys: Tensor, values: Tensor, lambda_: Tensor, mask: Tensor) -> Tensor:
    """One new token a row: the maps are subtracted first, so values are read once. `(batch, kv_heads, heads of a group,
    1, 2 d)`."""
    scores = (query[..., 0, :] * query.shape[-1] ** -0.5) @ keys.unflatten(1, (-1, 2)).transpose(-1, -2)
    maps = scores.to(lambda_.dtype).masked_fill(~mask[:, :, None], -torch.inf).softmax(-1)
    difference = maps[:, :, 0] - lambda_ * maps[:, :, 1]
    return (difference.to(values.dtype) @ values)[..., None, :].to(lambda_.dtype)


class AttentionV1(nn.Module):
    def __init__(self, config: DiffTransformerFields, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps
        width = 2 * self.heads * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, width + 4 * self.kv_heads * self.head_dim, bias=False)
        self.lambda_ = Lambda(self.head_dim, layer, config.lambda_std)
        self.head_norm = nn.RMSNorm(2 * self.head_dim, config.rms_norm_eps)
        self.output = Writer(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        query_key, value = qkv.split((2 * (self.heads + self.kv_heads), 2 * self.kv_heads), 2)
        query_key = rotary(query_key, context.cos, context.sin, interleaved=True)
        query, key = query_key.split((2 * self.heads, 2 * self.kv_heads), 2)
        value = value.unflatten(2, (self.kv_heads, 2)).flatten(3)
        norm = self.head_norm.weight, 1 - self.lambda_.first, self.eps
        if context.state is None and (context.mask is None or context.starts is not None):
            y = kernels.diff_attention(query, key, value, self.lambda_(), *norm, context.starts)
        else:
            y = head_norm(differential(query, key, value, self.lambda_(), self.layer, context), *norm)
        return self.output(y.flatten(2).to(x.dtype))


class AttentionV2(nn.Module):
    def __init__(self, config: DiffTransformerFields, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width = self.heads * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, 2 * width + 2 * self.kv_heads * self.head_dim, bias=False)
        self.gate = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.output = Writer(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        query_key, value = qkv.split((2 * self.heads + self.kv_heads, self.kv_heads), 2)
        query_key = rotary(query_key, context.cos, context.sin, interleaved=True)
        query, key = query_key.split((2 * self.heads, self.kv_heads), 2)
        gate = self.gate(x).sigmoid()
        if context.state is None and (context.mask is None or context.starts is not None):
            y = kernels.diff_attention_v2(query, key, value, gate, context.starts)
        else:
            both = attend(query, key, value, self.layer, context).unflatten(-1, (self.heads, 2, self.head_dim))
            y = torch.addcmul(both[..., 0, :], gate[..., None].to(both.dtype), both[..., 1, :], value=-1)
        return self.output(y.flatten(2).to(x.dtype))


ATTENTION = {1: AttentionV1, 2: AttentionV2}


class MLP(nn.Module):
    def __init__(self, config: DiffTransformerFields):
        super().__init__()
        self.up_gate = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = Writer(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(kernels.swiglu(self.up_gate(x)))


class Layer(CheckpointedLayer):
    def __init__(self, config: DiffTransformerFields, layer: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = ATTENTION[config.version](config, layer)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.mlp(self.mlp_norm(x))


def takes_starts(x: Tensor, mask: Tensor | None, state) -> bool:
    """Whether kernels are to skip other documents instead of masking them."""
    return mask is not None and state is None and x.is_cuda


class DiffTransformerNetwork(Network):
    """The Differential Transformer; see `Network` for its methods and the configuration for what a head is."""

    fields_class = DiffTransformerFields
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DiffTransformerFields):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def new_state(self, batch: int, length: int, device=None, dtype=None) -> KVCache:
        """See `Network`. In V1 keys are `(layers, batch, 2 kv_heads, length, head_dim)` and values `(layers, batch,
        kv_heads, length, 2 head_dim)`: as many bytes as a plain Transformer of twice the heads keeps."""
        c = self.config
        if c.version == 2:
            return super().new_state(batch, length, device, dtype)  # pyright: ignore[reportReturnType]
        where = {"device": device or self.device, "dtype": dtype or self.dtype}
        keys = torch.zeros(c.num_hidden_layers, batch, 2 * c.num_key_value_heads, length, c.head_dim, **where)
        values = torch.zeros(c.num_hidden_layers, batch, c.num_key_value_heads, length, 2 * c.head_dim, **where)
        return KVCache(keys, values)

    def hidden(self, input_ids, position_ids, mask=None, state=None) -> Tensor:
        x = self.embed_tokens(input_ids)
        turns = frequencies(self.config.head_dim, self.config.rope_parameters, x)
        shared = context(position_ids, turns, mask, state)
        if mask is not None and takes_starts(x, mask, state):
            shared = shared._replace(starts=first_visible(mask))
        for layer in self.layers:
            x = layer(x, shared)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
