"""The fields of a configuration of Hymba."""

from __future__ import annotations

from dataclasses import dataclass

from nlrl.backbones.fields import Derived, Fields
from nlrl.backbones.hymba.layers import default_global_layers, default_groups, layer_mixers, mistake


@dataclass(kw_only=True, repr=False)
class HymbaFields(Fields):
    """Field names are those of NVIDIA's checkpoints, whose config.json `from_pretrained` reads as it is.

    The roadmap of the paper's table 1 in fields, each step with those before it:

    * Llama: `mixer="attention"`, `sliding_window=None`, `num_memory_tokens=0`. Mamba: `mixer="mamba"`.
    * A, both kinds of layers: `mixer="sequential"`. B, both in every layer: `mixer="parallel"`.
    * C, windows in all layers but three: `sliding_window=1024`, `kv_reuse_group=[]`.
    * D, keys and values shared by pairs of layers: `kv_reuse_group=None`.
    * E, meta tokens: `num_memory_tokens=128`.
    """

    model_type = "hymba"

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    """Width of the gated feed-forward layer."""
    num_hidden_layers: int = 6
    mixer: str = "parallel"
    """"parallel": attention and Mamba heads in every layer; "mamba" or "attention": one of them; "sequential": Mamba
    in layers 0, 2, ..., attention in layers 1, 3, ... (the paper does not say how its row A stacks them)."""

    num_attention_heads: int = 6
    num_key_value_heads: Derived = None
    """Fewer than heads for grouped-query attention; by default as many."""
    head_dim: Derived = None
    """Of queries and keys; by default hidden_size / num_attention_heads."""
    v_head_dim: Derived = None
    """Of values; by default what makes attention as wide as the Mamba heads beside it, or else head_dim."""
    sliding_window: int | None = 256
    """W. None: every attention layer is global."""
    window_semantics: str = "training"
    """"training": a token sees W text tokens before itself (W + 1 keys), as NVIDIA's training and prefill do;
    "hf_decode": W keys with itself, as its cached decoding does. Meta tokens are always visible besides."""
    global_attn_idx: Derived = None
    """Attention layers without a window; by default the first, the middle and the last."""
    kv_reuse_group: Derived = None
    """Runs of windowed attention layers that use the keys and values of the run's first; by default pairs (a triple
    first where the number is odd), [] for none."""

    rope_theta: float = 10000.0
    rope_type: str = "default"
    """"ntk": the base grows with max_position_embeddings / orig_max_position_embeddings."""
    max_position_embeddings: int = 2048
    orig_max_position_embeddings: int | None = None

    mamba_expand: int = 2
    """Mamba channels per hidden_size."""
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_dt_rank: Derived = None
    """By default hidden_size / 16, rounded up."""

    num_memory_tokens: int = 16
    """Meta tokens: learned vectors before every text; 0 for none."""
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def derive(self) -> None:
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // max(1, self.num_attention_heads)
        if self.v_head_dim is None:
            beside = self.d_inner // max(1, self.num_attention_heads)
            self.v_head_dim = beside if self.mixer == "parallel" else self.head_dim
        self.mamba_dt_rank = self.mamba_dt_rank or -(-self.hidden_size // 16)
        if self.global_attn_idx is None:
            self.global_attn_idx = default_global_layers(self.attention_layers, self.sliding_window)
        if self.kv_reuse_group is None:
            self.kv_reuse_group = default_groups(self.attention_layers, self.global_attn_idx)

    def validate_architecture(self):
        """Refuses what Hymba cannot be."""
        reason = mistake(self)
        if reason:
            raise ValueError(reason)

    @property
    def d_inner(self) -> int:
        """Mamba channels."""
        return self.mamba_expand * self.hidden_size

    @property
    def mixers(self) -> list[str]:
        """Each layer's "parallel", "mamba" or "attention"."""
        return layer_mixers(self.mixer, self.num_hidden_layers)

    @property
    def attention_layers(self) -> list[int]:
        return [i for i, mixer in enumerate(self.mixers) if mixer != "mamba"]

    @property
    def ssm_layers(self) -> list[int]:
        return [i for i, mixer in enumerate(self.mixers) if mixer != "attention"]

    @property
    def kv_source(self) -> dict[int, int]:
        """Attention layer -> the layer whose keys and values it uses, mostly itself."""
        shared = {layer: group[0] for group in self.kv_reuse_group or [] for layer in group}
        return {layer: shared.get(layer, layer) for layer in self.attention_layers}

    @property
    def kv_layers(self) -> list[int]:
        """Layers with keys and values of their own."""
        return sorted(set(self.kv_source.values()))

    @property
    def reach(self) -> int:
        """How far before itself a token sees text in windowed layers."""
        window = self.sliding_window or 1
        return window if self.window_semantics == "training" else window - 1

    @property
    def rope_base(self) -> float:
        """The base of the rotary angles. "ntk" is NVIDIA's formula, whose factor 2 is fixed:
        theta * (2 * new / old - 1) ** (d / (d - 2))."""
        if self.rope_type != "ntk":
            return self.rope_theta
        stretch = 2 * self.max_position_embeddings / (self.orig_max_position_embeddings or 1) - 1
        d = self.head_dim or 0
        return self.rope_theta * stretch ** (d / (d - 2))
