"""Claims about Breakthrough are found in bundled and in freer sentences, and decided by the rules."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.agents.language import Outlook, language_of
from nlrl.agents.metrics import check_claims
from nlrl.envs import make

GAME = make("breakthrough")
LANGUAGE = language_of(GAME)
EXAMPLE = GAME.parse_text(
    "5  b . . b .\n4  . b . . .\n3  . . w . b\n2  w . . . w\n1  . w . w .\n   a b c d e\n"
    "To move: black\nBlack: a5 d5 b4 e3\nWhite: c3 a2 e2 b1 d1"
)
NEAR_THE_END = GAME.parse_text(
    "5  . . . . .\n4  . w . . b\n3  . . . . .\n2  . . b . .\n1  . . . . w\n   a b c d e\n"
    "To move: white\nBlack: e4 c2\nWhite: b4 e1"
)


@cache
def random_positions(games: int) -> tuple:
    """(state, action) of every turn of random games."""
    rng, found = random.Random(7), []
    for _ in range(games):
        state = GAME.initial_states()[0]
        while legal := GAME.legal_actions(state):
            action = rng.choice(legal)
            found.append((state, action))
            state = GAME.apply(state, action).state
    return tuple(found)


def decided(text: str, state=EXAMPLE, action: str | None = None) -> list[tuple[str, bool]]:
    number = None if action is None else GAME.parse_action(state, action)
    return [(claim.kind, claim.true) for claim in check_claims(text, GAME, state, number)]


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        # how many pawns
        ("Pawns: black 4, white 5.", [("material", True)] * 2),
        ("Pawns: black 5, white 5.", [("material", False), ("material", True)]),
        ("black has 4 of its pawns left, white 5.", [("material", True)] * 2),
        ("White has 5 pawns and Black has 3.", [("material", True), ("material", False)]),
        ("White has one more pawn. Black is down by two pawns.", [("material", True), ("material", False)]),
        ("White has a material advantage, black has fewer pawns.", [("material", True)] * 2),
        ("Material is balanced. Both sides have 4 pawns.", [("material", False)] * 2),
        ("My opponent leads by a pawn. I have more pawns.", [("material", True)]),
        # how far they have to go
        ("Rows to go: black 2 with e3, white 2 with c3.", [("race", True)] * 2),
        ("Rows to go: black 3 with b4, white 2 with c3.", [("race", False), ("race", True)]),
        ("black is 2 from the far row with e3 b4, white 2 with c3.", [("race", False), ("race", True)]),
        ("White's most advanced pawn is c3. Black's leading pawn is b4.", [("race", True), ("race", False)]),
        ("The pawn on e3 is two steps away from promotion.", [("race", True)]),
        ("c3 is one row from the far row.", [("race", False)]),
        # captures
        ("Captures for black: b4c3*.", [("capture", True)]),
        ("Captures for white: none.", [("capture", False)]),
        ("white can capture by c3b4*.", [("capture", True)]),
        ("Black can capture the pawn on c3; White threatens to capture a5.", [("capture", True), ("capture", False)]),
        ("b4 attacks c3. a5 can capture b4.", [("capture", True), ("capture", False)]),
        ("b4 is under attack. e3 can be captured.", [("capture", True), ("capture", False)]),
        ("d5 cannot be captured.", [("capture", True)]),
        ("Black has no captures.", [("capture", False)]),
        ("b4 is protected by a5. The c3 pawn is undefended.", [("guard", True)] * 2),
        ("b4 is not defended. c3 is hanging.", [("guard", False), ("capture", True)]),
        # who can win at once, and who cannot be stopped
        ("Black cannot win at once. White can win immediately.", [("win_at_once", True), ("win_at_once", False)]),
        ("Neither side can win next move.", [("win_at_once", True)]),
        ("e3 is a free runner. No black pawn can stop d1.", [("runner", False)] * 2),
        # cells that hopes and dangers name
        ("I put black at +0.10, about level, mostly by c1; the danger is c5.", [("aim", True)] * 2),
        ("I put black at +0.10, about level, mostly by c5; the danger is c1.", [("aim", False)] * 2),
        ("black stands at +0.10, best towards e1, and must watch e5.", [("aim", True)] * 2),
        (
            "I prefer e3d2 at +0.50 for c1, ahead of b4a3 at +0.40.",
            [("legal_move", True), ("aim", True), ("legal_move", True)],
        ),
        # where pawns stand
        (
            "black on a5 d5 b4 e3; white on c3 a2 e2 b1 d1. black is to move.",
            [("occupancy", True), ("occupancy", True), ("to_move", True)],
        ),
        ("black on a5 d5 b4; white on c3 a2 e2 b1 d1.", [("occupancy", False), ("occupancy", True)]),
        ("White pieces are at: c3, a2. Black pawns on d1.", [("occupancy", True), ("occupancy", False)]),
        ("White occupies b1 and d1. I hold c3.", [("occupancy", True), ("occupancy", False)]),
        ("c3 is empty. a3 is vacant. a5 is not empty.", [("occupancy", b) for b in (False, True, True)]),
        ("Black has pawns on f6.", [("occupancy", False)]),  # no cell of this board
        # the rest
        ("Black has 8 legal moves. White has two legal moves.", [("mobility", True), ("mobility", False)]),
        ("It is black's turn. White to move.", [("to_move", True), ("to_move", False)]),
        ("1. **b4c3***: takes.\n2. **e3e2**: pushes.", [("legal_move", True), ("legal_move", False)]),
        ("*Suggested Moves*: e3d2, b4c3*", [("legal_move", True)] * 2),
        ("I recommend d3d4.\nbest_move: b4c3*", [("legal_move", False), ("legal_move", True)]),
        # no claims
        ("Black is clearly better and should push. <black>", []),
        ("After e3d2 black can win at once, and if white waits, white cannot win immediately.", []),
        ("I put black at +0.50 in 3 moves.", []),
    ],
)  # fmt: skip
def test_claims_are_found_and_decided(text, claims):
    assert decided(text) == claims


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("White can win at once with b4. Black can win immediately.", [("win_at_once", True)] * 2),
        ("White can win at once with e1.", [("win_at_once", False)]),
        ("Playing b4a5 wins. Black wins by c2b1.", [("win_at_once", True)] * 2),
        ("b4c4 wins at once. Black wins with c2d3.", [("win_at_once", False)] * 2),
        ("White can reach b5 next move.", [("win_at_once", True)]),
        ("Black can reach c5 next move.", [("win_at_once", False)]),
        ("b4 is a free runner, c2 is unstoppable, and e4 is unopposed.", [("runner", b) for b in (True, True, False)]),
        ("Black has a runner. White has no runner.", [("runner", True), ("runner", False)]),
    ],
)  # fmt: skip
def test_wins_at_once_and_runners(text, claims):
    assert decided(text, NEAR_THE_END) == claims


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("Pawns then: black 4, white 4. Captures for white: none.", [("material", True)] * 2 + [("capture", True)]),
        ("Black's pawn on b4 takes. Black's pawn on c3 stands well.", [("occupancy", True)] * 2),
        ("Playing b4c3* is natural. White can answer e2e3.", [("legal_move", True)]),
        ("white to move.", [("to_move", True)]),
    ],
)
def test_text_about_a_move_is_checked_after_it(text, claims):
    assert decided(text, action="b4c3*") == claims


@pytest.mark.parametrize(
    ("text", "action", "true"),
    [
        ("That reaches a5 and wins.", "b4a5", True),
        ("white reaches the far row at b5 and has won.", "b4b5", True),
        ("That reaches a5 and wins.", "b4b5", False),
        ("That takes the last pawn and wins.", "b4a5", False),
    ],
)
def test_claims_about_the_end_of_a_game(text, action, true):
    claims = decided(text, NEAR_THE_END, action)
    assert claims == [("result", true)]


def test_bundled_sentences_are_understood_and_true_on_random_positions():
    rng = random.Random(3)
    for state, action in random_positions(12):
        after, me = GAME.apply(state, action).state, state.player
        hopes, dangers = LANGUAGE.aims(after, me), LANGUAGE.aims(after, 1 - me)
        outlook = Outlook(0.25, rng.choice([*hopes, None]), rng.choice([*dangers, None]))
        cited = (outlook.hope is not None) + (outlook.danger is not None)
        for text, about, least in (
            (LANGUAGE.facts(state, rng), None, 5),
            (LANGUAGE.read(state, rng), None, 4),
            (LANGUAGE.facts_after(state, action, rng), action, 1 if GAME.is_terminal(after) else 5),
            (LANGUAGE.forecast(GAME.player_names[me], outlook, rng), action, cited),
        ):
            claims = check_claims(text, GAME, state, about)
            assert len(claims) >= least, (text, claims)
            assert all(claim.true for claim in claims), (text, claims)


def test_facts_of_another_position_are_found_out():
    states = [state for state, _ in random_positions(12)]
    wrong = total = 0
    for state, other in zip(states, states[2:], strict=False):
        if state.player == other.player and LANGUAGE.facts(state) != LANGUAGE.facts(other):
            total += 1
            wrong += not all(claim.true for claim in check_claims(LANGUAGE.facts(state), GAME, other))
    assert total > 100
    assert wrong == total


SIDES = ["black", "white", "I", "none", "no", "2", "c3", "f9", "e3d2", "b4c3*", "pawns", ";", ".", "\n"]
WORDS = [
    "can",
    "capture",
    "win",
    "at",
    "at once",
    "has",
    "from the far row",
    "is",
    "a runner",
    "protected",
    "danger is",
]


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(st.text(max_size=80), st.lists(st.sampled_from(SIDES + WORDS), max_size=20).map(" ".join)),
    action=st.sampled_from([None, "e3d2", "b4c3*"]),
)
def test_checking_claims_never_raises(text, action):
    for _, true in decided(text, action=action):
        assert isinstance(true, bool)
