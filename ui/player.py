"""Where a player that steps through a game by itself stands: a function of the clock, whatever redraws it."""

from __future__ import annotations

from typing import NamedTuple

SPEEDS = (0.5, 1.0, 2.0, 4.0)
"""Moves a second."""


class Playing(NamedTuple):
    """A game that is being played back."""

    since: float
    """When it was started, in seconds of any clock."""
    ply: int
    """Where it was started."""
    speed: float
    """Moves a second."""

    def at(self, now: float, last: int) -> int:
        """The ply to show now; `last` is the game's last one."""
        return min(last, self.ply + int((now - self.since) * self.speed + 1e-6))


def clamped(ply: int, last: int) -> int:
    """A ply that the game has."""
    return max(0, min(ply, last))
