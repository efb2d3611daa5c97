"""Kernels of other packages that can take an op's place, with the op's own arguments and results.

A package is imported at its first call. What a peer cannot do (`fits`) goes to our own kernel. A peer that only does
part of an op (no documents in a row, no state) is not here: `nlrl bench kernels` times it, nobody is served by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nlrl.kernels.causal_conv1d.reference import last_inputs, preceded
from nlrl.kernels.sample_head.two_launches import sample_head as two_launches

SSD_CHUNK = 256
"""Of mamba_ssm's kernels; the value its models use."""


@dataclass(frozen=True)
class Peer:
    """An op's stand-in."""

    package: str
    call: Callable[..., Any]
    """Has the op's signature."""
    fits: Callable[..., bool]
    """Of the same arguments: may `call` have them?"""

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    def or_else(self, other: Callable) -> Callable:
        """The peer for the calls that fit, another implementation for the rest."""
        return lambda *args, **named: (self.call if self.fits(*args, **named) else other)(*args, **named)


def documents(position_ids: Tensor) -> Tensor:
    """Number of each token's document within its row, int32; 0 for one that began before the call."""
    return (position_ids == 0).cumsum(1, dtype=torch.int32)


def causal_conv1d(x, weight, bias, position_ids, window=None, initial=None) -> tuple[Tensor, Tensor]:
    """`causal_conv1d.causal_conv1d_fn`, whose memory order with documents is ours: channels side by side."""
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore

    y = causal_conv1d_fn(x.transpose(1, 2), weight, bias, seq_idx=documents(position_ids))
    return y.transpose(1, 2), last_inputs(preceded(x, weight, None), position_ids)


def _conv_fits(x, weight, bias, position_ids, window=None, initial=None) -> bool:
    plain = window is None and initial is None and x.dtype == weight.dtype and x.dtype != torch.float64
    return plain and x.shape[1] > 1 and 2 <= weight.shape[1] <= 4 and x.stride(2) == 1 and x.shape[2] % 8 == 0


def ssd(x, dt, A, B, C, position_ids, state=None, D=None, chunk=0, overwrite=False) -> tuple[Tensor, Tensor]:
    """`mamba_ssm`'s `mamba_chunk_scan_combined`; padding counts as a step of no size."""
    from mamba_ssm.ops.triton.ssd_combined import (  # pyright: ignore[reportMissingImports]
        mamba_chunk_scan_combined,
    )

    dt = dt.masked_fill((position_ids < 0)[..., None], 0)
    return mamba_chunk_scan_combined(
        x, dt, A, B, C, SSD_CHUNK, D=D, initial_states=state, seq_idx=documents(position_ids), return_final_states=True
    )


def _ssd_fits(x, dt, A, B, C, position_ids, state=None, D=None, chunk=0, overwrite=False) -> bool:
    return not overwrite and x.shape[1] > 1 and torch.float64 not in (x.dtype, dt.dtype)


def _composed(op: str, function: str) -> Callable[..., Any]:
    """A function of an op's module `composed`: PyTorch's attention with our passes before and behind it."""
    return lambda *args, **named: getattr(import_module(f"nlrl.kernels.{op}.composed"), function)(*args, **named)


PEERS: dict[str, dict[str, Peer]] = {
    "causal_conv1d": {"causal_conv1d": Peer("causal_conv1d", causal_conv1d, _conv_fits)},
    "sample_head": {"two launches": Peer("triton", two_launches, lambda *args, **named: True)},
    "ssd": {"mamba_ssm": Peer("mamba_ssm", ssd, _ssd_fits)},
} | {
    op: {"composed": Peer("triton", _composed(op, op), _composed(op, "fits"))}
    for op in ("diff_attention", "diff_attention_v2")
}
"""By op, then by provider."""
