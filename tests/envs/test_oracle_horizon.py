"""Values with any number of actions left, and distances to the end, against plain recursions and against each other."""

import time
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.envs import make
from nlrl.envs.frozen_lake import LAYOUTS, FrozenLake, FrozenLakeState, random_map
from nlrl.envs.game import Game, Step
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import Oracle, TabularOracle
from nlrl.envs.random import Rng

TICTACTOE = TabularOracle(make("tictactoe"))


class Toy(Game):
    """What the oracle never asks for, and deterministic moves: `move` gives the next state and player 0's reward."""

    params = {}  # noqa: RUF012 - a constant here

    def transitions(self, state, action):
        after, reward = self.move(state, action)
        return (Step(1.0, after, (reward, -reward)[: self.num_players]),)

    def is_terminal(self, state):
        return not self.legal_actions(state)

    def current_player(self, state):
        return -1 if self.is_terminal(state) else getattr(state, "mover", 0)

    def returns(self, state):
        return (0.0,) * self.num_players

    def to_text(self, state):
        raise NotImplementedError

    parse_text = action_text = parse_action = render_svg = to_text


class Rope(NamedTuple):
    knot: int
    mover: int


class TugOfWar(Toy):
    """The mover pulls the knot one or two marks to its side, or waits. A wins at 7 or more, B at 0 or less.

    Equally strong, both can hold the middle for ever; where B pulls one mark at most, A wins, though it takes long.
    """

    num_players, num_actions, max_length = 2, 3, 12
    value_range, player_names = (-1.0, 1.0), ("A", "B")

    def __init__(self, strength_of_b):
        self.name, self.strength = f"tug_{strength_of_b}", (2, strength_of_b)

    def initial_states(self):
        return tuple(Rope(knot, mover) for knot in range(1, 7) for mover in (0, 1))

    def legal_actions(self, state):
        return (0, 1, 2) if 0 < state.knot < 7 else ()

    def move(self, state, action):
        pull = min(action, self.strength[state.mover])
        knot = min(max(state.knot + (pull if state.mover == 0 else -pull), 0), 7)
        return Rope(knot, 1 - state.mover), {7: 1.0, 0: -1.0}.get(knot, 0.0)

    def returns(self, state):
        value = {7: 1.0, 0: -1.0}.get(state.knot, 0.0)
        return value, -value


class Hall(Toy):
    """Cells 0 to 5, exit at 5. A step costs 1, the one through the exit nothing; who is still inside pays 1 more."""

    name, num_players, num_actions, max_length = "hall", 1, 2, 4
    value_range, player_names, truncation_reward = (-5.0, 0.0), ("walker",), -1.0

    def initial_states(self):
        return (0, 4)

    def legal_actions(self, state):
        return (0, 1) if state < 5 else ()

    def move(self, state, action):
        after = state + 1 if action else max(0, state - 1)
        return after, 0.0 if after == 5 else -1.0


def plain(game, state, steps_left, choose=max):
    """Value to come for player 0, by recursion; `choose` is the mover's, of values from its own view."""
    if game.is_terminal(state):
        return 0.0
    if not steps_left:
        return game.truncation_reward
    sign = -1.0 if game.current_player(state) == 1 else 1.0
    worths = []
    for action in game.legal_actions(state):
        steps = game.transitions(state, action)
        worths.append(
            sum(s.probability * (s.rewards[0] + plain_cached(game, s.state, steps_left - 1, choose)) for s in steps)
        )
    return sign * choose([sign * worth for worth in worths])


plain_cached = cache(plain)


def mean(values):
    return sum(values) / len(values)


def mover_sign(oracle, state):
    return -1.0 if oracle.game.current_player(state) == 1 else 1.0


def uniform(oracle):
    counts = np.diff(oracle.table.first_pair)
    return 1.0 / counts[oracle.table.pair_state]


def assert_horizons_match_plain_recursion(game, horizons):
    oracle = TabularOracle(game)
    for steps_left in horizons:
        best = oracle.at_horizon(steps_left)
        followed = oracle.policy_value(uniform(oracle), steps_left=steps_left)
        for state in oracle.table.states:
            sign = mover_sign(oracle, state)
            assert best.value(state) == pytest.approx(sign * plain_cached(game, state, steps_left), abs=1e-12)
            expected = sign * plain_cached(game, state, steps_left, mean)
            assert followed.value(state) == pytest.approx(expected, abs=1e-12)


