"""Opponents that search: minimax to a depth, and Monte Carlo tree search."""

import pickle
import random
from collections import Counter

import numpy as np
import pytest

from nlrl.envs import Game, Step, make
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.envs.oracle import TabularOracle, oracle_for
from nlrl.envs.random import Rng
from nlrl.envs.tictactoe import TicTacToe, TicTacToeState
from nlrl.errors import NLRLError

GAME = make("tictactoe")
ORACLE = oracle_for(GAME)
START = TicTacToeState()
OPEN = [state for state in ORACLE.table.states if not GAME.is_terminal(state)]


def after(*actions):
    state = START
    for action in actions:
        state = GAME.apply(state, action).state
    return state


def games_against_random(name, seat, games):
    """Results for the named opponent in `seat`, a batch of whole games at once."""
    players = [make_opponent("random", GAME), make_opponent("random", GAME)]
    players[seat] = make_opponent(name, GAME)
    states, rngs = [START] * games, [Rng("game", name, seat, index) for index in range(games)]
    while going := [i for i, state in enumerate(states) if not GAME.is_terminal(state)]:
        mover = players[GAME.current_player(states[going[0]])]
        for i, move in zip(going, mover.choose([states[i] for i in going], [rngs[i] for i in going]), strict=True):
            states[i] = GAME.apply(states[i], move).state
    return Counter(GAME.returns(state)[seat] for state in states)


# -- minimax to a depth ------------------------------------------------------------------------------------------------
def test_with_depth_enough_it_is_the_exact_player():
    deep = make_opponent("minimax(9)", GAME)
    for state in [START, *OPEN[::7]]:
        assert tuple(deep.policy(state)) == ORACLE.best_actions(state)
        assert len(set(deep.policy(state).values())) == 1


def test_a_depth_that_reaches_the_end_from_here_is_enough():
    for state in OPEN[::5]:
        left = 9 - state.o.bit_count() - state.x.bit_count()
        assert tuple(make_opponent(f"minimax({left})", GAME).policy(state)) == ORACLE.best_actions(state)


def test_depth_one_sees_wins_and_depth_two_sees_threats():
    win, threat = after(0, 3, 1, 4), after(0, 4, 1)
    assert make_opponent("minimax(1)", GAME).policy(win) == {2: 1.0}
    assert len(make_opponent("minimax(1)", GAME).policy(threat)) == 6
    assert make_opponent("minimax(2)", GAME).policy(threat) == {2: 1.0}


def test_on_a_board_with_forced_wins_depth_enough_is_exact_too():
    game = make("breakthrough", rows=4, columns=3)
    oracle, deep, rng = TabularOracle(game), make_opponent("minimax(20)", game), Rng("small boards")
    for _ in range(12):
        state = game.initial_states()[0]
        while not game.is_terminal(state):
            assert tuple(deep.policy(state)) == oracle.best_actions(state)
            state = game.apply(state, rng.choice(game.legal_actions(state))).state


def plain_values(game, state, depth):
    """Negamax without pruning: the value of each legal move."""

    def value(state, player, depth):
        if game.is_terminal(state):
            return game.returns(state)[player]
        if depth == 0:
            return game.heuristic(state)
        return max(-value(game.apply(state, a).state, 1 - player, depth - 1) for a in game.legal_actions(state))

    player = game.current_player(state)
    return {a: -value(game.apply(state, a).state, 1 - player, depth - 1) for a in game.legal_actions(state)}


class Guessing(TicTacToe):
    """Tic-Tac-Toe with an opinion on every position: crude, with many ties and no symmetry."""

    def heuristic(self, state):
        return ((7 * state.o + 13 * state.x) % 11 - 5) / 10


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("game", [GAME, Guessing()])
def test_pruning_changes_no_move_with_any_heuristic(game, depth):
    player, picked = make_opponent(f"minimax({depth})", game), random.Random(depth).sample(OPEN, 120)
    for state in picked:
        values = plain_values(game, state, depth)
        assert tuple(player.policy(state)) == tuple(a for a, v in values.items() if v == max(values.values()))


