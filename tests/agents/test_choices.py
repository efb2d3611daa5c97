"""Regret of a choice among candidates: what it costs, and what choosing blindly would."""

from __future__ import annotations

import pytest

from nlrl.agents.metrics import choice_regrets

VALUES = {"a": {0: 1.0, 1: 0.0, 2: -1.0}, "b": {0: 0.5, 1: 0.5}, "c": {4: 1.0}}


def test_the_best_choice_costs_nothing_and_the_worst_all():
    best, worst = choice_regrets([("a", 0), ("a", 2)], VALUES)
    assert (best.regret, best.best, worst.regret, worst.best) == (0, True, 2, False)
    assert best.random_regret == worst.random_regret == 1
    assert best.random_best == pytest.approx(1 / 3)


def test_equal_candidates_are_all_best():
    assert [one.best for one in choice_regrets([("b", 0), ("b", 1)], VALUES)] == [True, True]
    assert choice_regrets([("b", 0)], VALUES)[0].random_best == 1


def test_an_unreadable_choice_costs_what_a_random_one_costs_and_is_never_best():
    (failed,) = choice_regrets([("a", None)], VALUES)
    assert (failed.regret, failed.best) == (failed.random_regret, False)
    assert not choice_regrets([("b", None)], VALUES)[0].best


def test_where_nothing_is_chosen_nothing_is_scored():
    assert choice_regrets([("c", 4)], VALUES) == []


def test_a_choice_that_was_not_offered_is_refused():
    with pytest.raises(ValueError, match="none of the candidates"):
        choice_regrets([("a", 7)], VALUES)
