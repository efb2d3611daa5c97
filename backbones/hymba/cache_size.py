"""Bytes that a decode state takes: by the paper's formula, and counted."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nlrl.backbones.hymba.configuration import HymbaConfig
from nlrl.backbones.hymba.prefix import Prefix
from nlrl.backbones.hymba.state import HymbaState


class CacheSize(NamedTuple):
    """Bytes."""

    sequence: int
    """Of every sequence."""
    shared: int
    """Once for all sequences: what the meta tokens leave."""

    @property
    def total(self) -> int:
        """Of one sequence that runs alone."""
        return self.sequence + self.shared


def attention_bytes(layers: int, kv_heads: int, head_dim: int, tokens: int, bytes_per_value: int = 2) -> int:
    """Keys and values of a plain Transformer: Llama-3.2-3B at 8,000 tokens takes 917.504 MB (table 2 says 918)."""
    return 2 * layers * kv_heads * head_dim * tokens * bytes_per_value


def paper_bytes(config: HymbaConfig, tokens: int, bytes_per_value: int = 2) -> float:
    """The formula behind the paper's tables 1 and 2, found by trying which gives their numbers: 78.602 MB for the 1.5B
    model at 8,000 tokens, 11.673 times less than Llama-3.2-3B.

    It counts meta tokens in global layers only, takes every two windowed layers as a group if any share (14.5 groups
    where the model has 14), and leaves out the convolutions' inputs; recurrent states are in half precision.
    """
    per_token = config.num_key_value_heads * (config.head_dim + config.v_head_dim) * bytes_per_value  # pyright: ignore
    in_global = len(config.global_attn_idx or []) * (tokens + config.num_memory_tokens)
    windowed = len(config.attention_layers) - len(config.global_attn_idx or [])
    groups = windowed / 2 if config.kv_reuse_group else windowed
    in_windows = groups * min(config.sliding_window or 0, tokens)
    states = len(config.ssm_layers) * config.d_inner * config.mamba_d_state * bytes_per_value
    return (in_global + in_windows) * per_token + states


def counted_bytes(config: HymbaConfig, tokens: int, dtype: torch.dtype = torch.float16) -> CacheSize:
    """All that `HymbaForCausalLM.new_state(1, tokens)` takes in the given type; recurrent states are in float32."""
    device = torch.device("meta")
    state = HymbaState.zeros(config, 1, tokens, Prefix.zeros(config, device, dtype), device, dtype)
    return CacheSize(state.nbytes - state.shared_nbytes, state.shared_nbytes)
