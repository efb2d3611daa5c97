"""Words that judge agree with the number they go with, or are found out: in any game, in bundled and free sentences."""

from __future__ import annotations

import random

import pytest

from nlrl.agents.language import Outlook, language_of
from nlrl.agents.metrics import check_consistency
from nlrl.agents.metrics.consistency import stated_number, without_judgements
from nlrl.envs import make

GAME = make("tictactoe")
LANGUAGE = language_of(GAME)
BANDS = LANGUAGE.phrases["bands"]


def position(moves: str):
    state = GAME.initial_states()[0]
    for move in moves.split():
        state = GAME.apply(state, int(move) - 1).state
    return state


X_TO_MOVE = position("5 1 3")


def agrees(text: str, verdict: float, game=GAME, state=X_TO_MOVE, bands=None):
    return check_consistency(text, verdict, game, state, bands).words_agree


@pytest.mark.parametrize(
    ("text", "fits", "does_not"),
    [
        ("X is clearly winning.", 0.9, -0.9),
        ("X is winning.", 0.9, 0.3),
        ("O has a decisive advantage.", -0.8, 0.8),
        ("It favours O.", -0.4, 0.4),
        ("My opponent is losing.", 0.9, -0.9),
        ("I am in trouble.", -0.6, 0.6),
        ("This is a strong move for X.", 0.5, -0.5),
        ("The position is about equal.", 0.1, 0.8),
        ("A draw is likely.", 0.0, -0.9),
        ("Neither side has an edge.", 0.0, 0.9),
        ("X stands slightly better.", 0.2, 0.9),
        ("I put X at -0.10, a little worse, because O holds the centre.", -0.1, 0.4),
        ("X should win, since O has no good answer.", 0.7, -0.2),
        ("X is unlikely to win.", -0.3, 0.7),
        ("X cannot complete a line, so O is clearly better.", -0.6, 0.6),
        ("O threatens 7. O is better. Still, X blocks, and X is ahead.", 0.3, -0.3),  # the last one concludes
    ],
)
def test_a_judgement_agrees_with_its_verdicts_and_with_no_others(text, fits, does_not):
    assert agrees(text, fits) is True
    assert agrees(text, does_not) is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "O can complete a line at 7; X cannot.",
        "X is not winning.",
        "If O plays 7, O is winning.",
        "X could be better.",
        "5 is better than 6.",
        "X wins at 7; O wins at none.",
        "Lovely weather.",
    ],
)
def test_what_judges_nobody_is_silent(text):
    assert agrees(text, 0.9) is None
    assert agrees(text, -0.9) is None


def test_judgements_turn_with_the_player_to_move():
    assert agrees("X is winning.", 0.9, state=X_TO_MOVE) is True
    assert agrees("X is winning.", -0.9, state=position("5 1 3 7")) is True
    assert agrees("X is winning.", 0.9, state=position("5 1 3 7")) is False


def test_other_games_name_their_own_sides():
    board = make("breakthrough", rows=5, columns=5)
    start = board.initial_states()[0]
    assert agrees("White is clearly better.", -0.6, board, start) is True
    assert agrees("White is clearly better.", 0.6, board, start) is False
    lake = make("frozen_lake")
    start = lake.initial_states()[0]
    assert agrees("The player is likely to reach the goal.", 0.6, lake, start) is True
    assert agrees("The player will certainly fall in.", 0.6, lake, start) is False


# -- bundled sentences -------------------------------------------------------------------------------------------------
def forecasts(count: int):
    rng = random.Random(0)
    for _ in range(count):
        verdict = round(rng.uniform(-1, 1), 2)
        mover = rng.choice((X_TO_MOVE, position("5 1")))
        outlook = Outlook(verdict, rng.choice(("1-4-7", None)), rng.choice(("3-5-7", None)))
        yield mover, verdict, LANGUAGE.forecast(LANGUAGE.player(mover), outlook, rng)


def test_bundled_forecasts_agree_with_their_own_verdict_in_words_and_number():
    for state, verdict, text in forecasts(300):
        found = check_consistency(text, verdict, GAME, state, BANDS)
        assert (found.words_agree, found.number_agrees) == (True, True), text
        assert agrees(text, verdict, state=state) is True, text  # general English understands them, too


def test_bundled_forecasts_disagree_with_another_band():
    for state, verdict, text in forecasts(100):
        other = -verdict if abs(verdict) > 0.2 else 0.9
        assert agrees(text, other, state=state, bands=BANDS) is False, text


def test_bands_are_told_apart_where_general_english_is_not_sure():
    text = "I put X at +0.60, a little better."
    assert agrees(text, 0.6, bands=BANDS) is False
    assert agrees(text, 0.6) is True


# -- numbers in the prose ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("I put X at +0.50.", 0.5),
        ("I put O at +0.50.", -0.5),
        ("My forecast for X is -0.25, a little worse.", -0.25),
        ("X stands at +1.00.", 1.0),
        ("I prefer 7 at +0.98, ahead of 5.", None),
        ("X wins at 7.", None),
    ],
)
def test_the_number_in_the_prose_is_read_from_the_view_of_the_player_to_move(text, stated):
    assert stated_number(text, GAME, X_TO_MOVE) == stated


def test_a_number_that_is_not_the_one_at_the_end_is_found_out():
    assert check_consistency("I put X at +0.50.", 0.5, GAME, X_TO_MOVE).number_agrees is True
    assert check_consistency("I put X at +0.50.", 0.49, GAME, X_TO_MOVE).number_agrees is False
    assert check_consistency("I put O at +0.50.", 0.5, GAME, X_TO_MOVE).number_agrees is False
    assert check_consistency("Quiet.", 0.5, GAME, X_TO_MOVE).number_agrees is None


def test_without_judgements_leaves_facts_and_lines():
    for state, verdict, text in forecasts(50):
        rest = without_judgements(f"Then O wins at 7; X wins at none. {text}", GAME, BANDS)
        assert "O wins at 7" in rest
        assert not any(phrase in rest for phrases in BANDS.values() for phrase in phrases), rest
        assert agrees(rest, verdict, state=state, bands=BANDS) is None
        assert not text.count("1-4-7") or "1-4-7" in rest
