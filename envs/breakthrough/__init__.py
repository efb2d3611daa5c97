"""Breakthrough: two rows of pawns a side, straight or diagonally forward, and the first on the far row wins."""

from nlrl.envs.breakthrough.rules import Breakthrough, BreakthroughState

__all__ = ["Breakthrough", "BreakthroughState"]
