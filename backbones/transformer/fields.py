"""The fields of a configuration of the control: a Llama-shaped decoder."""

from __future__ import annotations

from dataclasses import dataclass

from nlrl.backbones.fields import Derived, Fields


@dataclass(kw_only=True, repr=False)
class TransformerFields(Fields):
    """Field names are those of Hugging Face Llama, so that its tools find what they look for."""

    model_type = "transformer"

    vocab_size: int = 1024
    hidden_size: int = 192
    """Width of the residual stream."""
    intermediate_size: int = 512
    """Width of the gated feed-forward layer."""
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: Derived = None
    """Fewer than heads for grouped-query attention; by default as many."""
    head_dim: Derived = None
    """By default hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: Derived = None
    """`rope_type` ("default", "linear" or "llama3"), `rope_theta` and the type's own numbers, as Hugging Face writes
    them."""
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def derive(self) -> None:
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads

    def validate_architecture(self):
        """Refuses shapes that no attention layer can have."""
        kv_heads, head_dim = self.num_key_value_heads or 1, self.head_dim or 0
        if self.num_attention_heads % kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({kv_heads})"
            )
        if head_dim % 2:
            raise ValueError(f"head_dim ({head_dim}) must be even: rotary embedding turns pairs")
