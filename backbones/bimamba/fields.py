"""The fields of a configuration of Mamba-2 and Bi-Mamba."""

from __future__ import annotations

from dataclasses import dataclass

from nlrl.backbones.fields import Fields


@dataclass(kw_only=True, repr=False)
class BiMambaFields(Fields):
    """Field names are those of Hugging Face Mamba2 where it has them; defaults that the papers fix are theirs."""

    model_type = "bimamba"

    vocab_size: int = 1024
    hidden_size: int = 192
    """Width of the residual stream."""
    num_hidden_layers: int = 6
    binary: bool = True
    """False: plain Mamba-2."""
    packed: bool = False
    """Binary matrices are held as bits, which nothing trains; `packed.pack` makes such a model."""
    expand: int = 2
    """Width of a mixer, in widths of the residual stream."""
    head_dim: int = 64
    state_size: int = 128
    n_groups: int = 1
    """Sets of B and C; consecutive heads share one."""
    norm_groups: int = 1
    """Parts of a mixer's output that are normalised each by itself. mamba-ssm has one a group of B and C, Hugging Face
    one for all; they agree for one group."""
    conv_kernel: int = 4
    use_conv_bias: bool = True
    layer_norm_epsilon: float = 1e-5
    chunk_size: int = 64
    """Tokens that the recurrence takes at once; changes speed and rounding only."""
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    """Standard deviation of the embedding at the start."""
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def inner_size(self) -> int:
        """Width of a mixer."""
        return self.expand * self.hidden_size

    @property
    def num_heads(self) -> int:
        return self.inner_size // self.head_dim

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.inner_size + 2 * self.n_groups * self.state_size

    def validate_architecture(self):
        """Refuses shapes that no mixer can have."""
        for name in ("hidden_size", "num_hidden_layers", "expand", "head_dim", "state_size", "n_groups", "norm_groups",
                     "conv_kernel", "chunk_size"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.inner_size % self.head_dim:
            raise ValueError(
                f"expand * hidden_size ({self.inner_size}) must be a multiple of head_dim ({self.head_dim})"
            )
        if self.num_heads % self.n_groups:
            raise ValueError(f"the number of heads ({self.num_heads}) must be a multiple of n_groups ({self.n_groups})")
        if self.inner_size % self.norm_groups:
            raise ValueError(
                f"expand * hidden_size ({self.inner_size}) must be a multiple of norm_groups ({self.norm_groups})"
            )
        if self.packed and not self.binary:
            raise ValueError("packed must be false where binary is: only signs fit into bits")
