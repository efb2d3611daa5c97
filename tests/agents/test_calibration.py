"""Calibration and order agree with SciPy where SciPy has them, and with counting by hand where it has not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nlrl.agents.metrics.calibration import (
    brier,
    ece,
    order_counts,
    pairwise_order_accuracy,
    rank_correlation,
    reliability_bins,
    sign_accuracy,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# -- calibration -------------------------------------------------------------------------------------------------------
def test_brier_is_the_mean_squared_distance():
    assert brier([1, 0, 0.5], [1, 1, 0]) == pytest.approx(1.25 / 3)
    assert math.isnan(brier([], []))


def test_reliability_bins_hold_every_sample_once():
    bars = reliability_bins([0, 0.05, 0.1, 0.55, 1.0], [0, 1, 1, 0, 1], bins=10)
    assert [bar.count for bar in bars] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert bars[0] == (0, 0.1, 2, 0.025, 0.5)
    assert math.isnan(bars[2].outcome)


def test_calibration_error_is_zero_for_the_calibrated_and_the_gap_for_the_boaster(rng):
    prob = np.repeat([0.25, 0.75], 4)
    assert ece(prob, [0, 0, 0, 1, 1, 1, 1, 0]) == 0
    assert ece([0.9] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.4)
    prob = rng.random(20_000)
    assert ece(prob, rng.random(20_000) < prob) < 0.02


# -- order -------------------------------------------------------------------------------------------------------------
def test_rank_correlation_agrees_with_scipy_with_and_without_ties(rng):
    for values in (rng.normal(size=(2, 50)), rng.integers(-1, 2, size=(2, 50))):
        assert rank_correlation(*values) == pytest.approx(stats.spearmanr(*values).statistic, abs=1e-12)


def test_rank_correlation_of_a_constant_is_unknown():
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))
    assert math.isnan(rank_correlation([], []))


def test_pairwise_order_counts_pairs_within_groups_only():
    estimates = [0.9, 0.1, 0.5, 0.2, 0.3]
    exact = [1.0, -1.0, 0.0, 1.0, -1.0]
    # In group a all three pairs are ordered rightly, in group b the only one is not; between groups nothing counts.
    assert pairwise_order_accuracy(estimates, exact, ["a", "a", "a", "b", "b"]) == 0.75
    assert pairwise_order_accuracy(estimates, exact, ["a", "a", "a", "b", "b"], min_gap=2.0) == 0.5


def test_pairwise_order_skips_exact_ties_and_halves_undecided_ones():
    assert math.isnan(pairwise_order_accuracy([1, 2], [0, 0], [0, 0]))
    assert pairwise_order_accuracy([1, 1], [0, 1], [0, 0]) == 0.5
    assert math.isnan(pairwise_order_accuracy([], [], []))


def test_pairwise_order_agrees_with_kendall_where_nothing_ties(rng):
    estimates, exact = rng.normal(size=(2, 30))
    tau = stats.kendalltau(estimates, exact).statistic
    assert pairwise_order_accuracy(estimates, exact, [0] * 30) == pytest.approx((1 + tau) / 2)


def test_sign_accuracy_leaves_out_the_undecided_and_halves_the_undecided_estimate():
    assert sign_accuracy([0.1, -0.2, 0.3, 0.0], [1, -1, -1, 1]) == 0.625
    assert sign_accuracy([0.1, 0.2], [0.5, 0.0]) == 1
    assert sign_accuracy([0.1, 0.2], [-0.5, 1.0], min_size=0.8) == 1
    assert math.isnan(sign_accuracy([1.0], [0.0]))


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 values against 3"):
        brier([1, 0], [1, 0, 1])


def test_a_failed_estimate_loses_all_its_pairs():
    right, pairs = order_counts([0.5, math.nan, 0.1], [1, 0, -1], [0, 0, 0])
    assert (right.sum(), pairs.sum()) == (1, 3)
