"""Moves that texts suggest are found in every game, and illegal ones are found out."""

from __future__ import annotations

import pytest

from nlrl.agents.metrics.claims import LEGAL_MOVE, check_claims
from nlrl.envs import make

BOARD = make("breakthrough", rows=5, columns=5)
LAKE = make("frozen_lake")
MAZE = make("maze")


def suggested(text: str, game, state=None, action: int | None = None) -> list[bool]:
    state = game.initial_states()[0] if state is None else state
    return [claim.true for claim in check_claims(text, game, state, action) if claim.kind == LEGAL_MOVE]


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("I play a4a3.", [True]),
        ("I would prefer a4b3, ahead of b4b3 at +0.10.", [True, True]),
        ("White should answer b2b3.", [False]),  # before black's move it is black's turn
        ("I recommend z9z1.", [False]),
        ("The best move is a4b3*.", [False]),  # nothing is captured there
        ("Best is c4c4.", [False]),
        ("I take 2 pawns.", []),
        ("a4a3 is on the board.", []),
        ("best_move: a4a3", [True]),
        ("best_move: a5a4", [False]),
    ],
)
def test_breakthrough_moves_are_recognised_by_their_form(text, legal):
    assert suggested(text, BOARD) == legal


def test_a_reply_to_the_move_that_a_text_is_about_is_legal():
    action = BOARD.legal_actions(BOARD.initial_states()[0])[0]
    assert suggested("White should answer b2b3.", BOARD, action=action) == [True]
    assert suggested("White should answer b2b5.", BOARD, action=action) == [False]


def test_a_capture_may_be_named_without_its_star():
    state = BOARD.initial_states()[0]
    for move in ("c4c3", "a2a3"):
        state = BOARD.apply(state, BOARD.parse_action(state, move)).state
    assert BOARD.parse_action(state, "c3b2*") is not None
    assert suggested("I play c3b2.", BOARD, state) == [True]
    assert suggested("I play c3b2*.", BOARD, state) == [True]


def test_moves_without_digits_are_known_by_their_words():
    assert suggested("I choose up, then left.", LAKE) == [True]
    assert suggested("I choose sideways.", LAKE) == []
    assert suggested("I choose move left.", MAZE) == [True]


def test_where_chance_has_a_say_texts_about_moves_can_be_checked():
    assert suggested("I choose up.", LAKE, action=1) == [True]


@pytest.mark.parametrize(("text", "legal"), [("I play 12.", [False]), ("No choice but 15.", [False])])
def test_moves_that_no_board_has_are_illegal(text, legal):
    assert suggested(text, make("tictactoe")) == legal
