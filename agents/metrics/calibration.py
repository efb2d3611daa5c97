"""Calibration and order of stated numbers: do they mean what they say, and do they rank what they compare?

NumPy only. An empty sample gives nan rather than an error, because a table of results with a hole is more useful than
none.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Bin(NamedTuple):
    """One bar of a reliability diagram; means are nan where `count` is 0."""

    low: float
    high: float
    count: int
    probability: float
    """Mean of the stated probabilities in [low, high)."""
    outcome: float
    """Mean of what happened."""


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
    right, pairs = order_counts(estimates, exact, groups, min_gap)
    return float(right.sum() / pairs.sum()) if pairs.sum() else math.nan


def order_counts(
    estimates: ArrayLike, exact: ArrayLike, groups: Sequence[Hashable], min_gap: float = 0.0
) -> tuple[Floats, Floats]:
    """What `pairwise_order_accuracy` counts: (items,) pairs in the right order and (items,) pairs, each at the earlier
    of its two items. A nan estimate is a failure: its pairs are wrong."""
    estimates, exact = _same_length(estimates, exact)
    right, pairs = np.zeros(len(exact)), np.zeros(len(exact))
    for members in members_of(groups):
        first, second = np.triu_indices(len(members), k=1)
        first, second = members[first], members[second]
        gap = exact[first] - exact[second]
        counts = (gap != 0) & (np.abs(gap) >= min_gap)
        agreement = np.nan_to_num(_agreement(estimates[first] - estimates[second], gap))
        np.add.at(right, first[counts], agreement[counts])
        np.add.at(pairs, first[counts], 1.0)
    return right, pairs


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


def members_of(groups: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The indices of each group's items, groups by first appearance."""
    found: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return [np.array(indices, dtype=np.int64) for indices in found.values()]


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]
