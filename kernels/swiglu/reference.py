"""The gated activation of SwiGLU in plain PyTorch (arXiv 2002.05202, equation 6, without the matrices).

    y = silu(gate) * up        silu(g) = g * s        s = 1 / (1 + exp(-g))

    dup = dy * silu(gate)      dgate = dy * up * s * (1 + gate * (1 - s))

With n tokens and d channels in 2-byte storage a fused forward moves 6 n d bytes, a fused backward 10 n d bytes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(up_gate: Tensor) -> Tensor:
    """Args: up_gate: `(..., 2 * channels)`, the values before the gates. Returns: `(..., channels)`."""
    up, gate = up_gate.chunk(2, -1)
    return F.silu(gate) * up
