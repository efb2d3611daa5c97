"""The fields of a configuration of nGPT."""

from __future__ import annotations

from dataclasses import dataclass

from nlrl.backbones.fields import Derived, Fields

ROPES = ("rotary", "official")


@dataclass(kw_only=True, repr=False)
class NGPTFields(Fields):
    """Input and output embeddings are never tied: rows of one are read as points, rows of the other as directions to
    compare with."""

    model_type = "ngpt"

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: Derived = None
    """Width of the gated feed-forward layer; by default 4 * hidden_size."""
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: Derived = None
    """Fewer than heads for grouped-query attention; by default as many, as in the paper."""
    head_dim: Derived = None
    """By default hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope: str = "rotary"
    """"official" gives what the public repository computes in place of a rotation (`network.official_rotary`): for its
    checkpoints only. It neither keeps lengths nor makes scores relative."""
    alpha_init: float = 0.05
    """How far a layer moves the hidden state towards its own output at the start; the paper's choice is about 1 /
    layers."""
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def derive(self) -> None:
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        if self.head_dim is None:
            self.head_dim = self._derived_head_dim()
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads

    def _derived_head_dim(self) -> int:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}); or set head_dim"
            )
        return self.hidden_size // self.num_attention_heads

    def validate_architecture(self):
        """Refuses what nGPT cannot be."""
        kv_heads, head_dim = self.num_key_value_heads or 1, self.head_dim or 0
        if self.num_attention_heads % kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({kv_heads})"
            )
        if self.rope not in ROPES:
            raise ValueError(f"rope is {self.rope!r}; it must be one of {', '.join(ROPES)}")
        if self.alpha_init <= 0:
            raise ValueError(f"alpha_init ({self.alpha_init}) must be above 0: layers would not move the hidden state")
        if head_dim % 2:
            raise ValueError(f"head_dim ({head_dim}) must be even: rotary embedding turns pairs")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings must be false: nGPT has separate input and output embeddings")
