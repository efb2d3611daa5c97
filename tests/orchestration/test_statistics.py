"""Statistics agree with SciPy where SciPy has them, and with counting by hand where it has not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nlrl.orchestration.statistics import (
    brier,
    ece,
    mean_interval,
    paired_bootstrap,
    pairwise_order_accuracy,
    rank_correlation,
    reliability_bins,
    sign_accuracy,
    wilson,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# -- intervals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (437, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_wilson_agrees_with_scipy(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_no_games_says_nothing():
    assert wilson(0, 0) == (0, 1)


def test_wilson_takes_draws_as_halves():
    assert wilson(1, 20).low < wilson(1.5, 20).low < wilson(2, 20).low


@pytest.mark.parametrize("n", [2, 3, 10, 500])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_mean_interval_agrees_with_scipy(rng, n, confidence):
    values = rng.normal(3, 2, n)
    expected = stats.t.interval(confidence, n - 1, values.mean(), stats.sem(values))
    assert mean_interval(values, confidence) == pytest.approx(expected, rel=1e-9)


def test_mean_interval_of_one_value_is_unknown():
    assert all(math.isnan(end) for end in mean_interval([1.0]))


def test_paired_bootstrap_agrees_with_scipy_on_pair_means(rng):
    scores = rng.choice([0, 0.5, 1], size=(60, 2))
    expected = stats.bootstrap(
        (scores.mean(1),), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    found = paired_bootstrap(scores.ravel(), np.repeat(np.arange(60), 2).tolist())
    assert found == pytest.approx((expected.low, expected.high), abs=0.01)


def test_pairs_that_cancel_leave_no_doubt_and_pairs_that_agree_leave_more_than_single_games():
    first_seat_wins = [1.0, 0.0] * 50
    pairs = [game // 2 for game in range(100)]
    assert paired_bootstrap(first_seat_wins, pairs) == (0.5, 0.5)
    same_winner = [1.0, 1.0, 0.0, 0.0] * 25
    clustered, alone = paired_bootstrap(same_winner, pairs), paired_bootstrap(same_winner, list(range(100)))
    assert clustered.high - clustered.low == pytest.approx(math.sqrt(2) * (alone.high - alone.low), rel=0.1)


def test_paired_bootstrap_depends_on_the_seed_alone_and_takes_pairs_with_a_missing_game():
    scores, pairs = [1, 0, 1, 0.5, 0], ["a", "a", "b", "b", "c"]
    assert paired_bootstrap(scores, pairs, seed=3) == paired_bootstrap(scores, pairs, seed=3)
    assert paired_bootstrap(scores, pairs, seed=3).low < 0.5


def test_paired_bootstrap_covers_the_truth_as_often_as_it_says(rng):
    pairs = np.repeat(np.arange(40), 2).tolist()
    hits = 0
    for _ in range(300):
        strength = np.repeat(rng.beta(2, 2, 40), 2)  # the games of a pair are alike
        low, high = paired_bootstrap(rng.random(80) < strength, pairs, resamples=300)
        hits += low <= 0.5 <= high
    assert 0.89 <= hits / 300 <= 0.985


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