def test_it_never_loses_and_its_exact_worst_case_is_a_draw():
    from nlrl.envs.opponents import TabularPolicy

    player = make_opponent("minimax(9)", GAME)
    policy = TabularPolicy({state: player.policy(state) for state in OPEN}, "deep")
    assert ORACLE.exploitability(policy) == pytest.approx(0)


class Excited(TicTacToe):
    def heuristic(self, state):
        return 1.5


def test_a_heuristic_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"heuristic must lie in -1.0 to 1.0, not 1.5"):
        make_opponent("minimax(2)", Excited()).policy(START)


class Tossed(TicTacToe):
    """A game in which chance has a say."""

    def transitions(self, state, action):
        (step,) = super().transitions(state, action)
        return (step._replace(probability=0.5), Step(0.5, TicTacToeState(1, 2), (0.0, 0.0)))


def test_a_game_with_chance_is_refused():
    with pytest.raises(NLRLError, match=r"'minimax\(2\)' needs a game without chance"):
        make_opponent("minimax(2)", Tossed())


# -- Monte Carlo tree search -------------------------------------------------------------------------------------------
STATES = [START, after(4), after(0, 4), after(0, 4, 1)]


def test_its_moves_depend_on_each_state_and_rng_only():
    player = make_opponent("mcts(20,2)", GAME)
    together = player.choose(STATES, [Rng(i) for i in range(4)])
    alone = [make_opponent("mcts(20,2)", GAME).choose([state], [Rng(i)])[0] for i, state in enumerate(STATES)]
    assert together == alone
    assert list(player.choose(STATES[::-1], [Rng(i) for i in (3, 2, 1, 0)]))[::-1] == together
    assert len(set(player.choose([START] * 12, [Rng(i) for i in range(12)]))) > 1


def test_global_generators_are_untouched():
    before = random.getstate(), np.random.get_state()[1].tolist()
    make_opponent("mcts(20,2)", GAME).choose(STATES, [Rng(i) for i in range(4)])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_it_finds_wins_and_threats():
    player = make_opponent("mcts(200,2)", GAME)
    rngs = [[Rng(i) for i in range(5)] for _ in range(2)]
    assert set(player.choose([after(0, 3, 1, 4)] * 5, rngs[0])) == {2}
    assert set(player.choose([after(0, 4, 1)] * 5, rngs[1])) == {2}


def test_a_hundred_simulations_beat_random_clearly():
    """Random against random wins 0.585 first and 0.288 second; the bounds are over three standard errors above."""
    first, second = (games_against_random("mcts(100,1)", seat, 60) for seat in (0, 1))
    assert first[1.0] >= 52
    assert second[1.0] >= 40
    assert first[-1.0] + second[-1.0] <= 8


def test_the_bot_walks_our_rules_as_it_walks_openspiels():
    """The same bot, evaluator and seed, on OpenSpiel's own game, on our adapter's and on the opponent's short cut."""
    pyspiel = pytest.importorskip("pyspiel")
    from open_spiel.python.algorithms import mcts

    from nlrl.envs.adapters.openspiel import to_openspiel
    from nlrl.envs.openspiel_search import Walk, rules

    def move(game, state, seed):
        source = np.random.RandomState(seed)
        return mcts.MCTSBot(game, 1.0, 60, mcts.RandomRolloutEvaluator(3, source), True, source).step(state)

    stock, ours = pyspiel.load_game("tic_tac_toe"), to_openspiel(GAME)
    for seed, actions in enumerate([(), (4,), (0, 4), (0, 4, 1), (8, 4, 1, 0)]):
        theirs, adapted = stock.new_initial_state(), ours.new_initial_state()
        for action in actions:
            theirs.apply_action(action)
            adapted.apply_action(action)
        expected = move(stock, theirs, seed)
        assert move(ours, adapted, seed) == expected
        assert move(rules(GAME), Walk(GAME, after(*actions)), seed) == expected


