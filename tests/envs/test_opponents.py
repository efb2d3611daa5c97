"""Opponents without language."""

import pickle
from collections import Counter

import pytest

from nlrl.envs import make
from nlrl.envs.opponents import Mixture, Opponent, RandomOpponent, TabularPolicy, make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.envs.random import Rng
from nlrl.envs.tictactoe import TicTacToeState
from nlrl.errors import NLRLError

GAME = make("tictactoe")
START = TicTacToeState()
MIDDLE = GAME.parse_text(" O | 2 | 3\n---+---+---\n 4 | X | 6\n---+---+---\n 7 | 8 | O")
NAMES = [
    "random",
    "first-move",
    "minimax",
    "minimax(2)",
    "epsilon(0.25,minimax)",
    "mixture(1,random,3,epsilon(0.5,first-move))",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_makes_an_opponent_that_bears_it(name):
    opponent = make_opponent(name, GAME)
    assert isinstance(opponent, Opponent)
    assert opponent.name == name
    assert make_opponent(opponent.name, GAME).policy(MIDDLE) == opponent.policy(MIDDLE)


@pytest.mark.parametrize("name", NAMES)
def test_policies_are_distributions_over_legal_moves(name):
    opponent = make_opponent(name, GAME)
    for state in oracle_for(GAME).table.states[::41]:
        if not GAME.is_terminal(state):
            moves = opponent.policy(state)
            assert sum(moves.values()) == pytest.approx(1)
            assert set(moves) <= set(GAME.legal_actions(state))
            assert min(moves.values()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_choices_follow_the_policy(name):
    """Chi-squared against the exact distribution, at 1 in 10,000 (8 degrees of freedom: 31.8)."""
    opponent, n = make_opponent(name, GAME), 4000
    counts = Counter(opponent.choose([START] * n, [Rng("choices", name, i) for i in range(n)]))
    policy = opponent.policy(START)
    assert set(counts) <= set(policy)
    assert sum((counts[a] - n * p) ** 2 / (n * p) for a, p in policy.items()) < 31.8


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_depends_on_its_own_state_and_rng_only(name):
    opponent, states = make_opponent(name, GAME), [START, MIDDLE, START, MIDDLE]
    together = opponent.choose(states, [Rng(i) for i in range(4)])
    alone = [opponent.choose([state], [Rng(i)])[0] for i, state in enumerate(states)]
    assert together == alone
    assert opponent.choose(states[::-1], [Rng(i) for i in (3, 2, 1, 0)]) == together[::-1]


def test_what_each_one_plays():
    assert make_opponent("random", GAME).policy(START) == {a: 1 / 9 for a in range(9)}
    assert make_opponent("first-move", GAME).policy(MIDDLE) == {1: 1.0}
    corner = GAME.apply(START, 0).state
    assert make_opponent("minimax", GAME).policy(corner) == {4: 1.0}
    assert make_opponent("minimax", GAME).policy(START) == pytest.approx({a: 1 / 9 for a in range(9)})
    soft = make_opponent("epsilon(0.25,minimax)", GAME).policy(corner)
    assert soft == pytest.approx({4: 0.75 + 0.25 / 8} | dict.fromkeys((1, 2, 3, 5, 6, 7, 8), 0.25 / 8))
    mixed = make_opponent("mixture(1,minimax,3,first-move)", GAME).policy(corner)
    assert mixed == pytest.approx({4: 0.25, 1: 0.75})


def test_epsilon_at_its_ends_is_one_of_its_parts():
    minimax, random = make_opponent("minimax", GAME), make_opponent("random", GAME)
    assert make_opponent("epsilon(0,minimax)", GAME).policy(MIDDLE) == minimax.policy(MIDDLE)
    assert make_opponent("epsilon(1,minimax)", GAME).policy(MIDDLE) == random.policy(MIDDLE)


@pytest.mark.parametrize(
    "name",
    [
        "stockfish",
        "random(1)",
        "epsilon",
        "epsilon(minimax)",
        "epsilon(0.5,stockfish)",
        "epsilon(half,random)",
        "mixture(random,minimax)",
        "mixture(1,random,minimax)",
        "epsilon(p=0.5,inner=random)",
        "minimax(2,3)",
        "minimax(depht=2)",
        "minimax(2,depth=2)",
        "mcts",
        "mcts(100)",
        "mcts(100,1,1.0)",
        "mcts(100,1,c=1.0)",
    ],
)
def test_a_bad_name_is_answered_with_the_known_ones(name):
    with pytest.raises(NLRLError, match=r"known: random, first-move, minimax, minimax\(depth\), mcts\(.*epsilon\("):
        make_opponent(name, GAME)


@pytest.mark.parametrize(
    "name", ["epsilon(1.5,random)", "epsilon(-0.1,random)", "mixture(0,random)", "mixture(-1,random)"]
)
def test_impossible_probabilities_are_refused(name):
    with pytest.raises(NLRLError, match=r"from 0 to 1|positive"):
        make_opponent(name, GAME)


@pytest.mark.parametrize("name", NAMES)
def test_no_move_in_a_terminal_state(name):
    won = GAME.parse_text(" O | O | O\n---+---+---\n X | X | 6\n---+---+---\n 7 | 8 | 9")
    opponent = make_opponent(name, GAME)
    with pytest.raises(LookupError, match="terminal"):
        opponent.policy(won)
    with pytest.raises(LookupError, match="terminal"):
        opponent.choose([won], [Rng(0)])


def test_frozen_tables():
    policy = TabularPolicy({START: {8: 0.5, 0: 0.5}}, "snapshot 3")
    assert policy.name == "snapshot 3"
    assert set(policy.choose([START] * 50, [Rng(i) for i in range(50)])) == {0, 8}
    reordered = TabularPolicy({START: {0: 0.5, 8: 0.5}}, "reordered")
    rngs = [[Rng(i) for i in range(50)] for _ in range(2)]
    assert policy.choose([START] * 50, rngs[0]) == reordered.choose([START] * 50, rngs[1])
    with pytest.raises(LookupError, match="snapshot 3 has no move in TicTacToeState"):
        policy.policy(MIDDLE)
    with pytest.raises(ValueError, match="sum to 1"):
        TabularPolicy({START: {0: 0.5}}, "half")


def test_mixtures_of_anything():
    parts = [(2.0, RandomOpponent(GAME)), (2.0, TabularPolicy({START: {4: 1.0}}, "centre"))]
    mixture = Mixture(parts)
    assert mixture.name == "mixture(2,random,2,centre)"
    assert mixture.policy(START)[4] == pytest.approx(0.5 + 0.5 / 9)


@pytest.mark.parametrize("name", NAMES)
def test_opponents_travel_between_processes(name):
    opponent = make_opponent(name, GAME)
    assert pickle.loads(pickle.dumps(opponent)).policy(MIDDLE) == opponent.policy(MIDDLE)
