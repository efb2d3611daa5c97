"""nGPT, the normalised Transformer (arXiv 2410.01131, sections 2.1 to 2.6).

1. Every hidden state is a unit vector. A layer proposes a point on the sphere and the state moves a learned share of
   the way to it.
2. Every vector of a weight matrix that lives in the embedding space is a unit vector too; `after_step` puts it back
   after each update.
3. Queries and keys are unit vectors of a head, turned by their positions, so scores are cosines; learned scales set
   how sharp they are.

Scales are moved to where they cost least; the function and its gradients are the paper's:

* Queries and keys are kept `sqrt(head_dim)` long, which one fused kernel gives, and scores are divided by
  `sqrt(head_dim)` as usual: the paper's unit vectors with scores multiplied by `sqrt(head_dim)`.
* `s_qk` multiplies the query twice instead of query and key once each. With fewer key than query heads each query
  head keeps its own.
* `s_u`, `s_v` and `sqrt(hidden_size)` multiply rows of the weight instead of every token's activations. So does `s_z`.
* Both halves of the gated layer are multiplied by `sqrt(hidden_size)`, as in the authors' code; the first half's
  factor is normalised away with the output.

Where the paper and the authors' code disagree: the code keeps the absolute value of the shares of way (alpha), so does
this; its rotary embedding is no rotation, this one is unless `rope="official"`; it stores block matrices in bfloat16
without a master copy, these weights are float32 and computed with in bfloat16 under autocast, norms in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlrl import kernels
from nlrl.backbones.attention import Context, attend, context
from nlrl.backbones.network import CheckpointedLayer, Network
from nlrl.backbones.ngpt.fields import NGPTFields
from nlrl.backbones.rotary import frequencies

SMALLEST_SQUARE = 1e-24
"""Added to a mean square, so that a zero vector does not become NaN; no other vector notices."""


class Scale(nn.Module):
    """A trainable vector that is `value` at the start but stored as `stored`, which sets the optimizer's relative
    step (section 2.5)."""

    def __init__(self, size: int, value: float, stored: float):
        super().__init__()
        self.value, self.stored = value, stored
        self.weight = nn.Parameter(torch.full((size,), stored))

    def forward(self) -> Tensor:
        return self.weight * (self.value / self.stored)


def official_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What NVIDIA/ngpt computes where the paper says rotary embedding.

    Its table of a position is sin, cos, sin, cos, ... by frequency; the first half of the table is then taken for sines
    S and the second for cosines C, and the two products of each rotated channel are never added:

        y[2j] = -x[2j + 1] * C[j]        y[2j + 1] = x[2j] * S[j]

    Args: x: `(batch, time, heads, head_dim)`; cos, sin: `rotary.angles`. Returns: the shape and dtype of x.
    """
    s, c = torch.stack((sin, cos), -1).flatten(-2).chunk(2, -1)
    a, b = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-b * c, a * s), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: NGPTFields, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.rope = config.head_dim, config.rope
        self.qkv = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.output = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.qk_scale = Scale(self.heads * self.head_dim, 1.0, config.hidden_size**-0.5)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        qkv = self.qkv(h).unflatten(-1, (-1, self.head_dim))
        query_key, value = qkv.split((self.heads + self.kv_heads, self.kv_heads), 2)
        scale = self.qk_scale().square().view(self.heads, self.head_dim)
        scale = F.pad(scale, (0, 0, 0, self.kv_heads), value=1.0)
        if self.rope == "official":
            query_key = official_rotary(query_key, context.cos, context.sin)
            query_key = F.rms_norm(query_key, (self.head_dim,), eps=SMALLEST_SQUARE) * scale.to(query_key.dtype)
        else:
            query_key = kernels.norm_rotary(query_key, context.cos, context.sin, scale, SMALLEST_SQUARE, True)
        query, key = query_key.split((self.heads, self.kv_heads), 2)
        return self.output(attend(query, key, value, self.layer, context))


class MLP(nn.Module):
    def __init__(self, config: NGPTFields):
        super().__init__()
        self.width = config.hidden_size
        self.up_gate = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.up_gate_scale = Scale(2 * config.intermediate_size, 1.0, 1.0)

    def forward(self, h: Tensor) -> Tensor:
        scale = self.up_gate_scale() * self.width**0.5
        return self.down(kernels.swiglu(F.linear(h, self.up_gate.weight * scale[:, None])))


class Layer(CheckpointedLayer):
    def __init__(self, config: NGPTFields, layer: int):
        super().__init__()
        stored = config.hidden_size**-0.5
        self.attention = Attention(config, layer)
        self.attention_alpha = Scale(config.hidden_size, config.alpha_init, stored)
        self.mlp = MLP(config)
        self.mlp_alpha = Scale(config.hidden_size, config.alpha_init, stored)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        h = kernels.unit_lerp(h, self.attention(h, context), self.attention_alpha().abs())
        return kernels.unit_lerp(h, self.mlp(h), self.mlp_alpha().abs())

    def unit_axes(self) -> Iterator[tuple[Tensor, int]]:
        for reads in (self.attention.qkv, self.mlp.up_gate):
            yield reads.weight, 1
        for writes in (self.attention.output, self.mlp.down):
            yield writes.weight, 0

    def normalise(self) -> None:
        for weight, axis in self.unit_axes():
            normalise(weight, axis)


class NGPTNetwork(Network):
    """nGPT; see `Network` for its methods. Train it with weight decay 0 and no warm-up."""

    fields_class = NGPTFields
    no_weight_decay = True  # its matrices are renormalised after every step

    def __init__(self, config: NGPTFields):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.logit_scale = Scale(config.vocab_size, 1.0, config.hidden_size**-0.5)

    def hidden(self, input_ids, position_ids, mask=None, state=None) -> Tensor:
        h = self.embed_tokens(input_ids)
        turns = frequencies(self.config.head_dim, {"rope_theta": self.config.rope_theta}, h)
        shared = context(position_ids, turns, mask, state)
        for layer in self.layers:
            h = layer(h, shared)
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        """Each within plus or minus its token's logit scale, as hidden states and embeddings are unit vectors."""
        return F.linear(hidden, self.vocabulary())

    def vocabulary(self) -> Tensor:
        return self.lm_head.weight * self.logit_scale()[:, None]

    def head(self) -> tuple[Tensor, Tensor]:
        return self.lm_head.weight, self.logit_scale()

    @torch.no_grad()
    def after_step(self) -> None:
        """Puts every vector of the embedding space back onto the unit sphere."""
        for weight, axis in self.unit_axes():
            normalise(weight, axis)

    def unit_axes(self) -> Iterator[tuple[Tensor, int]]:
        """Every matrix of unit vectors, and the axis along which they lie. `NormalisedAdam` takes them."""
        for embedding in (self.embed_tokens, self.lm_head):
            yield embedding.weight, 1
        for module in self.modules():
            if isinstance(module, Layer):
                yield from module.unit_axes()


@torch.no_grad()
def normalise(matrix: Tensor, dim: int) -> None:
    """Divides a matrix in place by the lengths of its vectors along `dim`."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    matrix.copy_(wide / torch.linalg.vector_norm(wide, dim=dim, keepdim=True).clamp_min(1e-12))
