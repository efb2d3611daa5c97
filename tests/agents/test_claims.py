"""Claims are found in bundled and in freer sentences, and decided by the rules."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.agents.language import Outlook, language_of
from nlrl.agents.metrics import check_claims
from nlrl.agents.tictactoe_language import open_line_texts
from nlrl.envs import make
from nlrl.envs.tictactoe import winning_cells

GAME = make("tictactoe")
LANGUAGE = language_of(GAME)
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


def decided(text: str, moves: str = EXAMPLE, action: int | None = None) -> list[tuple[str, bool]]:
    claims = check_claims(text, GAME, position(moves), None if action is None else action - 1)
    return [(claim.kind, claim.true) for claim in claims]


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        # bundled sentences
        ("O wins at 7; X wins at none.", [("winning_cells", True)] * 2),
        ("X wins at none; O wins at 7 9.", [("winning_cells", True), ("winning_cells", False)]),
        ("O can complete a line at 7; X cannot.", [("winning_cells", True)] * 2),
        ("O can complete a line at 7 and 8, X at none.", [("winning_cells", False), ("winning_cells", True)]),
        ("Winning cells: O 7, X none.", [("winning_cells", True)] * 2),
        ("Winning cells: O none, X 7.", [("winning_cells", False)] * 2),
        ("I put X at +0.10, about level, mostly by 1-4-7; the danger is 3-5-7.", [("open_line", True)] * 2),
        ("I put X at +0.10, about level, mostly by 3-5-7; the danger is 1-4-7.", [("open_line", False)] * 2),
        ("I put O at +0.10, about level, mostly by 3-5-7; the danger is 1-4-7.", [("open_line", True)] * 2),
        ("X stands at +0.10, best along 1-4-7, and must watch 4-5-6.", [("open_line", True)] * 2),
        (
            "I prefer 7 at +0.50 for 1-4-7, ahead of 9 at +0.40.",
            [("legal_move", True), ("open_line", True), ("legal_move", True)],
        ),
        (
            "I prefer 7 at +0.50 for 3-5-7, ahead of 5 at +0.40.",
            [("legal_move", True), ("open_line", False), ("legal_move", False)],
        ),
        ("O on 3 5; X on 1; free 2 4 6 7 8 9. X is to move.", [("occupancy", True)] * 3 + [("to_move", True)]),
        (
            "O on 3; X on 1; free 2 4 6 7 8 9. O is to move.",
            [("occupancy", False), *[("occupancy", True)] * 2, ("to_move", False)],
        ),
        # freer English
        ("O can win at 7, so I must block at 7.", [("winning_cells", True), ("block", True)]),
        ("O threatens to win at 9.", [("winning_cells", False)]),
        ("My opponent could complete a line at 7.", [("winning_cells", True)]),
        ("I can win at 7.", [("winning_cells", False)]),
        (
            "X has no threats, and neither side can complete a line.",
            [("winning_cells", True), ("winning_cells", False)],
        ),
        ("The centre is taken by O. The top-left corner is occupied by X.", [("occupancy", True)] * 2),
        ("The centre is free; cell 9 is empty.", [("occupancy", False), ("occupancy", True)]),
        ("O holds 5 and 3, X occupies 2.", [("occupancy", True), ("occupancy", False)]),
        ("Cell 5 is not free. 4 is not empty.", [("occupancy", True), ("occupancy", False)]),
        ("The line 1-5-8 matters.", [("line", False)]),
        ("1-5-9 is blocked. 4-5-6 is blocked.", [("open_line", True), ("open_line", False)]),
        ("I suggest playing 9. I recommend move 5.", [("legal_move", True), ("legal_move", False)]),
        ("best_move: 7", [("legal_move", True)]),
        ("best_move: 5", [("legal_move", False)]),
        # no claims
        ("O has 2 threats and 3 ideas at +0.50 in 4 moves.", []),
        ("Lovely weather; X is clearly better.", []),
    ],
)
def test_claims_are_found_and_decided(text, claims):
    assert decided(text) == claims


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("Then X wins at 4; O wins at none.", [("winning_cells", True)] * 2),
        ("Playing 7 blocks O and keeps 1-4-7 open.", [("block", True), ("open_line", True)]),
        ("Playing 7 wins for X.", [("winning_cells", False)]),
        ("7 is taken. 4 is free.", [("occupancy", True)] * 2),
        ("Playing 7 is natural. Playing 5 is not.", [("legal_move", True), ("legal_move", False)]),
    ],
)
def test_text_about_a_move_is_checked_after_it(text, claims):
    assert decided(text, action=7) == claims


@pytest.mark.parametrize(
    ("moves", "action", "text", "true"),
    [
        ("1 4 2 5", 3, "That completes 1-2-3 and wins.", True),
        ("1 4 2 5", 3, "O completes 4-5-6 and has won.", False),
        ("1 4 2 5", 9, "That completes 1-2-3 and wins.", True),  # it could, next
        ("1 4 2 5", 9, "X completes 1-2-3.", False),
        ("1 4 2 5", 9, "The board is full.", False),
        ("5 1 2 8 7 3 6 4", 9, "That fills the board: a draw.", True),
        ("5 1 2 8 7 3 6 4", 9, "The board is full and nobody has a line.", True),
    ],
)
def test_claims_about_the_end_of_a_game(moves, action, text, true):
    claims = decided(text, moves, action)
    assert claims
    assert all(found == true for _, found in claims)


def test_bundled_sentences_are_understood_and_true_on_random_positions():
    rng = random.Random(3)
    for state in random_positions(150):
        me, action = GAME.current_player(state), rng.choice(GAME.legal_actions(state))
        after = GAME.apply(state, action).state
        hopes, dangers = open_line_texts(after, me), open_line_texts(after, 1 - me)
        outlook = Outlook(0.25, rng.choice([*hopes, None]), rng.choice([*dangers, None]))
        cited = (outlook.hope is not None) + (outlook.danger is not None)
        full = GAME.is_terminal(after)
        for text, about, least in (
            (LANGUAGE.facts(state, rng), None, 2),
            (LANGUAGE.read(state, rng), None, 4),
            (LANGUAGE.facts_after(state, action, rng), action, 1 if full else 2),
            (LANGUAGE.forecast(GAME.player_names[me], outlook, rng), action, cited),
        ):
            claims = check_claims(text, GAME, state, about)
            assert len(claims) >= least, (text, claims)
            assert all(claim.true for claim in claims), (text, claims)


def test_facts_of_another_position_are_found_out():
    states = random_positions(150)
    wrong = total = 0
    for state, other in pairwise(states):
        if any(winning_cells(state, player) != winning_cells(other, player) for player in (0, 1)):
            total += 1
            wrong += not all(claim.true for claim in check_claims(LANGUAGE.facts(state), GAME, other))
    assert total > 50
    assert wrong == total


@settings(max_examples=200, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=120),
        st.lists(
            st.sampled_from(
                [
                    "O",
                    "X",
                    "I",
                    "wins",
                    "at",
                    "1",
                    "5",
                    "and",
                    "none",
                    ";",
                    "3-5-7",
                    "centre",
                    "block",
                    "is",
                    "free",
                    "by",
                    "\n",
                ]
            ),
            max_size=25,
        ).map(" ".join),
    ),
    action=st.one_of(st.none(), st.sampled_from([1, 6])),
)
def test_checking_claims_never_raises(text, action):
    for claim in check_claims(text, GAME, position(EXAMPLE), action):
        assert isinstance(claim.true, bool)