def test_chance_is_a_node_of_its_own():
    player = make_opponent("mcts(30,1)", Tossed())
    assert player.choose([START], [Rng(0)])[0] in range(9)


def test_it_is_known_by_its_samples_only():
    player = make_opponent("mcts(10,1)", GAME)
    assert isinstance(player, Opponent)
    assert not player.exact
    with pytest.raises(NLRLError, match="known by its samples only"):
        player.policy(START)
    with pytest.raises(NLRLError, match="known by its samples only"):
        ORACLE.policy_value(player)
    with pytest.raises(LookupError, match="terminal"):
        player.choose([after(0, 3, 1, 4, 2)], [Rng(0)])


# -- within other opponents --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["epsilon(0.5,mcts(10,1))", "mixture(1,random,2,mcts(10,1))"])
def test_what_is_made_of_it_is_sampled_only_too_and_as_independent(name):
    player = make_opponent(name, GAME)
    assert player.name == name
    assert not player.exact
    together = player.choose(STATES, [Rng(i) for i in range(4)])
    assert list(together) == [player.choose([state], [Rng(i)])[0] for i, state in enumerate(STATES)]
    with pytest.raises(NLRLError, match="samples only"):
        player.policy(START)


def test_epsilon_of_a_search_is_random_in_its_share():
    threat, n = after(0, 4, 1), 60
    counts = Counter(make_opponent("epsilon(0.5,mcts(200,1))", GAME).choose([threat] * n, [Rng(i) for i in range(n)]))
    assert 20 <= counts[2] <= 48  # expected: (0.5 + 0.5 / 6) * 60 = 35
    assert len(counts) > 3


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("minimax(depth=3)", "minimax(3)"),
        ("mcts(100,10)", "mcts(100,10)"),
        ("mcts(simulations=100,rollouts=10)", "mcts(100,10)"),
        ("mcts(100, 10, uct_c=1.0, solve=True)", "mcts(100,10)"),
        ("mcts(100,10,uct_c=2,solve=False)", "mcts(100,10,uct_c=2,solve=False)"),
    ],
)
def test_equal_opponents_have_one_name(written, name):
    assert make_opponent(written, GAME).name == name
    assert make_opponent(name, GAME).name == name
    copy = pickle.loads(pickle.dumps(make_opponent(name, GAME)))
    assert copy.choose([after(0, 4, 1)], [Rng(0)]) == make_opponent(name, GAME).choose([after(0, 4, 1)], [Rng(0)])


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("minimax(0)", r"'minimax\(0\)': the depth must be a positive integer, not 0"),
        ("minimax(1.5)", "the depth must be a positive integer, not 1.5"),
        ("minimax(deep)", "the depth must be a positive integer, not 'deep'"),
        ("mcts(1,1)", "simulations must be an integer of at least 2, not 1"),
        ("mcts(10,0)", "rollouts must be an integer of at least 1, not 0"),
        ("mcts(ten,1)", "simulations must be an integer of at least 2, not 'ten'"),
        ("mcts(10,1,uct_c=-1)", "uct_c must be a number of at least 0, not -1"),
        ("mcts(10,1,solve=maybe)", "solve must be True or False, not 'maybe'"),
    ],
)
def test_impossible_arguments_are_refused_by_name(name, complaint):
    with pytest.raises(NLRLError, match=complaint):
        make_opponent(name, GAME)


@pytest.mark.parametrize("name", ["minimax(3)", "mcts(10,1)", "epsilon(0.5,minimax(3))"])
def test_nobody_to_search_against_in_a_game_for_one_player(name):
    game: Game = make("frozen_lake")
    with pytest.raises(NLRLError, match="is for one player; there, 'random', 'first-move' and 'minimax'"):
        make_opponent(name, game)
    for policy in ("random", "first-move", "minimax"):
        state = game.initial_states()[0]
        assert set(make_opponent(policy, game).policy(state)) <= set(game.legal_actions(state))
