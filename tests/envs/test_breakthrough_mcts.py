"""The compiled tree search plays legal moves, sees what is forced, and plays as OpenSpiel's does."""

from __future__ import annotations

from collections import Counter

import pytest

from nlrl.envs import make
from nlrl.envs.breakthrough import tactics
from nlrl.envs.breakthrough.mcts import BreakthroughMCTS
from nlrl.envs.mcts import MCTSOpponent
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError

GAME = make("breakthrough")
START = GAME.initial_states()[0]


def random_positions(game, games, seed="positions"):
    rng = Rng(seed)
    for _ in range(games):
        state = game.initial_states()[0]
        while legal := game.legal_actions(state):
            yield state
            state = game.apply(state, rng.choice(legal)).state


def test_breakthrough_gets_the_compiled_search_and_other_games_openspiels():
    assert type(make_opponent("mcts(10,1)", GAME)) is BreakthroughMCTS
    assert type(make_opponent("mcts(10,1)", make("tictactoe"))) is MCTSOpponent
    assert make_opponent("mcts(10,1,solve=False)", GAME).name == "mcts(10,1,solve=False)"
    with pytest.raises(NLRLError, match="simulations must be an integer of at least 2"):
        make_opponent("mcts(1,1)", GAME)


@pytest.mark.parametrize("size", [(5, 5), (3, 3), (4, 8), (8, 8)])
@pytest.mark.parametrize("solve", [True, False])
def test_every_move_is_legal_on_any_board(size, solve):
    game = make("breakthrough", rows=size[0], columns=size[1])
    player = BreakthroughMCTS(game, 40, 2, solve=solve)
    for number, state in enumerate(random_positions(game, 3)):
        assert player.choose([state], [Rng(number)])[0] in game.legal_actions(state)


def test_moves_depend_on_each_state_and_rng_only():
    player, states = BreakthroughMCTS(GAME, 50, 2), list(random_positions(GAME, 1))
    together = player.choose(states, [Rng(i) for i in range(len(states))])
    alone = [BreakthroughMCTS(GAME, 50, 2).choose([state], [Rng(i)])[0] for i, state in enumerate(states)]
    assert together == alone
    assert len({player.choose([START], [Rng(i)])[0] for i in range(20)}) > 1


def test_a_finished_game_has_no_move():
    state = START
    while legal := GAME.legal_actions(state):
        state = GAME.apply(state, legal[0]).state
    with pytest.raises(LookupError, match="terminal"):
        BreakthroughMCTS(GAME, 10, 1).choose([state], [Rng(0)])


def test_it_takes_a_win_and_stops_a_threat():
    player, wins, stops = BreakthroughMCTS(GAME, 400, 2), 0, 0
    for number, state in enumerate(random_positions(GAME, 25)):
        me = state.player
        winning = tactics.winning_moves(GAME.board, state, me)
        if not winning and oracle_for(GAME).value(state) < 0:
            continue  # nothing helps
        (move,) = player.choose([state], [Rng(number)])
        if winning:
            wins += 1
            assert move in winning
        elif tactics.winning_moves(GAME.board, state, 1 - me):
            stops += 1
            after = GAME.apply(state, move).state
            assert not tactics.winning_moves(GAME.board, after, 1 - me)
    assert wins > 20
    assert stops > 10


def test_what_it_proves_is_what_the_solver_proves():
    """On a board this small the search proves every position within its simulations."""
    game = make("breakthrough", rows=4, columns=3)
    oracle, player = oracle_for(game), BreakthroughMCTS(game, 6000, 1)
    for number, state in enumerate(random_positions(game, 10)):
        assert player.choose([state], [Rng(number)])[0] in oracle.best_actions(state)


def test_it_spreads_its_moves_as_openspiels_search_does():
    states = [state for state in random_positions(GAME, 2, "spread") if len(GAME.legal_actions(state)) >= 8][4:14:5]
    for state in states:
        ours, theirs = (
            Counter(kind(GAME, 12, 1, solve=False).choose([state] * 300, [Rng("spread", i) for i in range(300)]))
            for kind in (BreakthroughMCTS, MCTSOpponent)
        )
        moves = GAME.legal_actions(state)
        assert (
            sum(abs(ours[move] - theirs[move]) for move in moves) / 600 < 0.17
        )  # total variation; about 0.1 by chance


def test_more_simulations_and_rollouts_play_better():
    strong, weak = BreakthroughMCTS(GAME, 300, 5), BreakthroughMCTS(GAME, 10, 1)
    won = 0
    for game in range(40):
        state, rng = START, Rng("match", game)
        while not GAME.is_terminal(state):
            player = strong if state.player == game % 2 else weak
            state = GAME.apply(state, player.choose([state], [rng])[0]).state
        won += GAME.returns(state)[game % 2] > 0
    assert won >= 34
