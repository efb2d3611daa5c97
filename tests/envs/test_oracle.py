"""Exact values of Tic-Tac-Toe, against known numbers and plain recursions that share no code with the oracle."""

from functools import cache
from statistics import mean

import numpy as np
import pytest

from nlrl.envs import make
from nlrl.envs.opponents import TabularPolicy, make_opponent
from nlrl.envs.oracle import Outcome, TabularOracle, oracle_for
from nlrl.envs.tictactoe import TicTacToeState

GAME = make("tictactoe")
START = TicTacToeState()
ORACLE = TabularOracle(GAME)
TABLE = ORACLE.table
RANDOM, FIRST_MOVE, MINIMAX = (make_opponent(name, GAME) for name in ("random", "first-move", "minimax"))


def lowest(*policies):
    """The pair probabilities (NaN: not given) joined, each state playing its lowest move that has a probability."""
    moves = [TABLE.as_mapping(policy) for policy in policies]
    return TabularPolicy({s: {min(m): 1.0} for part in moves for s, m in part.items()}, "lowest")


def after(*cells):
    state = START
    for cell in cells:
        state = GAME.apply(state, cell).state
    return state


# -- plain recursions --------------------------------------------------------------------------------------------------
@cache
def brute_optimal(state):
    """Return to come for the mover."""
    steps = [GAME.apply(state, action) for action in GAME.legal_actions(state)]
    mover = GAME.current_player(state)
    return max((step.rewards[mover] - brute_optimal(step.state) for step in steps), default=0)


@cache
def brute_random(state):
    """Return to come for O when both play at random."""
    steps = [GAME.apply(state, action) for action in GAME.legal_actions(state)]
    return sum(step.rewards[0] + brute_random(step.state) for step in steps) / len(steps) if steps else 0.0


@cache
def brute_against_random(state, seat):
    """The best return to come of `seat` against a random player."""
    steps = [GAME.apply(state, action) for action in GAME.legal_actions(state)]
    worths = [step.rewards[seat] + brute_against_random(step.state, seat) for step in steps]
    if not worths:
        return 0.0
    return max(worths) if GAME.current_player(state) == seat else sum(worths) / len(worths)


# -- the table ---------------------------------------------------------------------------------------------------------
def test_number_of_states_and_pairs():
    assert len(TABLE.states) == 5478
    assert int((TABLE.player >= 0).sum()) == 4520
    assert len(TABLE.pair_state) == 16167
    assert TABLE.states[0] == START
    assert TabularOracle(make("tictactoe")).table is TABLE  # enumerated once


def test_a_state_no_game_reaches_is_named():
    with pytest.raises(ValueError, match=r"no game reaches the state TicTacToeState\(o=7, x=0\)"):
        ORACLE.value(TicTacToeState(7, 0))


# -- best play ---------------------------------------------------------------------------------------------------------
def test_optimal_values_of_every_state_match_plain_minimax():
    for state in TABLE.states:
        assert ORACLE.value(state) == brute_optimal(state)


def test_values_moves_and_regret_of_a_position():
    fork = after(0, 1, 4)  # O threatens 9 and more; X must block, and loses anyway
    assert ORACLE.value(fork) == -1
    assert ORACLE.best_actions(fork) == GAME.legal_actions(fork)
    corner = after(0)
    assert ORACLE.best_actions(corner) == (4,)
    assert ORACLE.q_values(corner) == {4: 0.0} | dict.fromkeys((1, 2, 3, 5, 6, 7, 8), -1.0)
    assert ORACLE.regret(corner, 4) == 0
    assert ORACLE.regret(corner, 8) == 1
    with pytest.raises(ValueError, match="action 0 is illegal"):
        ORACLE.regret(corner, 0)


def test_terminal_states_have_nothing_to_come():
    won = after(0, 3, 1, 4, 2)
    assert ORACLE.value(won) == 0
    assert ORACLE.q_values(won) == {}
    assert ORACLE.best_actions(won) == ()


# -- values of policies ------------------------------------------------------------------------------------------------
def test_random_values_of_every_state_match_a_plain_recursion():
    values = ORACLE.policy_value(RANDOM)
    for state in TABLE.states:
        sign = -1 if GAME.current_player(state) == 1 else 1
        assert values.value(state) == pytest.approx(sign * brute_random(state), abs=1e-12)
    for action, q in values.q_values(START).items():
        assert q == pytest.approx(brute_random(GAME.apply(START, action).state), abs=1e-12)


