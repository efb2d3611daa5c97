"""What `nlrl solve` says about a position."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nlrl import envs
from nlrl.envs.breakthrough.table import default_path
from nlrl.errors import NLRLError
from nlrl.orchestration.solve import solution

ENDGAME = """\
5  . . . . b
4  . . . . .
3  . w . . b
2  . . . . .
1  . . . w .
   a b c d e
To move: black
Black: e5 e3
White: b3 d1"""
WIDTH = 100


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NLRL_CACHE", str(tmp_path))


def printed(*arguments, **options):
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(solution(*arguments, **options))
    return console.file.getvalue()


def rows(text):
    """Move -> (value, regret), as in the table."""
    cells = [line.replace("│", " ").split() for line in text.splitlines() if line.startswith("│")]
    return {move: (value, regret) for move, value, regret in cells}


def test_a_board_is_printed_with_value_best_moves_distance_and_every_move():
    text = printed("breakthrough", ENDGAME)
    assert text.startswith(ENDGAME)
    assert "black to move; value +1.00 under perfect play\nBest: e3d2\n" in text
    assert "Distance to the end under best play: 3 moves\n" in text
    lost = ("-1.00", "2.00")
    assert rows(text) == {"e3d2": ("+1.00", "0.00"), "e3e2": lost, "e5d4": lost, "e5e4": lost}


def test_slashes_stand_for_the_ends_of_lines():
    assert printed("breakthrough", ENDGAME.replace("\n", "/")) == printed("breakthrough", ENDGAME)


def test_moves_lead_from_the_start_to_the_position():
    text = printed("breakthrough(rows=4,columns=4)", "a4a3 b1b2 a3b2*")
    assert "1  w . w w" in text
    assert "white to move; value" in text
    assert {"a1b2*", "c1b2*"} <= rows(text).keys()


def test_the_start_of_the_papers_board_is_lost_in_26_moves_whatever_black_does():
    text = printed("breakthrough")
    assert "black to move; value -1.00 under perfect play\nBest: every move\n" in text
    assert "Distance to the end under best play: 26 moves" in text
    assert set(rows(text).values()) == {("-1.00", "0.00")}


def test_a_game_that_is_over_has_nothing_to_solve():
    text = printed("breakthrough(rows=3,columns=3)", "a3a2 b1a2* b3a2* a1b2 a2b1")
    assert "The game is over; returns: (1.0, -1.0)" in text
    assert "value" not in text


@pytest.mark.parametrize("spec", ["tictactoe", "maze", "frozen_lake"])
def test_boards_of_other_games_are_read_as_they_are_printed(spec):
    game = envs.make_from_spec(spec)
    state = game.initial_states()[-1]
    assert printed(spec, game.to_text(state)).startswith(game.to_text(state))


def test_the_table_is_saved_on_request_only_and_used_from_then_on(tmp_path, monkeypatch):
    spec = "breakthrough(rows=5,columns=3)"
    monkeypatch.setattr("nlrl.envs.oracle._oracles", {})  # as in a new process
    printed(spec)
    assert list(tmp_path.iterdir()) == []
    assert f"The solved positions are in {default_path(5, 3)}" in printed(spec, save=True).replace("\n", "")
    oracle = envs.make_from_spec(spec).make_oracle()
    oracle.distance(oracle.game.initial_states()[0])
    assert oracle.nodes == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("breakthrough", "a4a2"), "STATE: 'a4a2' is not a legal move there; legal: a4a3 a4b3"),
        (("breakthrough", ENDGAME.replace("w", "x", 1)), "STATE: no board of breakthrough.*line 3.*'x'"),
        (("breakthrough", "b/w"), "STATE: no board of breakthrough.*9 lines"),
        (("breakthrough(rows=9)",), "rows must be from 3 to 8"),
        (("tictactoe", "", True), "there is no table to save"),
    ],
)
def test_what_cannot_be_solved_or_saved_is_an_error(arguments, complaint):
    with pytest.raises(NLRLError, match=complaint):
        solution(*arguments)
