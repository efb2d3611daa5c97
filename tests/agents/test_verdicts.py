"""Failures stay in the figures, orders and signs count as documented, baselines stand beside."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest

from nlrl.agents.metrics import (
    VerdictTable,
    compare_verdicts,
    one_step_action_value,
    one_step_value,
    score_verdicts,
)
from nlrl.envs import make

GAME = make("tictactoe")
EXAMPLE = "5 1 3"
"""O on 3 and 5, X on 1, X to move: O wins at 7. The position of the worked examples in the instruct prompts."""


def position(moves: str):
    state = GAME.initial_states()[0]
    for move in moves.split():
        state = GAME.apply(state, int(move) - 1).state
    return state


@cache
def random_positions(count: int) -> tuple:
    """Positions of random games that are not over."""
    rng, states = random.Random(7), []
    while len(states) < count:
        state = GAME.initial_states()[0]
        for _ in range(rng.randrange(9)):
            if not GAME.is_terminal(state):
                state = GAME.apply(state, rng.choice(GAME.legal_actions(state))).state
        states += [] if GAME.is_terminal(state) else [state]
    return tuple(states)


def test_perfect_verdicts_score_perfectly():
    exact = [1.0, -1.0, 0.0, 0.5]
    scores = score_verdicts(exact, exact, groups=[0, 0, 0, 0])
    assert (scores.coverage, scores.sign_accuracy, scores.order_accuracy, scores.pairs) == (1, 1, 1, 6)
    assert (scores.mae, scores.brier, scores.bias, scores.positivity_bias) == (0, 0, 0, 0)


def test_failures_stay_in_every_figure():
    scores = score_verdicts([1.0, None, -0.5, None], [1.0, -1.0, -1.0, 0.0], groups="aabb")
    assert scores.coverage == 0.5
    assert scores.sign_accuracy == 0.5  # a failure is wrong, also where the mean would have had the sign
    constant = -0.25
    errors = np.array([0, constant + 1, 0.5, constant])
    assert scores.mae == pytest.approx(np.abs(errors).mean())
    assert scores.brier == pytest.approx((errors**2 / 4).mean())
    assert scores.covered_mae == 0.25
    assert (scores.order_accuracy, scores.pairs) == (0, 2)
    assert scores.bias == 0.25


def test_failing_more_never_helps_against_the_constant():
    exact = [1.0, 1.0, -1.0]
    constant = compare_verdicts([None] * 3, exact)
    assert constant["text"].mae == pytest.approx(constant["constant"].mae)
    assert constant["text"].brier == pytest.approx(constant["constant"].brier)
    assert constant["text"].sign_accuracy == 0
    assert constant["constant"].sign_accuracy == pytest.approx(2 / 3)


def test_order_counts_pairs_within_groups_and_ties_half():
    scores = score_verdicts([0.5, 0.5, 0.0, 0.9], [1.0, 0.0, -1.0, -1.0], groups=[1, 1, 1, 2])
    assert scores.pairs == 3
    assert scores.order_accuracy == pytest.approx((0.5 + 1 + 1) / 3)
    near = score_verdicts([0.1, 0.9], [0.50, 0.45], groups=[1, 1])
    assert near.pairs == 0
    assert np.isnan(near.order_accuracy)


def test_a_boaster_has_the_right_side_and_a_calibration_error():
    exact = np.linspace(-0.8, 0.8, 81)
    modest, boaster = score_verdicts(exact, exact), score_verdicts(np.sign(exact), exact)
    assert (modest.side_accuracy, modest.ece, modest.rank_correlation) == (1, 0, pytest.approx(1))
    assert boaster.side_accuracy == 1
    assert boaster.ece > 0.25
    assert boaster.rank_correlation < 0.9


def test_verdicts_of_the_wrong_side_rank_backwards():
    exact = np.linspace(-0.8, 0.8, 9)
    scores = score_verdicts(-exact, exact)
    assert scores.side_accuracy == 0
    assert scores.rank_correlation == pytest.approx(-1)
    assert scores.ece == pytest.approx(np.abs(exact).mean())


def test_failures_count_in_side_and_rank_and_not_in_the_calibration_error():
    scores = score_verdicts([1.0, None, -1.0, None], [1.0, 1.0, -1.0, -1.0])
    assert scores.side_accuracy == 0.5
    assert scores.rank_correlation < 1
    assert scores.ece == 0


def test_some_rows_are_scored_as_if_they_were_all():
    rng = np.random.default_rng(0)
    exact, said = rng.uniform(-1, 1, (2, 60))
    groups = [i // 4 for i in range(60)]
    table = VerdictTable(said, exact, groups)
    rows = np.arange(8, 40)
    assert table.scores(rows) == score_verdicts(said[rows], exact[rows], groups[8:40])
    assert sum(bar.count for bar in table.reliability()) == 60


def test_flattery_shows_as_positivity_bias():
    scores = score_verdicts([0.5, 0.5, 0.5, 0.5], [1.0, 0.0, -1.0, -1.0])
    assert scores.positivity_bias == 0.75
    assert scores.bias == 0.75
    assert scores.sign_accuracy == 0.25


def test_small_verdicts_are_even():
    assert score_verdicts([0.05, -0.1, 0.2], [0.0, 0.0, 0.0]).sign_accuracy == pytest.approx(2 / 3)


def test_nothing_to_score_is_nan():
    scores = score_verdicts([], [])
    assert scores.count == 0
    assert np.isnan([scores.coverage, scores.mae, scores.bias]).all()


@pytest.mark.parametrize(
    ("verdicts", "exact", "groups"),
    [
        ([0.0], [0.0, 1.0], None),
        ([0.0], [0.0], [1, 2]),
        ([1.5], [0.0], None),
        ([0.0], [-2.0], None),
        ([0.0], [float("nan")], None),
    ],
)
def test_wrong_input_is_refused(verdicts, exact, groups):
    with pytest.raises(ValueError, match=r"not the same|in \[-1, 1\]"):
        score_verdicts(verdicts, exact, groups)


def test_one_step_values():
    assert one_step_value(GAME, position("")) == 0
    assert one_step_value(GAME, position(EXAMPLE)) == -0.5  # 7 must be blocked, and can be
    assert one_step_value(GAME, position("5 1 3 2")) == 1  # O wins at 7 now
    assert one_step_value(GAME, position("1 2 9 6 7")) == -1  # O threatens 4, 5 and 8
    assert one_step_action_value(GAME, position(EXAMPLE), 6) == 0.5  # X threatens 4
    assert one_step_action_value(GAME, position(EXAMPLE), 8) == -1
    assert one_step_action_value(GAME, position("5 1 3 2"), 6) == 1
    with pytest.raises(ValueError, match="not over"):
        one_step_value(GAME, position("1 4 2 5 3"))


def test_one_step_baseline_beats_the_constant_on_optimal_values():
    def optimal(state) -> float:
        if GAME.is_terminal(state):
            return 0.0 if GAME.returns(state) == (0, 0) else -1.0
        return max(-optimal(GAME.apply(state, action).state) for action in GAME.legal_actions(state))

    states = [state for state in random_positions(150) if len(GAME.legal_actions(state)) <= 6]
    exact = [optimal(state) for state in states]
    table = compare_verdicts(exact, exact, baselines={"one step": [one_step_value(GAME, state) for state in states]})
    assert table["text"].mae == 0 < table["one step"].mae < table["constant"].mae
    assert table["constant"].sign_accuracy < table["one step"].sign_accuracy < 1
