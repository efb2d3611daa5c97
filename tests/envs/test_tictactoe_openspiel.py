"""Our Tic-Tac-Toe and OpenSpiel's must agree in every position of random games."""

import random

import pytest

from nlrl.envs.tictactoe import TicTacToe

pyspiel = pytest.importorskip("pyspiel")


def test_random_games_agree_with_openspiel():
    game, theirs, rng = TicTacToe(), pyspiel.load_game("tic_tac_toe"), random.Random(0)
    for _ in range(500):
        state, peer = game.initial_state(None), theirs.new_initial_state()
        while not peer.is_terminal():
            assert not game.is_terminal(state)
            assert game.current_player(state) == peer.current_player()
            assert list(game.legal_actions(state)) == peer.legal_actions()
            action = rng.choice(peer.legal_actions())
            state = game.apply(state, action).state
            peer.apply_action(action)
        assert game.is_terminal(state)
        assert list(game.returns(state)) == peer.returns()
        occupied = [symbol for symbol in str(peer) if symbol in ".xo"]
        ours = [
            "x" if state.o >> c & 1 else "o" if state.x >> c & 1 else "." for c in range(9)
        ]  # their first mover is x
        assert ours == occupied


def test_every_position_agrees_with_openspiel():
    """All games, position by position; a position that arises in several ways is looked at once (perft)."""
    game, counts = TicTacToe(), []
    layer = {game.initial_states()[0]: (pyspiel.load_game("tic_tac_toe").new_initial_state(), 1)}
    while layer:
        below, moves = {}, 0
        for state, (peer, ways) in layer.items():
            assert list(game.legal_actions(state)) == peer.legal_actions()
            assert list(game.returns(state)) == peer.returns()
            for action in peer.legal_actions():
                after, child = game.apply(state, action).state, peer.child(action)
                known, others = below.get(after, (child, 0))
                assert str(known) == str(child)
                below[after] = known, others + ways
                moves += ways
        layer = below
        counts.append(moves)
    assert counts == [9, 72, 504, 3024, 15120, 54720, 148176, 200448, 127872, 0]
