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
