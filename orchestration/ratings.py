"""Ratings of players from their games: Bradley and Terry's model, with bootstrap intervals.

A player of strength p scores p / (p + q) against one of strength q, a draw being half a point (Bradley, Terry 1952).
Strengths are the maximum of the likelihood, found by Hunter's iteration (2004, algorithm MM); ratings are their
logarithms on Elo's scale, 400 points for odds of ten to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlrl.orchestration.statistics import Interval

Floats = NDArray[np.float64]
SCALE = 400.0
PRIOR = 1.0
"""Drawn games of every player against one of average strength: who has won or lost everything gets a finite rating."""
STEPS, CLOSE = 1000, 1e-10


class Meeting(NamedTuple):
    """The games of one seat-swapped pair. They share a seed, so they are resampled together."""

    first: str
    second: str
    points: float
    """Of `first`: 1 for a won game, 0.5 for a drawn one."""
    games: int


class Rating(NamedTuple):
    """One player's."""

    name: str
    rating: float
    """Elo points; 0 is the average of all players, or the anchor."""
    interval: Interval
    games: int
    score: float
    """Share of the points of its games."""


def rate(
    meetings: Sequence[Meeting],
    anchor: str | None = None,
    confidence: float = 0.95,
    resamples: int = 300,
    seed: int = 0,
) -> list[Rating]:
    """Ratings, the strongest first.

    Args:
        anchor: the player whose rating is 0, in every resample, too; None: the average is 0.
        resamples: bootstrap samples of meetings, drawn within each two players; they depend on `seed` alone.

    Raises:
        ValueError: the anchor has not played; a player met itself.
    """
    names = list(dict.fromkeys(name for meeting in meetings for name in meeting[:2]))
    if anchor is not None and anchor not in names:
        raise ValueError(f"{anchor!r} has not played; there are {', '.join(names)}")
    points, games = _totals(names, meetings)
    found = _ratings(points, games, names, anchor)
    drawn = _ratings(*_totals(names, meetings, resamples, seed), names, anchor)
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    rows = [
        Rating(name, float(found[i]), Interval(float(low[i]), float(high[i])), int(n), float(points[i].sum() / n))
        for i, name in enumerate(names)
        if (n := games[i].sum())
    ]
    return sorted(rows, key=lambda row: (-row.rating, row.name))


def strengths(points: Floats, games: Floats) -> Floats:
    """Strengths with the largest likelihood, `(..., players)`, with a geometric mean of 1.

    Args:
        points: `(..., players, players)` that the row's player scored against the column's.
        games: `(..., players, players)` that they played; symmetric.
    """
    scored, p = points.sum(-1) + PRIOR / 2, np.ones(points.shape[:-1])
    for _ in range(STEPS):
        weight = (games / (p[..., :, None] + p[..., None, :])).sum(-1) + PRIOR / (p + 1)
        new = scored / weight
        change, p = np.abs(np.log(new / p)).max(initial=0.0), new
        if change < CLOSE:
            break
    return p / np.exp(np.log(p).mean(-1, keepdims=True))


def _ratings(points: Floats, games: Floats, names: Sequence[str], anchor: str | None) -> Floats:
    found = SCALE * np.log10(strengths(points, games))
    return found - (found[..., [names.index(anchor)]] if anchor is not None else 0.0)


def _totals(names: Sequence[str], meetings: Sequence[Meeting], draws: int = 0, seed: int = 0) -> tuple[Floats, Floats]:
    """Points and games, `(players, players)`; with draws, of so many resamples, `(draws, players, players)`."""
    place, rng = {name: i for i, name in enumerate(names)}, np.random.default_rng(seed)
    points, games = np.zeros((2, max(draws, 1), len(names), len(names)))
    for (one, other), found in _groups(meetings).items():
        i, j, n = place[one], place[other], len(found)
        chosen = found[rng.integers(n, size=(draws, n))] if draws else found[None]
        scored, played = chosen.sum(1).T
        points[:, i, j], points[:, j, i] = scored, played - scored
        games[:, i, j] = games[:, j, i] = played
    return (points, games) if draws else (points[0], games[0])


def _groups(meetings: Sequence[Meeting]) -> dict[tuple[str, str], Floats]:
    """By the two names in order: the first's points and the games of each meeting, `(meetings, 2)`."""
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for first, second, points, games in meetings:
        if first == second:
            raise ValueError(f"{first!r} met itself")
        if first < second:
            found.setdefault((first, second), []).append((points, games))
        else:
            found.setdefault((second, first), []).append((games - points, games))
    return {names: np.array(rows, dtype=np.float64) for names, rows in found.items()}
