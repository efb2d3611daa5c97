from __future__ import annotations

import pytest

from nlrl.envs import make
from nlrl.ui.exact import Exact
from nlrl.ui.judgement import BLUNDER, ILLEGAL, Judgement, accuracy, judge, label_of, next_blunder

GAME = make("tictactoe")
STATE = GAME.initial_states()[0]


@pytest.mark.parametrize(
    ("regret", "label"),
    [
        (0.0, "best"),
        (0.05, "good"),
        (0.1, "inaccuracy"),
        (0.19, "inaccuracy"),
        (0.2, "mistake"),
        (0.3, "blunder"),
        (2.0, "blunder"),
        (0.1 + 0.2 - 0.1 - 1e-12, "mistake"),
    ],
)
def test_a_regret_has_a_word(regret, label):
    assert label_of(regret) == label


def test_a_judgement_says_what_was_best():
    exact = Exact(0.5, {0: 0.5, 1: 0.0, 2: 0.5, 3: None})
    assert judge(GAME, STATE, 0, exact).sentence == "Best."
    assert judge(GAME, STATE, 1, exact).sentence == "Blunder: 1 and 3 were best."
    assert judge(GAME, STATE, 1, Exact(0.15, {0: 0.15, 1: 0.0})).sentence == "Inaccuracy: 1 was best."


def test_what_is_not_known_is_not_judged():
    assert judge(GAME, STATE, 3, Exact(0.5, {0: 0.5, 3: None})) is None
    assert judge(GAME, STATE, 0, Exact(None, {0: 0.5})) is None


def test_a_reply_without_a_move_counts_as_not_best_and_has_no_regret():
    failed = judge(GAME, STATE, None, Exact(0.5, {0: 0.5}))
    assert failed == Judgement(ILLEGAL, None, ("1",))
    found = accuracy([failed, judge(GAME, STATE, 0, Exact(0.5, {0: 0.5})), None])
    assert (found.judged, found.best, found.regret) == (2, 0.5, 0.0)


def test_nobody_judged_has_no_accuracy():
    assert accuracy([None]).best is None


def test_the_next_blunder_comes_round_again():
    bad, fine = Judgement(BLUNDER, 1.0, ("1",)), Judgement("best", 0.0, ("1",))
    found = [fine, bad, fine, bad, None]
    assert [next_blunder(found, ply) for ply in range(5)] == [1, 3, 3, 1, 1]
    assert next_blunder([fine, None], 0) is None
