"""Intervals, calibration and order: what may be said from how many games.

NumPy only. Where SciPy has the same quantity, the tests compare with it. An empty sample gives nan rather than an
error, because a table of results with a hole is more useful than none.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Bin(NamedTuple):
    """One bar of a reliability diagram; means are nan where `count` is 0."""

    low: float
    high: float
    count: int
    probability: float
    """Mean of the stated probabilities in [low, high)."""
    outcome: float
    """Mean of what happened."""


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


# -- calibration -------------------------------------------------------------------------------------------------------
def brier(prob: ArrayLike, outcome: ArrayLike) -> float:
    """Mean squared distance of stated probabilities from outcomes in [0, 1] (Brier 1950). 0 is perfect, 0.25 is always
    saying 0.5."""
    prob, outcome = _same_length(prob, outcome)
    return float(np.mean((prob - outcome) ** 2)) if len(prob) else math.nan


def reliability_bins(prob: ArrayLike, outcome: ArrayLike, bins: int = 10) -> list[Bin]:
    """Bins of equal width over [0, 1]; the last includes 1."""
    prob, outcome = _same_length(prob, outcome)
    index = np.clip((prob * bins).astype(int), 0, bins - 1)
    return [_bin(i, bins, prob[index == i], outcome[index == i]) for i in range(bins)]


def _bin(index: int, bins: int, prob: Floats, outcome: Floats) -> Bin:
    means = (float(prob.mean()), float(outcome.mean())) if len(prob) else (math.nan, math.nan)
    return Bin(index / bins, (index + 1) / bins, len(prob), *means)


def ece(prob: ArrayLike, outcome: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean over samples of |stated - happened| of their bin (Naeini, Cooper, Hauskrecht
    2015)."""
    table = [bar for bar in reliability_bins(prob, outcome, bins) if bar.count]
    total = sum(bar.count for bar in table)
    return sum(bar.count * abs(bar.probability - bar.outcome) for bar in table) / total if total else math.nan


# -- order -------------------------------------------------------------------------------------------------------------
def rank_correlation(estimates: ArrayLike, exact: ArrayLike) -> float:
    """Spearman's rank correlation, ties by average rank; nan where either side is constant or shorter than two."""
    left, right = (_ranks(values) for values in _same_length(estimates, exact))
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(np.corrcoef(left, right)[0, 1])


def pairwise_order_accuracy(
    estimates: ArrayLike, exact: ArrayLike, groups: Sequence[Hashable], min_gap: float = 0.0
) -> float:
    """Of the pairs in one group (the moves of one position) whose exact values differ, the share that the estimates
    order rightly.

    Args:
        estimates, exact: (items,).
        groups: (items,) only items of the same group are compared.
        min_gap: pairs whose exact values differ by less do not count; equal ones never do.

    Returns:
        A share in [0, 1]; equal estimates count one half, as guessing would. nan where no pair counts.
    """
    estimates, exact = _same_length(estimates, exact)
    scores = [_order_scores(estimates[members], exact[members], min_gap) for members in _members(groups)]
    joined = np.concatenate([np.empty(0), *scores])
    return float(joined.mean()) if len(joined) else math.nan


def _order_scores(estimates: Floats, exact: Floats, min_gap: float) -> Floats:
    first, second = np.triu_indices(len(exact), k=1)
    gap = exact[first] - exact[second]
    counts = (gap != 0) & (np.abs(gap) >= min_gap)
    return _agreement(estimates[first] - estimates[second], gap)[counts]


def sign_accuracy(estimates: ArrayLike, exact: ArrayLike, min_size: float = 0.0) -> float:
    """Share of estimates on the right side of zero, among those whose exact value is nonzero and at least `min_size` in
    size.

    An estimate of exactly 0 takes no side and counts one half. nan where none counts.
    """
    estimates, exact = _same_length(estimates, exact)
    counts = (exact != 0) & (np.abs(exact) >= min_size)
    return float(_agreement(estimates, exact)[counts].mean()) if counts.any() else math.nan


def _agreement(left: Floats, right: Floats) -> Floats:
    """1 where the signs agree, 0 where they are opposite, one half where `left` is 0."""
    return (1 + np.sign(left) * np.sign(right)) / 2


# -- arrays ------------------------------------------------------------------------------------------------------------
def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _same_length(left: ArrayLike, right: ArrayLike) -> tuple[Floats, Floats]:
    left, right = _floats(left), _floats(right)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} values against {len(right)}")
    return left, right


def _group_index(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """Numbers groups 0, 1, ... by first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def _members(groups: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The indices of each group's items."""
    index = _group_index(groups)
    order = np.argsort(index, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(index[order])) + 1)


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]