# -- values ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("game", [TugOfWar(2), TugOfWar(1), Hall()], ids=lambda game: game.name)
def test_every_horizon_of_games_with_cycles_matches_a_plain_recursion(game):
    assert_horizons_match_plain_recursion(game, range(game.max_length + 1))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4), st.booleans(), st.integers(0, 10))
def test_frozen_lakes_match_a_plain_recursion(seed, size, slippery, steps_left):
    game = FrozenLake(random_map(size, Rng("horizon", seed)), slippery)
    assert_horizons_match_plain_recursion(game, [steps_left])


def test_q_values_are_rewards_plus_the_value_with_one_step_less():
    game = FrozenLake()
    oracle = TabularOracle(game)
    for steps_left in range(1, 11):
        now, then = oracle.at_horizon(steps_left), oracle.at_horizon(steps_left - 1)
        for state in oracle.table.states:
            for action, q in now.q_values(state).items():
                steps = game.transitions(state, action)
                expected = sum(s.probability * (s.rewards[0] + then.value(s.state)) for s in steps)
                assert q == pytest.approx(expected, abs=1e-12)


def test_regret_depends_on_the_steps_really_left():
    """On the cell left of the goal: with one step left only `right` can pay; with many, wanting `down` is safer."""
    oracle = TabularOracle(FrozenLake(max_steps=100))
    state = FrozenLakeState(LAYOUTS["4x4"], 14)
    assert oracle.at_horizon(1).q_values(state) == pytest.approx({0: 0, 1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    assert oracle.at_horizon(1).regret(state, 0) == pytest.approx(1 / 3)
    assert oracle.best_actions(state) == (1,)
    assert 0 < oracle.regret(state, 2) < oracle.at_horizon(5).regret(state, 0)


def test_the_full_horizon_is_the_oracle_itself_and_horizons_are_kept():
    oracle = TabularOracle(FrozenLake())
    assert oracle.at_horizon(10) is oracle
    assert oracle.at_horizon(4) is oracle.at_horizon(4)
    np.testing.assert_array_equal(
        oracle.policy_value(uniform(oracle), steps_left=10).v, oracle.policy_value(uniform(oracle)).v
    )


def test_with_nothing_left_no_action_has_a_value():
    oracle, hall = TabularOracle(FrozenLake()), TabularOracle(Hall())
    start = oracle.game.initial_states()[0]
    assert oracle.at_horizon(0).value(start) == 0
    assert np.isnan(list(oracle.at_horizon(0).q_values(start).values())).all()
    assert oracle.at_horizon(0).best_actions(start) == ()
    assert [hall.at_horizon(0).value(cell) for cell in (0, 5)] == [-1, 0]


def test_what_a_cut_game_is_paid_counts():
    hall = TabularOracle(Hall())
    assert [hall.value(cell) for cell in range(6)] == [-5, -3, -2, -1, 0, 0]
    assert hall.policy_value({cell: {0: 1.0} for cell in range(5)}).value(2) == -5


def test_more_steps_never_hurt_where_only_the_goal_pays():
    oracle = TabularOracle(FrozenLake("random", maps=50))
    values = np.array([oracle.at_horizon(steps).v for steps in range(11)])
    assert (np.diff(values, axis=0) >= -1e-12).all()
    assert (values <= 1).all()


def test_tictactoe_has_its_values_from_the_moves_that_remain():
    for state in TICTACTOE.table.states[::97]:
        empty = 9 - (state.o | state.x).bit_count()
        assert TICTACTOE.at_horizon(empty).value(state) == TICTACTOE.value(state)


@pytest.mark.parametrize("steps_left", [-1, 11, 100])
def test_horizons_out_of_range_are_refused(steps_left):
    oracle = TabularOracle(FrozenLake())
    message = rf"frozen_lake\(.*\): steps_left must be from 0 to 10, not {steps_left}"
    with pytest.raises(ValueError, match=message):
        oracle.at_horizon(steps_left)
    with pytest.raises(ValueError, match=message):
        oracle.policy_value(uniform(oracle), steps_left=steps_left)


def test_oracles_of_games_that_end_by_themselves_are_their_own_horizon():
    class Known(Oracle):
        def value(self, state):
            return 0.5

        def q_values(self, state):
            return {0: 0.5}

    oracle = Known()
    assert oracle.at_horizon(3) is oracle
    assert oracle.distance("anything") is None


# -- distances ---------------------------------------------------------------------------------------------------------
@cache
def brute(state):
    """(value to come of the mover, moves to the end): among moves of the best value the soonest if it wins, else the
    latest end."""
    game = TICTACTOE.game
    options = []
    for action in game.legal_actions(state):
        step, mover = game.apply(state, action), game.current_player(state)
        value, distance = brute(step.state)
        options.append((step.rewards[mover] - value, 1 + distance))
    if not options:
        return 0, 0
    best = max(value for value, _ in options)
    ends = [distance for value, distance in options if value == best]
    return best, min(ends) if best > 0 else max(ends)


def test_distances_of_every_tictactoe_state_match_brute_force():
    for state in TICTACTOE.table.states:
        assert (TICTACTOE.value(state), TICTACTOE.distance(state)) == brute(state)
    assert TICTACTOE.distance(TICTACTOE.game.initial_states()[0]) == 9  # drawn games fill the board


DECIDED = (TICTACTOE, TabularOracle(TugOfWar(2)), TabularOracle(TugOfWar(1)))


@pytest.mark.parametrize("oracle", DECIDED, ids=lambda oracle: oracle.game.name)
def test_a_decided_game_takes_as_many_moves_as_the_win_needs(oracle):
    """The distance is the first horizon at which the result shows."""
    for state in oracle.table.states[:: max(1, len(oracle.table.states) // 500)]:
        if oracle.value(state):
            shows = [n for n in range(oracle.game.max_length + 1) if oracle.at_horizon(n).value(state)]
            assert oracle.distance(state) == shows[0]


def test_where_both_can_wait_for_ever_there_is_no_distance():
    oracle = TabularOracle(TugOfWar(2))
    distances = {state: oracle.distance(state) for state in oracle.table.states}
    assert distances[Rope(6, 0)] == distances[Rope(5, 0)] == distances[Rope(2, 1)] == 1
    assert distances[Rope(7, 1)] == distances[Rope(0, 0)] == 0
    assert distances[Rope(3, 0)] is None
    assert oracle.value(Rope(3, 0)) == 0


def test_the_loser_makes_it_last():
    oracle = TabularOracle(TugOfWar(1))
    assert [oracle.distance(Rope(knot, 0)) for knot in (1, 2, 3, 4, 5)] == [9, 7, 5, 3, 1]
    assert [oracle.distance(Rope(knot, 1)) for knot in (3, 4, 5, 6)] == [8, 6, 4, 2]


def test_on_dry_ice_the_distance_is_the_shortest_path():
    for number in range(20):
        game = FrozenLake(random_map(5, Rng("paths", number)), slippery=False, max_steps=25)
        oracle = TabularOracle(game)
        for state in oracle.table.states:
            assert oracle.distance(state) == shortest_path(game, state)


def shortest_path(game, state):
    """Breadth-first search; None where the goal cannot be reached. 0 once the game is over."""
    if game.is_terminal(state):
        return 0
    layer, seen = {state}, {state}
    for distance in range(1, 26):
        layer = {game.apply(s, a).state for s in layer for a in game.legal_actions(s)} - seen
        seen |= layer
        if any(game.returns(s) == (1.0,) for s in layer):
            return distance
    return None


def test_one_who_only_loses_by_staying_leaves_by_the_shortest_way():
    assert [TabularOracle(Hall()).distance(cell) for cell in (2, 3, 4, 5)] == [3, 2, 1, 0]


def test_games_with_chance_have_no_distance():
    oracle = TabularOracle(FrozenLake())
    assert {oracle.distance(state) for state in oracle.table.states} == {None}


def test_distance_of_a_state_no_game_reaches_is_refused():
    with pytest.raises(ValueError, match="no game reaches"):
        TICTACTOE.distance(FrozenLakeState("SG", 0))


def test_values_of_all_tictactoe_states_take_less_than_50_ms():
    best = min(_seconds(lambda: TabularOracle(TICTACTOE.game)) for _ in range(5))
    assert best < 0.05
    random = make_opponent("random", TICTACTOE.game)
    assert min(_seconds(lambda: TICTACTOE.policy_value(random)) for _ in range(3)) < 0.5


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
