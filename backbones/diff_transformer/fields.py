"""The fields of a configuration of the Differential Transformer."""

from __future__ import annotations

from dataclasses import dataclass

from nlrl.backbones.fields import Derived, Fields

VERSIONS = (1, 2)


@dataclass(kw_only=True, repr=False)
class DiffTransformerFields(Fields):
    """Heads are counted as the paper counts them: one differential head subtracts two attention maps, so it has two
    query heads of `head_dim` channels. A differential head of V1 is as wide as two heads of a plain Transformer, one of
    V2 as wide as one:

        version                 1                                   2
        head_dim, by default    hidden_size / (2 heads)             hidden_size / heads
        query heads             2 heads                             2 heads
        key heads               2 kv_heads                          kv_heads
        value heads             kv_heads of 2 head_dim channels     kv_heads
        output matrix reads     2 heads head_dim                    heads head_dim

    So V1 with h heads is matched to a plain Transformer of 2 h heads (all projections have equal shapes), and V2 with h
    heads to one of h heads (query projection doubled, `hidden_size * heads` gates more).
    """

    model_type = "diff_transformer"

    version: int = 1
    """1: the paper's. 2: gate by token, no norm of heads, cache as a plain Transformer's."""
    vocab_size: int = 1024
    hidden_size: int = 192
    """Width of the residual stream."""
    intermediate_size: Derived = None
    """Width of the gated feed-forward layer; by default 8/3 hidden_size."""
    num_hidden_layers: int = 6
    num_attention_heads: int = 3
    """Differential heads."""
    num_key_value_heads: Derived = None
    """Fewer than heads for grouped-query attention; by default as many."""
    head_dim: Derived = None
    """Channels of one query."""
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    """Of all norms, that of the heads in V1 included."""
    rope_parameters: Derived = None
    """`rope_type` ("default", "linear" or "llama3"), `rope_theta` and the type's own numbers, as Hugging Face writes
    them."""
    lambda_std: float = 0.1
    """Spread of V1's four lambda vectors at the start."""
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def derive(self) -> None:
        self.intermediate_size = self.intermediate_size or 8 * self.hidden_size // 3
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self._derived_head_dim()

    def _derived_head_dim(self) -> int:
        parts = self.num_attention_heads * (2 if self.version == 1 else 1)
        if self.hidden_size % parts:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of {parts}, the heads that "
                f"num_attention_heads={self.num_attention_heads} makes in version {self.version}; or set head_dim"
            )
        return self.hidden_size // parts

    def validate_architecture(self):
        """Refuses what no differential attention can be."""
        if self.version not in VERSIONS:
            raise ValueError(f"version is {self.version}; it must be 1 or 2")
        kv_heads, head_dim = self.num_key_value_heads or 1, self.head_dim or 0
        if self.num_attention_heads % kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({kv_heads}): both maps of a differential head read the same group"
            )
        if head_dim % 2:
            raise ValueError(f"head_dim ({head_dim}) must be even: rotary embedding turns pairs")
