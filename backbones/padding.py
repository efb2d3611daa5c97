"""Rows of different lengths in one tensor: padded on the right, at position -1, which leaves no trace in a state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor


def passes(lengths: Sequence[int], tokens: int) -> list[slice]:
    """Cuts consecutive rows of the given lengths into runs of at most `tokens` padded tokens (one row at least)."""
    cuts, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i + 1 - start) * longest > tokens:
            cuts.append(slice(start, i))
            start, longest = i, length
    return [*cuts, slice(start, len(lengths))] if lengths else []


def padded(rows: Sequence[Any], device) -> Tensor:
    """Sequences of token ids, padded on the right with 0: int64 `(rows, longest)`."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    ids[np.arange(lengths.max()) < lengths[:, None]] = np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
    return torch.from_numpy(ids).to(device)


def padded_positions(lengths: Sequence[int], device) -> Tensor:
    """0, 1, ... in each row of the given length, -1 behind it: int64 `(rows, longest)`."""
    ends = torch.tensor(lengths)[:, None]
    places = torch.arange(int(ends.max()))
    return places.where(places < ends, -1).to(device)
