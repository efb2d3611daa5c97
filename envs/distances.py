"""How long games last when one side wants them over and the other does not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.state_table import Floats, StateTable

Mask = NDArray[np.bool_]


def forced_distances(table: StateTable[Any], hurries: Mask, best: Mask) -> Floats:
    """(states,) actions to the end when only moves in `best` are made: the soonest end where the mover `hurries`, else
    the latest. inf where no end can be forced within `max_length` actions, and everywhere if the game has chance.

    `hurries`: (states,); `best`: (pairs,), with at least one move in every state that is not terminal.
    """
    distances = np.where(table.player < 0, 0.0, np.inf)
    if len(table.outcome_pair) > len(table.pair_state):
        return np.full(len(distances), np.inf)
    for _ in range(table.game.max_length):
        after = 1.0 + distances[table.outcome_next]
        soonest = -table.max_actions(np.where(best, -after, -np.inf))
        latest = table.max_actions(np.where(best, after, -np.inf))
        before, distances = distances, np.where(hurries, soonest, latest)
        if np.array_equal(before, distances):
            break
    return distances
