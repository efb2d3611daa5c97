"""Random numbers that depend on what they are for, never on when they are drawn.

Every draw of the project comes from an `Rng` keyed by (run seed, iteration, game, role, ...). Two workers that play the
same game therefore play it alike, in any order and on any machine, and no global generator is touched. The generator is
SplitMix64 (Steele, Lea, Flood 2014): creating one costs a hash, which matters when half a million short games each get
their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def derive_seed(*keys: int | str) -> int:
    """A 64-bit seed from any mix of integers and strings; equal keys give equal seeds on every machine."""
    digest = hashlib.blake2b("\x1f".join([f"{type(key).__name__}:{key}" for key in keys]).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class Rng:
    """A small seeded generator: `Rng(seed)` from an integer, `Rng("rollout", 3, 17)` from keys."""

    __slots__ = ("_state",)

    def __init__(self, *keys: int | str):
        single = len(keys) == 1 and isinstance(keys[0], int)
        self._state = keys[0] & _MASK if single else derive_seed(*keys)  # type: ignore[operator]

    def bits(self) -> int:
        """64 uniform bits."""
        self._state = (self._state + _GAMMA) & _MASK
        return _mix(self._state)

    def random(self) -> float:
        """A uniform float in [0, 1)."""
        return (self.bits() >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """A uniform integer in [0, n). The bias of the multiply-shift method is under n / 2**64."""
        return (self.bits() * n) >> 64

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`, uniformly.

        Raises:
            IndexError: `items` is empty.
        """
        return items[self.below(len(items))]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index drawn in proportion to non-negative `weights`."""
        target = self.random() * sum(weights)
        for index, weight in enumerate(weights):
            target -= weight
            if target < 0:
                return index
        return max(i for i, weight in enumerate(weights) if weight > 0)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list with the items in uniformly random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def spawn(self, *keys: int | str) -> Rng:
        """An independent generator for a named purpose; does not advance this one."""
        return Rng(derive_seed(self._state, *keys))
