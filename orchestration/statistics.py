"""Intervals: what may be said from how many games.

NumPy only. Where SciPy has the same quantity, the tests compare with it. An empty sample gives nan rather than an
error, because a table of results with a hole is more useful than none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlrl.agents.metrics.calibration import members_of

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


# -- intervals ---------------------------------------------------------------------------------------------------------
def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927): sound for few games and for none or all won.

    Args:
        successes: how many of `n`; may be fractional where a draw counts one half.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Interval(max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's t interval for the mean of independent values; nan for fewer than two."""
    values = _floats(values)
    if len(values) < 2:
        return Interval(math.nan, math.nan)
    spread = _t_quantile(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(float(values.mean() - spread), float(values.mean() + spread))


def paired_bootstrap(
    scores: ArrayLike, pairs: Sequence[Hashable], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval for the mean score of seat-swapped games, resampling whole pairs.

    The games of a pair share their start and their seed, so they are not independent; pairs are. Where all pairs score
    alike the interval is a point: use `wilson` for such a match.

    Args:
        scores: (games,) score of each game, such as 1, 0.5 or 0.
        pairs: (games,) which pair each game belongs to; a pair may lack a game.
        resamples: bootstrap samples; the draws depend on `seed` alone.
    """
    scores = _floats(scores)
    if len(scores) == 0:
        return Interval(math.nan, math.nan)
    index = _group_index(pairs)
    sums, sizes = _floats(np.bincount(index, scores)), np.bincount(index)
    rng = np.random.default_rng(seed)
    means = [_resampled_mean(sums, sizes, rng) for _ in range(resamples)]
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high))


def cluster_bootstrap(
    statistics: Callable[[NDArray[np.int64]], ArrayLike],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> list[Interval]:
    """Percentile bootstrap intervals of any statistics of examples, resampling whole groups.

    The moves of one position are judged by one text model from one board, so they are not independent; positions are.

    Args:
        statistics: given (n,) indices of examples, (k,) numbers. Resamples where a number is nan count not for it.
        groups: (examples,) what an example belongs to.

    Returns:
        k intervals; nan without examples.
    """
    members = members_of(groups)
    if not members:
        return []
    rng = np.random.default_rng(seed)
    drawn = [
        np.asarray(statistics(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])))
        for _ in range(resamples)
    ]
    tails = [0.5 - confidence / 2, 0.5 + confidence / 2]
    return [_percentiles(column[~np.isnan(column)], tails) for column in np.asarray(drawn, dtype=np.float64).T]


def _percentiles(values: Floats, tails: list[float]) -> Interval:
    if not len(values):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(values, tails)
    return Interval(float(low), float(high))


def _resampled_mean(sums: Floats, sizes: NDArray[np.int64], rng: np.random.Generator) -> float:
    drawn = rng.integers(len(sums), size=len(sums))
    return float(sums[drawn].sum() / sizes[drawn].sum())


def _t_quantile(probability: float, freedom: int) -> float:
    """Quantile (probability >= 0.5) of Student's t, by bisection on the distribution function."""
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 + _t_mass(middle, freedom) < probability else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _t_mass(angle: float, freedom: int) -> float:
    """P(0 < T < sqrt(freedom) tan(angle)): with t = sqrt(freedom) tan(u) the density becomes a power of cos(u), which
    is smooth."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    cosines = np.cos(angle * (nodes + 1) / 2)
    integral = angle / 2 * float(weights @ cosines ** (freedom - 1))
    return integral * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)


# -- arrays ------------------------------------------------------------------------------------------------------------
def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _group_index(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """Numbers groups 0, 1, ... by first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
