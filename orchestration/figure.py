"""A *figure*: a number with its 95% interval and what it was made from, as a dict with `value`, `low`, `high` and `n`.

A number that could not be had is None. Shares of texts have Wilson's interval; whatever compares numbers has a
bootstrap over groups (positions), because what is said about one position is not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from nlrl.orchestration.statistics import Interval, cluster_bootstrap, wilson

RESAMPLES = 300
Figure = dict[str, Any]


def rounded(value: float) -> float | None:
    """A number for a manifest: six decimals; None for nan."""
    return None if math.isnan(value) else round(value, 6) + 0.0


def figure(value: float, interval: Interval, n: int) -> Figure:
    """One figure."""
    return {"value": rounded(value), "low": rounded(interval.low), "high": rounded(interval.high), "n": n}


def share(hits: float, n: int) -> Figure:
    """A share with Wilson's interval."""
    return figure(hits / n if n else math.nan, wilson(hits, n), n)


def bootstrapped(
    items: Sequence[Any], groups: Sequence[Hashable], statistic: Callable[[Any], float], resamples: int = RESAMPLES
) -> Figure:
    """A statistic of some items, given their indices, with an interval over groups."""
    n = len(items)
    if not n:
        return figure(math.nan, Interval(math.nan, math.nan), 0)
    (interval,) = cluster_bootstrap(lambda rows: [statistic(rows)], groups, resamples=resamples)
    return figure(statistic(np.arange(n)), interval, n)


def mean_figure(values: Any, groups: Iterable[Hashable]) -> Figure:
    """The mean of (n,) values."""
    return bootstrapped(values, list(groups), lambda rows: float(values[rows].mean()))
