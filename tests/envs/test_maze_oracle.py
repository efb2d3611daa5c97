"""Exact values of mazes, and the published figures."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.envs import make
from nlrl.envs.maze import Maze, MazeState
from nlrl.envs.oracle import TabularOracle, oracle_for

MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))


def uniform(game: Maze) -> dict:
    return {MazeState(*cell): dict.fromkeys(range(4), 0.25) for cell in game.grid.distance if cell != game.grid.goal}


def random_walk_matrix(game: Maze) -> tuple[np.ndarray, np.ndarray]:
    """(cells, cells) probabilities of uniform steps that miss the goal, and (cells,) rewards, from the text alone."""
    rows = game.to_text(game.initial_states()[0]).replace("@", ".").splitlines()
    cells = [(r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol == "."]
    matrix, rewards = np.zeros((len(cells), len(cells))), np.zeros(len(cells))
    for here, (row, column) in enumerate(cells):
        for down, right in MOVES:
            symbol = rows[row + down][column + right]
            rewards[here] -= 0.25 * (symbol != "G")
            if symbol != "G":
                there = cells.index((row + down, column + right)) if symbol == "." else here
                matrix[here, there] += 0.25
    return matrix, rewards


# -- the published figures ---------------------------------------------------------------------------------------------
def test_double_t_optimum_is_the_published_one():
    game = Maze()
    oracle = oracle_for(game)
    assert len(game.initial_states()) == 25
    assert oracle.at_start() == pytest.approx(-6.84, abs=1e-12)
    assert TabularOracle(game).at_start(0) == pytest.approx(-6.84, abs=1e-12)


def test_random_walks_in_double_t_earn_the_published_85_9_with_the_further_1_at_the_cap():
    game = Maze()
    matrix, rewards = random_walk_matrix(game)
    earned, unfinished = np.zeros(25), np.ones(25)
    for _ in range(100):
        earned, unfinished = rewards + matrix @ earned, matrix @ unfinished
    assert earned.mean() == pytest.approx(-85.14, abs=0.005)  # without it: not the published figure
    expected = (earned - unfinished).mean()
    assert expected == pytest.approx(-85.89, abs=0.005)
    for values in (TabularOracle(game).policy_value(uniform(game)), oracle_for(game).policy_value(uniform(game))):
        assert values.at_start(0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("layout", "optimum", "random"), [("medium", -5.6, -82.579), ("umaze", -2.5, -46.219), ("large", -8.111, -90.296)]
)
def test_figures_of_the_other_layouts(layout, optimum, random):
    game = Maze(layout=layout)
    oracle = oracle_for(game)
    assert oracle.at_start() == pytest.approx(optimum, abs=5e-4)
    assert oracle.policy_value(uniform(game)).at_start(0) == pytest.approx(random, abs=5e-4)
    assert oracle.exploitability(uniform(game)) == pytest.approx(optimum - random, abs=1e-3)


# -- one maze by hand --------------------------------------------------------------------------------------------------
def test_values_of_the_u_maze_by_hand():
    oracle = oracle_for(make("maze", layout="umaze"))
    assert oracle.q_values(MazeState(1, 2)) == {0: -4.0, 1: -2.0, 2: -3.0, 3: -3.0}
    assert oracle.value(MazeState(1, 2)) == -2.0
    assert oracle.best_actions(MazeState(1, 2)) == (1,)
    assert oracle.regret(MazeState(1, 2), 0) == 2.0
    assert oracle.q_values(MazeState(2, 3)) == {0: -1.0, 1: -1.0, 2: -2.0, 3: 0.0}
    assert oracle.distance(MazeState(3, 1)) == 6
    assert oracle.shortest_path(MazeState(1, 2)) == [(1, 2), (1, 3), (2, 3), (3, 3)]
    assert (oracle.value(MazeState(3, 3)), oracle.q_values(MazeState(3, 3))) == (0.0, {})
    assert (oracle.distance(MazeState(3, 3)), oracle.shortest_path(MazeState(3, 3))) == (0, [(3, 3)])


def test_where_the_cap_binds_every_way_is_worth_the_cap_and_its_penalty():
    oracle = oracle_for(Maze(layout="umaze", max_steps=3))
    assert oracle.value(MazeState(1, 2)) == -2.0
    assert oracle.value(MazeState(1, 1)) == -4.0
    assert oracle.best_actions(MazeState(1, 1)) == (0, 1, 2, 3)
    assert oracle.q_values(MazeState(1, 2)) == {0: -4.0, 1: -2.0, 2: -4.0, 3: -4.0}


def test_what_is_told_changes_no_value():
    full, partial = Maze(layout="medium"), Maze(layout="medium", observed="partial")
    for state in full.initial_states():
        remembered = partial.apply(partial.apply(state, 0).state, 1).state
        assert oracle_for(partial).q_values(remembered) == oracle_for(full).q_values(MazeState(*remembered.cell))


@pytest.mark.parametrize("steps", [-1, 101])
def test_horizons_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match="steps_left must be from 0 to 100"):
        oracle_for(Maze()).at_horizon(steps)


def test_the_whole_table_takes_less_than_5_ms():
    def seconds() -> float:
        start = time.perf_counter()
        game = Maze()
        oracle = game.make_oracle()
        for state in game.initial_states():
            oracle.q_values(state)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.005


# -- any maze ----------------------------------------------------------------------------------------------------------
@st.composite
def mazes(draw) -> Maze:
    """Mazes of random walls: rooms, pillars, parts without a way to the goal, caps that bind."""
    height, width = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    cells = [list(draw(st.text("#..", min_size=width, max_size=width))) for _ in range(height)]
    row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    cells[row][column] = "G"
    beside = [(r, c) for r, c in ((row, column - 1), (row, column + 1)) if 0 <= c < width]
    start = draw(st.sampled_from(beside))
    cells[start[0]][start[1]] = "."
    return Maze(layout="/".join("".join(line) for line in cells), max_steps=draw(st.integers(1, 30)))


@given(mazes(), st.data())
@settings(max_examples=60, deadline=None)
def test_breadth_first_values_equal_swept_tables(game, data):
    fast, table = game.make_oracle(), TabularOracle(game)
    steps = data.draw(st.integers(1, game.max_length))
    for state in table.table.states:
        for ours, swept in ((fast, table), (fast.at_horizon(steps), table.at_horizon(steps))):
            assert ours.value(state) == swept.value(state)
            assert ours.q_values(state) == swept.q_values(state)
            assert ours.best_actions(state) == swept.best_actions(state)
        if fast.distance(state) <= game.max_length:
            assert fast.distance(state) == table.distance(state)
    assert fast.at_start() == pytest.approx(table.at_start(0))
    with_none_left = fast.at_horizon(0)
    assert [with_none_left.value(state) for state in table.table.states] == table.at_horizon(0).v.tolist()
    assert all(np.isnan(list(with_none_left.q_values(state).values())).all() for state in table.table.states)


@given(mazes(), st.data())
@settings(max_examples=60, deadline=None)
def test_shortest_paths_are_walks_of_the_right_length_that_earn_the_value(game, data):
    oracle = game.make_oracle()
    state = data.draw(st.sampled_from(game.initial_states()))
    path = oracle.shortest_path(state)
    assert len(path) == oracle.distance(state) + 1
    assert (path[0], path[-1]) == (state.cell, game.grid.goal)
    earned = 0.0
    for (row, column), (next_row, next_column) in pairwise(path):
        step = game.apply(MazeState(row, column), MOVES.index((next_row - row, next_column - column)))
        assert step.state.cell == (next_row, next_column)
        earned += step.rewards[0]
    if oracle.distance(state) <= game.max_length:
        assert earned == oracle.value(state)
