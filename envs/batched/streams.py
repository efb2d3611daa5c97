"""Random streams of many games: entry i of an array of 64-bit words is the state of one `nlrl.envs.random.Rng`.

SplitMix64 (Steele, Lea, Flood 2014) in Numba, draw for draw equal to `Rng`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.jit import compiled
from nlrl.envs.random import derive_seed

Streams = NDArray[np.uint64]

# Literals must be unsigned words: Numba turns uint64 with a signed integer into a float.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_11, _27, _30, _31, _32 = (np.uint64(shift) for shift in (11, 27, 30, 31, 32))
_LOW = np.uint64(0xFFFFFFFF)


def make_streams(seed: int | str, size: int, purpose: str) -> Streams:
    """(size,) states of `Rng("batched", seed, i, purpose)`, i = 0, 1, ..."""
    return np.array([derive_seed("batched", seed, i, purpose) for i in range(size)], dtype=np.uint64)


@compiled
def bits(streams: Streams, i: int) -> np.uint64:
    """64 uniform bits of stream i."""
    z = streams[i] + _GAMMA
    streams[i] = z
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@compiled
def below(streams: Streams, i: int, n: Any) -> Any:
    """A uniform integer in [0, n), n < 2**31: the high word of bits * n, from two products that fit 64 bits."""
    word, count = bits(streams, i), np.uint64(n)
    return np.int64(((word >> _32) * count + (((word & _LOW) * count) >> _32)) >> _32)


@compiled
def uniform(streams: Streams, i: int) -> Any:
    """A uniform float in [0, 1)."""
    return np.float64(bits(streams, i) >> _11) * 2.0**-53


@compiled
def draw_below(streams: Streams, games: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """(m,) uniform integers in [0, n), one from the stream of each of `games`."""
    out = np.empty(len(games), dtype=np.intp)
    for k, i in enumerate(games):
        out[k] = below(streams, i, n)
    return out
