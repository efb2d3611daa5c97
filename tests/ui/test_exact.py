from __future__ import annotations

import pytest

from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.ui import exact
from nlrl.ui.exact import Exact, Solver, exact_values


def value_at(game, *moves):
    state = game.initial_states()[0]
    for move in moves:
        state = game.apply(state, game.parse_action(state, move)).state
    return exact_values(game, [state])[0]


def test_values_of_tictactoe_are_exact_and_from_the_movers_view():
    game = make("tictactoe")
    lost = value_at(game, "1", "2", "5")  # O threatens 9 and more
    assert lost.value == -1.0
    won = value_at(game, "1", "2", "5", "3")
    assert won.value == 1.0
    assert 8 in won.best
    assert won.q[8] == 1.0
    assert won.reason == ""


def test_values_of_a_lake_are_chances_as_verdicts():
    found = exact_values(make("frozen_lake"), make("frozen_lake").initial_states())[0]
    assert -1.0 < (found.value or 0.0) < 1.0
    assert found.best


def test_a_step_the_wrong_way_in_a_maze_costs_something():
    game = make("maze")
    state = game.initial_states()[0]
    found = exact_values(game, [state])[0]
    assert found.value is not None
    assert min(value for value in found.q.values() if value is not None) < found.value


def test_small_breakthrough_is_solved():
    game = make("breakthrough", rows=5, columns=5)
    found = exact_values(game, game.initial_states())[0]
    assert found.value == -1.0  # the second player wins 5x5
    assert set(found.q.values()) == {-1.0}


def test_a_search_that_gives_up_says_so_and_guesses_nothing():
    game = make("breakthrough")
    found = exact_values(game, game.initial_states(), nodes=2000)[0]
    assert found.value is None
    assert set(found.q.values()) == {None}
    assert "2,000 nodes" in found.reason
    assert found.best == ()


class Clueless:
    """An oracle that finds nothing."""

    def q_values(self, state):
        raise NLRLError("given up. More nodes help")

    value = q_values


def test_a_winning_move_decides_a_position_whose_other_moves_are_unknown(monkeypatch):
    monkeypatch.setattr(exact, "_oracle", lambda game, nodes: Clueless())
    game = make("tictactoe")
    found = value_at(game, "1", "4", "2", "5")
    assert (found.value, found.best, found.reason) == (1.0, (2,), "given up")
    assert [action for action, value in found.q.items() if value is None] == [5, 6, 7, 8]
    assert value_at(game, "1", "4").value is None


def test_when_the_time_is_up_the_rest_is_unknown():
    times = iter([0.0, 1.0, 99.0])
    game = make("tictactoe")
    solver = Solver(game, seconds=2.0, clock=lambda: next(times))
    first, second = game.initial_states()[0], game.apply(game.initial_states()[0], 0).state
    assert solver.exact(first).value == 0.0
    late = solver.exact(second)
    assert late.value is None
    assert "2 seconds" in late.reason


def test_a_finished_game_has_no_value_to_come_and_games_without_an_oracle_say_why(monkeypatch):
    game = make("tictactoe")
    over = game.parse_text(" O | O | O\n---+---+---\n X | X | 6\n---+---+---\n 7 | 8 | 9")
    assert exact_values(game, [over]) == [Exact()]

    def refuse(game):
        raise NLRLError("too large")

    monkeypatch.setattr(exact, "oracle_for", refuse)
    (found,) = exact_values(game, game.initial_states())
    assert (found.value, found.reason) == (None, "too large")


@pytest.mark.parametrize("name", ["tictactoe", "frozen_lake", "maze"])
def test_values_are_verdicts(name):
    game = make(name)
    state = game.initial_states()[0]
    assert all(-1 <= value <= 1 for value in exact_values(game, [state])[0].q.values() if value is not None)