def test_policies_may_be_mappings_arrays_or_opponents():
    legal = {state: GAME.legal_actions(state) for state in TABLE.states}
    mapping = {state: dict.fromkeys(actions, 1 / len(actions)) for state, actions in legal.items() if actions}
    dense = np.zeros((len(TABLE.states), 9))
    for state, moves in mapping.items():
        dense[TABLE.row[state], list(moves)] = list(moves.values())
    expected = ORACLE.policy_value(RANDOM).v
    for policy in (mapping, dense, TABLE.probabilities(RANDOM), TabularPolicy(mapping, "uniform")):
        np.testing.assert_allclose(ORACLE.policy_value(policy).v, expected, atol=1e-12)


def test_seats_are_told_apart():
    as_o = ORACLE.policy_value(MINIMAX, RANDOM, seat=0).at_start(0)
    as_x = ORACLE.policy_value(MINIMAX, RANDOM, seat=1).at_start(1)
    first, second = ORACLE.outcome(MINIMAX, RANDOM), ORACLE.outcome(RANDOM, MINIMAX)
    assert as_o == pytest.approx(first.win - first.loss)
    assert as_x == pytest.approx(second.loss - second.win)
    assert as_o > as_x > 0


@pytest.mark.parametrize(
    ("moves", "problem"),
    [({0: 0.5, 1: 0.4}, "sum to 1"), ({0: 1.5, 1: -0.5}, ">= 0"), ({8: 1.0, 9: 1e-3, 1: 0.5}, "sum to 1")],
)
def test_what_is_no_distribution_is_refused_with_its_state(moves, problem):
    with pytest.raises(ValueError, match=rf"in TicTacToeState\(o=0, x=0\).*{problem}"):
        ORACLE.policy_value({START: moves})


def test_mass_on_taken_cells_is_refused():
    with pytest.raises(ValueError, match=r"in TicTacToeState\(o=1, x=0\)"):
        ORACLE.policy_value({after(0): {0: 1.0}})


def test_arrays_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(5478, 9\) or \(16167,\), not \(3, 3\)"):
        ORACLE.policy_value(np.ones((3, 3)))


def test_values_are_unknown_exactly_where_they_depend_on_missing_moves():
    table = TABLE.as_mapping(TABLE.probabilities(FIRST_MOVE))
    hole = after(0, 1, 2, 3)  # on first-move's own path
    del table[hole]
    values = ORACLE.policy_value(table)
    assert np.isnan([values.value(after(*range(n))) for n in range(5)]).all()
    assert np.isnan(list(values.q_values(hole).values())).sum() == 0  # what follows is known
    assert values.value(after(0, 2)) == ORACLE.policy_value(FIRST_MOVE).value(after(0, 2))
    with pytest.raises(ValueError, match=rf"not given in TicTacToeState\(o={hole.o}, x={hole.x}\)"):
        ORACLE.outcome(table)
    with pytest.raises(ValueError, match="not given"):
        ORACLE.exploitability(table)
    assert ORACLE.outcome(table, MINIMAX).loss > 0  # minimax leaves that path at once


# -- reference numbers: win, draw, loss --------------------------------------------------------------------------------
def seats(policy, opponent):
    return (
        ORACLE.outcome(policy, opponent),
        ORACLE.outcome(opponent, policy).swapped(),
        ORACLE.mixed_outcome(policy, opponent),
    )


def response(opponent, objective="return"):
    return lowest(*(ORACLE.best_response(opponent, seat, objective).policy for seat in (0, 1)))


REFERENCE = {
    "random vs random": (lambda: (RANDOM, RANDOM), (0.585, 0.127, 0.288), (0.288, 0.127, 0.585), (0.437, 0.127, 0.437)),
    "most wins vs random": (
        lambda: (response(RANDOM, "wins"), RANDOM),
        (0.995, 0, 0.005),
        (0.939, 0.004, 0.057),
        (0.967, 0.002, 0.031),
    ),
    "best response vs random": (
        lambda: (response(RANDOM), RANDOM),
        (0.995, 0.005, 0),
        (0.932, 0.060, 0.007),
        (0.964, 0.033, 0.004),
    ),
    "lowest minimax vs random": (
        lambda: (lowest(TABLE.probabilities(MINIMAX)), RANDOM),
        (0.995, 0.005, 0),
        (0.806, 0.194, 0),
        (0.901, 0.099, 0),
    ),
    "random vs first-move": (
        lambda: (RANDOM, FIRST_MOVE),
        (0.522, 0.038, 0.440),
        (0.177, 0.042, 0.781),
        (0.349, 0.040, 0.611),
    ),
    "best response vs first-move": (lambda: (response(FIRST_MOVE), FIRST_MOVE), (1, 0, 0), (1, 0, 0), (1, 0, 0)),
    "first-move vs random": (
        lambda: (FIRST_MOVE, RANDOM),
        (0.781, 0.042, 0.177),
        (0.440, 0.038, 0.522),
        (0.611, 0.040, 0.349),
    ),
}


