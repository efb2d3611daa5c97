"""Statistics agree with SciPy where SciPy has them, and with counting by hand where it has not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nlrl.orchestration.statistics import cluster_bootstrap, mean_interval, paired_bootstrap, wilson


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


def test_cluster_bootstrap_agrees_with_the_paired_one_on_means(rng):
    scores, pairs = rng.choice([0, 0.5, 1], size=120), [game // 2 for game in range(120)]
    (found,) = cluster_bootstrap(lambda rows: [scores[rows].mean()], pairs, resamples=4000)
    assert found == pytest.approx(paired_bootstrap(scores, pairs), abs=0.01)


def test_cluster_bootstrap_takes_several_statistics_and_leaves_out_resamples_without_a_value():
    values = np.array([1.0, 2.0, 3.0, np.nan])
    mean, worst, never = cluster_bootstrap(
        lambda rows: [values[rows].mean(), np.nanmax(values[rows]), np.nan], ["a", "b", "c", "c"], resamples=200
    )
    assert 1 <= mean.low <= mean.high <= 2  # group c makes the mean nan, so only draws of a and b count
    assert worst.high == 3
    assert math.isnan(never.low)
    assert cluster_bootstrap(lambda rows: [0.0], []) == []
