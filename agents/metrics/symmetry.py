"""Do equal positions get equal texts? Verdicts and moves over the images of a state under the game's symmetries.

1. A symmetry changes nothing that matters, so a critic that judges the game gives a move and its image the same verdict
   (from the view of the player to move, also where colours are exchanged), and a policy plays the image of its move.
2. Where an image *is* the original (a symmetric position), the prompts are equal and agreement says nothing: such pairs
   are left out.
3. In a position that a symmetry keeps, several moves are one move up to that symmetry. Any of them is right.
4. Beside the figures stand those of a reader who knows nothing: how much verdicts differ between *unrelated* pairs, and
   how often a uniformly random move would be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nlrl.agents.metrics.verdicts import EVEN
from nlrl.envs.game import Game
from nlrl.envs.symmetries import Symmetry, symmetries_of

Pair = tuple[Any, int | None]
"""(state, action); no action where a text is about the position itself."""


class Reading(NamedTuple):
    """The verdicts of one (state, action) and of its image under one symmetry; None where no answer could be read."""

    symmetry: str
    pair: Pair
    original: float | None
    image: float | None


@dataclass(frozen=True, slots=True)
class VerdictSymmetry:
    """Agreement of verdicts with those of their images. NaN where there is nothing to measure."""

    count: int
    coverage: float
    """Share of readings in which both answers could be read."""
    same_sign: float
    """Share of readings with one sign: win, about even (|v| <= `EVEN`) or loss. A failure is a difference."""
    opposite: float
    """Share of readings in which one says win and the other loss."""
    difference: float
    """Mean |original - image| over readings that could be read."""
    unrelated: float
    """The same between verdicts of readings that have nothing to do with each other: what no symmetry would give."""


def images(game: Game[Any], symmetries: Iterable[Symmetry], pairs: Sequence[Pair]) -> dict[str, dict[Pair, Pair]]:
    """By symmetry: each (state, action) with its image, where that is another."""
    found: dict[str, dict[Pair, Pair]] = {}
    for symmetry in symmetries:
        turned = {pair: _image(symmetry, *pair) for pair in pairs}
        found[symmetry.name] = {
            (state, action): image
            for (state, action), image in turned.items()
            if image[1] != action or not keeps(game, symmetry, state)
        }
    return found


def _image(symmetry: Symmetry, state: Any, action: int | None) -> Pair:
    return symmetry.state(state), None if action is None else symmetry.action(state, action)


def keeps(game: Game[Any], symmetry: Symmetry, state: Any) -> bool:
    """Whether a state is its own image, in the same game."""
    return symmetry.state(state) == state and symmetry.game(state).spec == game.spec


def score_readings(readings: Sequence[Reading]) -> VerdictSymmetry:
    """The figures of some readings, of one symmetry or of several."""
    first = _numbers(reading.original for reading in readings)
    second = _numbers(reading.image for reading in readings)
    read = ~(np.isnan(first) | np.isnan(second))
    signs = _sign(first), _sign(second)
    return VerdictSymmetry(
        count=len(readings),
        coverage=_mean(read),
        same_sign=_mean(read & (signs[0] == signs[1])),
        opposite=_mean(read & (signs[0] * signs[1] < 0)),
        difference=_mean(np.abs(first - second)[read]),
        unrelated=_gini(first[read]),
    )


def spreads(readings: Iterable[Reading]) -> dict[Pair, float]:
    """For each (state, action) the standard deviation of its verdicts over all its images, itself included; without
    those of which fewer than two could be read."""
    groups: dict[Pair, list[float | None]] = {}
    for reading in readings:
        groups.setdefault(reading.pair, [reading.original]).append(reading.image)
    found = {pair: _numbers(values) for pair, values in groups.items()}
    return {pair: float(np.nanstd(values)) for pair, values in found.items() if (~np.isnan(values)).sum() > 1}


# -- moves -------------------------------------------------------------------------------------------------------------
class MovedChoice(NamedTuple):
    """What the policy plays in a state and in its image."""

    symmetry: str
    state: Any
    equivariant: bool
    chance: float
    """How often a uniformly random move in the image would have been right."""


def moved_choices(
    game: Game[Any], symmetries: Sequence[Symmetry], choices: Mapping[Any, int | None], of_image: Mapping[Any, Any]
) -> list[MovedChoice]:
    """Holds a policy's moves to its game's symmetries.

    Args:
        choices: state -> the policy's move; None where it forfeits, which is never right.
        of_image: (name of the symmetry, state) -> its move in the image.
    """
    found = []
    for symmetry in symmetries:
        for state, action in choices.items():
            if keeps(game, symmetry, state) or (symmetry.name, state) not in of_image:
                continue
            image, other, moved = symmetry.state(state), symmetry.game(state), of_image[symmetry.name, state]
            own = symmetries if other.spec == game.spec else symmetries_of(other)
            right = set() if action is None else equal_moves(other, own, image, symmetry.action(state, action))
            chance = len(right) / len(other.legal_actions(image))
            found.append(MovedChoice(symmetry.name, state, moved in right, chance))
    return found


def equal_moves(game: Game[Any], symmetries: Iterable[Symmetry], state: Any, action: int) -> set[int]:
    """The moves of a state that are `action` up to a symmetry that keeps the state."""
    return {action} | {s.action(state, action) for s in symmetries if keeps(game, s, state)}


# -- numbers -----------------------------------------------------------------------------------------------------------
def _numbers(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _sign(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) <= EVEN, 0.0, np.sign(values))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _gini(values: np.ndarray) -> float:
    """Mean |a - b| over all pairs of different members."""
    n = len(values)
    if n < 2:
        return float("nan")
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return float(2 * (ranks @ np.sort(values)) / (n * (n - 1)))
