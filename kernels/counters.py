"""Counts by which programs of one launch learn that they are the last of their group.

Every program of a group adds one when its results are in memory; the one that finds all others counted finishes the
group's work and puts the count back to zero, so the next launch on the same stream finds zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1024
_counters: dict[torch.device, list[Tensor]] = {}


def counter(groups: int, device: torch.device) -> Tensor:
    """int32 zeros, at least so many, which every launch leaves as zeros."""
    of_device = _counters.setdefault(device, [])
    if not of_device or len(of_device[-1]) < groups:
        size = max(LEAST, 1 << (groups - 1).bit_length())
        # Smaller ones stay: a CUDA graph that was captured with one goes on counting there.
        of_device.append(torch.zeros(size, dtype=torch.int32, device=device))
    return of_device[-1]
