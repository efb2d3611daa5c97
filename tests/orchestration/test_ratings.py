"""Ratings from games whose players' strengths are known."""

import numpy as np
import pytest

from nlrl.orchestration.ratings import Meeting, rate, strengths


def by_name(ratings):
    return {rating.name: rating for rating in ratings}


def drawn(strength: dict[str, float], pairs: int, seed: int = 0) -> list[Meeting]:
    """Meetings of two games, won with the odds of the strengths."""
    rng, names = np.random.default_rng(seed), list(strength)
    out = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            chance = strength[one] / (strength[one] + strength[other])
            out += [Meeting(one, other, float(won), 2) for won in rng.binomial(2, chance, pairs)]
    return out


def test_the_odds_are_found_again():
    found = by_name(rate(drawn({"a": 1.0, "b": 3.0, "c": 10.0}, 4000), anchor="a", resamples=20))
    assert found["a"].rating == 0
    assert found["b"].rating == pytest.approx(400 * np.log10(3), abs=12)
    assert found["c"].rating == pytest.approx(400, abs=12)
    assert [rating.name for rating in rate(drawn({"a": 1.0, "b": 3.0}, 100))] == ["b", "a"]


def test_two_players_have_the_likelihoods_maximum():
    points, games = np.array([[0.0, 75.0], [25.0, 0.0]]) * 1000, np.array([[0.0, 100.0], [100.0, 0.0]]) * 1000
    one, other = strengths(points, games)
    assert one / other == pytest.approx(3, rel=1e-4)  # but for the prior's one game in a hundred thousand


def test_who_won_everything_has_a_finite_rating():
    found = by_name(rate([Meeting("a", "b", 2.0, 2)] * 50))
    assert 300 < found["a"].rating < 3000
    assert found["a"].score == 1
    assert found["b"].score == 0
    assert found["a"].rating == pytest.approx(-found["b"].rating)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth, hits = 400 * np.log10(2), 0
    for seed in range(60):
        b = by_name(rate(drawn({"a": 1.0, "b": 2.0, "c": 1.0}, 40, seed), anchor="a", resamples=100, seed=seed))["b"]
        hits += b.interval.low <= truth <= b.interval.high
    assert hits >= 50


def test_more_games_make_intervals_narrower():
    few, many = (by_name(rate(drawn({"a": 1.0, "b": 2.0}, n), resamples=100))["b"].interval for n in (20, 500))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_equal_input_gives_equal_ratings():
    found = drawn({"a": 1.0, "b": 2.0}, 30)
    assert rate(found, resamples=50) == rate(found, resamples=50)


def test_an_anchor_must_have_played():
    with pytest.raises(ValueError, match="'z' has not played; there are a, b"):
        rate([Meeting("a", "b", 1.0, 2)], anchor="z")
