"""The same oracle on games with chance, with one player, with recurring states, and with several initial states."""

from typing import NamedTuple

import numpy as np
import pytest

from nlrl.envs.game import Game, Step
from nlrl.envs.oracle import TabularOracle
from nlrl.envs.state_table import StateTable
from nlrl.errors import NLRLError


class Toy(Game):
    """What the oracle never asks for."""

    params = {}  # noqa: RUF012 - a constant here
    name = "toy"

    def to_text(self, state):
        return str(state)

    def parse_text(self, text):
        raise NotImplementedError

    def action_text(self, state, action):
        return str(action)

    def parse_action(self, state, text):
        raise NotImplementedError

    def render_svg(self, state, last_move=None, arrows=None, marks=None):
        raise NotImplementedError

    def is_terminal(self, state):
        return not self.legal_actions(state)


class Corridor(Toy):
    """Cells 0 to 3, goal at 3. A step right succeeds with probability 0.8, a step left always; each costs 1."""

    name, num_players, num_actions, max_length = "corridor", 1, 2, 400
    value_range, player_names = (-400.0, 0.0), ("walker",)

    def initial_states(self):
        return (0, 1)

    def current_player(self, state):
        return -1 if state == 3 else 0

    def legal_actions(self, state):
        return () if state == 3 else (0, 1)

    def transitions(self, state, action):
        if action == 0:
            return (Step(1.0, max(0, state - 1), (-1.0,)),)
        return Step(0.8, state + 1, (-1.0,)), Step(0.2, state, (-1.0,))

    def returns(self, state):
        return (0.0,)


class Pile(NamedTuple):
    left: int
    mover: int


class RandomNim(Toy):
    """Take 1 or 2 from a pile; with probability 1/4 one more falls off by itself. Whoever takes the last wins."""

    name, num_players, num_actions, max_length = "random_nim", 2, 3, 8
    value_range, player_names = (-1.0, 1.0), ("A", "B")

    def initial_states(self):
        return (Pile(8, 0),)

    def current_player(self, state):
        return -1 if state.left <= 0 else state.mover

    def legal_actions(self, state):
        return tuple(n for n in (1, 2) if n <= state.left)

    def transitions(self, state, action):
        outcomes = ((0.75, state.left - action), (0.25, state.left - action - 1))
        return tuple(self._step(p, max(left, 0), state.mover) for p, left in outcomes)

    def _step(self, probability, left, mover):
        after = Pile(left, 1 - mover)
        return Step(probability, after, self.returns(after))

    def returns(self, state):
        sign = -1.0 if state.mover == 0 else 1.0
        return (0.0, 0.0) if state.left else (sign, -sign)


def nim_value(left, choose=max):
    """Of the mover, by plain recursion."""
    if left <= 0:
        return -1.0  # the other has just taken the last
    moves = [n for n in (1, 2) if n <= left]
    return choose([-(0.75 * nim_value(left - n, choose) + 0.25 * nim_value(left - n - 1, choose)) for n in moves])


def mean(values):
    return sum(values) / len(values)


def test_expected_steps_of_a_slippery_corridor():
    oracle = TabularOracle(Corridor())
    assert [oracle.value(cell) for cell in range(4)] == pytest.approx([-3.75, -2.5, -1.25, 0])
    assert oracle.best_actions(0) == (1,)
    assert oracle.regret(1, 0) == pytest.approx(-2.5 - (-1 - 3.75))
    assert oracle.at_start(0) == pytest.approx((-3.75 - 2.5) / 2)  # two initial states


def test_policy_value_with_recurring_states_solves_the_linear_equations():
    oracle = TabularOracle(Corridor())
    policy = {cell: {0: 0.3, 1: 0.7} for cell in range(3)}
    matrix = np.zeros((3, 3))
    for cell in range(3):
        matrix[cell, max(0, cell - 1)] += 0.3
        matrix[cell, cell] += 0.7 * 0.2
        if cell < 2:
            matrix[cell, cell + 1] += 0.7 * 0.8
    expected = np.linalg.solve(np.eye(3) - matrix, -np.ones(3))
    values = oracle.policy_value(policy)
    assert [values.value(cell) for cell in range(3)] == pytest.approx(expected)
    assert -oracle.reach(policy)[:3].sum() == pytest.approx(expected[:2].mean())  # each visited cell costs one
    assert oracle.exploitability(policy) == pytest.approx(oracle.at_start(0) - values.at_start(0))


def test_a_policy_that_never_arrives_is_worth_max_length_moves():
    assert TabularOracle(Corridor()).policy_value({cell: {0: 1.0} for cell in range(3)}).value(2) == -400


def test_two_players_with_chance_match_plain_recursions():
    oracle = TabularOracle(RandomNim())
    uniform = {state: {n: 1 / len(moves) for n in moves} for state, moves in _moves(oracle).items()}
    for state in oracle.table.states:
        if state.left:
            assert oracle.value(state) == pytest.approx(nim_value(state.left))
            assert oracle.policy_value(uniform).value(state) == pytest.approx(nim_value(state.left, mean))
    outcome = oracle.outcome(uniform)
    assert outcome.draw == pytest.approx(0, abs=1e-12)
    assert outcome.win - outcome.loss == pytest.approx(nim_value(8, mean))
    best = oracle.best_response(uniform, seat=1, objective="wins")
    assert best.values.at_start(1) == pytest.approx((1 + oracle.best_response(uniform, seat=1).values.at_start(1)) / 2)


def _moves(oracle):
    return {state: oracle.game.legal_actions(state) for state in oracle.table.states if state.left}


def test_games_too_large_to_enumerate_are_refused():
    with pytest.raises(NLRLError, match="corridor has more than 2 states"):
        StateTable(Corridor(), max_states=2)
