"""The control: a Llama-shaped decoder (RMSNorm, rotary embedding, grouped-query attention, SwiGLU).

Projections that read the same input are one matrix (`qkv`, `up_gate`): three matrix products fewer a layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from nlrl import kernels
from nlrl.backbones.attention import Context, attend, context
from nlrl.backbones.network import CheckpointedLayer, Network
from nlrl.backbones.rotary import frequencies, rotary
from nlrl.backbones.transformer.fields import TransformerFields


class Writer(nn.Linear):
    """A matrix that writes into the residual stream."""


class Attention(nn.Module):
    def __init__(self, config: TransformerFields, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.output = Writer(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        query_key, value = qkv.split((self.heads + self.kv_heads, self.kv_heads), 2)
        query, key = rotary(query_key, context.cos, context.sin, interleaved=False).split(
            (self.heads, self.kv_heads), 2
        )
        return self.output(attend(query, key, value, self.layer, context))


class MLP(nn.Module):
    def __init__(self, config: TransformerFields):
        super().__init__()
        self.up_gate = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = Writer(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(kernels.swiglu(self.up_gate(x)))


class Layer(CheckpointedLayer):
    def __init__(self, config: TransformerFields, layer: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.mlp(self.mlp_norm(x))


class TransformerNetwork(Network):
    """The control decoder; see `Network` for its methods."""

    fields_class = TransformerFields
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TransformerFields):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def hidden(self, input_ids, position_ids, mask=None, state=None) -> Tensor:
        x = self.embed_tokens(input_ids)
        turns = frequencies(self.config.head_dim, self.config.rope_parameters, x)
        shared = context(position_ids, turns, mask, state)
        for layer in self.layers:
            x = layer(x, shared)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
