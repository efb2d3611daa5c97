from __future__ import annotations

import pytest

from nlrl.envs import make
from nlrl.testing import ScriptedGame
from nlrl.ui.boards import positions

GAME = make("tictactoe")
START = GAME.to_text(GAME.initial_states()[0])


def test_a_game_is_shown_move_by_move_with_what_was_said():
    record = {"start": START, "actions": [4, 0], "turns": [{"ply": 0, "reply": "best_move: 5"}]}
    found = positions(GAME, record)
    assert [p.caption for p in found] == ["start", f"1. {GAME.player_names[0]}: 5", f"2. {GAME.player_names[1]}: 1"]
    assert [p.text for p in found] == ["", "best_move: 5", ""]
    assert len({p.svg for p in found}) == 3


def test_a_forfeit_shows_what_was_said_instead_of_a_move():
    record = {"start": START, "actions": [4], "turns": [{"ply": 1, "reply": "I resign"}]}
    assert [(p.caption, p.text) for p in positions(GAME, record)][-1] == ("forfeit", "I resign")


def test_a_state_shows_verdicts_the_choice_and_the_texts():
    record = {
        "state": START,
        "candidates": [
            {"action": 4, "text": "four lines", "verdict": 0.5},
            {"action": 0, "text": "a corner", "verdict": None},
        ],
        "action": 4,
        "text": "The middle.",
    }
    (position,) = positions(GAME, record)
    assert "+0.50" in position.svg
    assert "100%" in position.svg
    assert position.text == "5: four lines\n1: a corner\nThe middle."
    assert position.caption == f"{GAME.player_names[0]}: 5"


def test_a_game_with_chance_stops_where_the_record_does_not_say_what_happened():
    game = ScriptedGame({"a": {"go": "b"}, "b": {"flip": [(0.5, "c"), (0.5, "d")]}, "c": 1.0, "d": 0.0})
    assert len(positions(game, {"start": "a", "actions": [0, 1]})) == 2


def test_other_records_have_no_board_and_wrong_ones_are_refused():
    assert positions(GAME, {"kind": "other"}) == []
    with pytest.raises(ValueError, match="rows"):
        positions(GAME, {"state": "not a board"})
