from __future__ import annotations

import pytest

from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.ui.positions import read_position

GAME = make("tictactoe")


def test_a_position_is_a_board_or_moves_or_the_start():
    by_moves = read_position(GAME, "5 1 9")
    assert by_moves.moves == ["5", "1", "9"]
    board = GAME.to_text(by_moves.state)
    assert read_position(GAME, board).state == by_moves.state
    assert read_position(GAME, f"\n{board}\n").state == by_moves.state
    assert read_position(GAME, " \n").state == GAME.initial_states()[0]


def test_moves_of_several_words_are_separated_by_commas():
    maze = make("maze")
    start = maze.initial_states()[0]
    move = maze.action_text(start, maze.legal_actions(start)[0])
    assert read_position(maze, f"{move}, {move}").actions == (maze.legal_actions(start)[0],) * 2


@pytest.mark.parametrize("text", ["5 5", "chess", "1 2 3 4 5 6 7 8 9 1", "<b>"])
def test_what_is_neither_is_refused(text):
    with pytest.raises(NLRLError, match="no legal move"):
        read_position(GAME, text)


def test_where_chance_decides_a_board_is_asked_for():
    lake = make("frozen_lake", slippery=True)
    with pytest.raises(NLRLError, match="chance decides"):
        read_position(lake, lake.action_text(lake.initial_states()[0], 2))


def test_moves_are_tried_and_taken_back():
    start = read_position(GAME, "5")
    tried = start.played(0)
    assert (tried.moves, tried.last_move) == (["5", "1"], 0)
    assert tried.taken_back() == start
    assert read_position(GAME, "").taken_back() == read_position(GAME, "")


def test_chance_is_chosen():
    lake = make("frozen_lake", slippery=True)
    start = read_position(lake, "")
    outcomes = start.outcomes(2)
    assert len(outcomes) > 1
    assert start.played(2, 1).state == outcomes[1][1]