@pytest.mark.parametrize("row", REFERENCE)
def test_reference_table(row):
    players, *expected = REFERENCE[row]
    for outcome, numbers in zip(seats(*players()), expected, strict=True):
        assert outcome == pytest.approx(numbers, abs=6e-4)
        assert sum(outcome) == pytest.approx(1, abs=1e-12)


def test_outcomes_agree_with_sampled_games():
    """Plays `choose` of both opponents; 4 standard errors."""
    from nlrl.envs.random import Rng

    exact, wins, n = ORACLE.outcome(RANDOM, FIRST_MOVE), 0, 4000
    for game in range(n):
        state, rng = START, Rng("sampled", game)
        while not GAME.is_terminal(state):
            mover = (RANDOM, FIRST_MOVE)[GAME.current_player(state)]
            state = GAME.apply(state, mover.choose([state], [rng])[0]).state
        wins += GAME.returns(state)[0] > 0
    assert wins / n == pytest.approx(exact.win, abs=4 * (exact.win * (1 - exact.win) / n) ** 0.5)


# -- best responses ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seat", [0, 1])
def test_best_response_to_random_matches_a_plain_recursion(seat):
    best = ORACLE.best_response(RANDOM, seat)
    assert best.values.at_start(seat) == pytest.approx(brute_against_random(START, seat), abs=1e-12)
    reached = ORACLE.policy_value(best.policy, RANDOM, seat)
    assert reached.at_start(seat) == pytest.approx(best.values.at_start(seat), abs=1e-12)
    for state in TABLE.states[::37]:
        sign = 1 if GAME.current_player(state) == seat else -1
        assert best.values.value(state) == pytest.approx(sign * brute_against_random(state, seat), abs=1e-12)


@pytest.mark.parametrize("seat", [0, 1])
def test_most_wins_is_what_the_response_wins(seat):
    best = ORACLE.best_response(RANDOM, seat, "wins")
    players = (best.policy, RANDOM) if seat == 0 else (RANDOM, best.policy)
    outcome = ORACLE.outcome(*players) if seat == 0 else ORACLE.outcome(*players).swapped()
    assert best.values.at_start(seat) == pytest.approx(outcome.win, abs=1e-12)
    by_return = ORACLE.best_response(RANDOM, seat).values.at_start(seat)
    assert outcome.win - outcome.loss < by_return + 1e-12


def test_exploitability():
    assert ORACLE.exploitability(MINIMAX) == 0
    assert ORACLE.exploitability(FIRST_MOVE) == 1  # loses both seats; best play draws
    worst = [brute_worst_case(START, seat) for seat in (0, 1)]
    assert ORACLE.exploitability(RANDOM) == pytest.approx(-mean(worst), abs=1e-12)  # best play is worth 0 in both seats


@cache
def brute_worst_case(state, seat):
    """What a random player in `seat` still gets against an opponent that wishes it ill."""
    steps = [GAME.apply(state, action) for action in GAME.legal_actions(state)]
    worths = [step.rewards[seat] + brute_worst_case(step.state, seat) for step in steps]
    if not worths:
        return 0.0
    return sum(worths) / len(worths) if GAME.current_player(state) == seat else min(worths)


def test_reach_counts_visits():
    visits = ORACLE.reach(RANDOM)
    assert visits[0] == 1
    assert visits[TABLE.row[after(0)]] == pytest.approx(1 / 9)
    assert visits[TABLE.row[after(0, 1, 2)]] == pytest.approx(2 / (9 * 8 * 7))  # O's moves in either order
    terminal = TABLE.player < 0
    assert visits[terminal].sum() == pytest.approx(1)


def test_oracle_for_is_made_once():
    assert oracle_for(GAME) is oracle_for(make("tictactoe"))


def test_outcome_seen_from_the_other_side():
    assert Outcome(0.5, 0.2, 0.3).swapped() == Outcome(0.3, 0.2, 0.5)
