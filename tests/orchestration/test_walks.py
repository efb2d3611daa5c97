"""Exact results of a player alone: against the oracle, against many sampled walks, and by hand."""

from __future__ import annotations

import math
import random

import pytest

from nlrl.agents.language import language_of
from nlrl.envs import make
from nlrl.envs.breakthrough.oracle import BreakthroughOracle
from nlrl.envs.opponents import TabularPolicy
from nlrl.envs.oracle import TabularOracle, oracle_for
from nlrl.envs.random import Rng
from nlrl.orchestration.exact import action_values, best_return, is_small, optimal_values, successors
from nlrl.orchestration.players import NONE, Play, move_or_forfeit
from nlrl.orchestration.walks import ExactWalks, mean_results

LAKE = make("frozen_lake", layout="SFG/FHF/FFF", max_steps=6)
MAZE = make("maze", layout="#####/#...#/#.#G#/#####", max_steps=9)
GAMES = {"lake": LAKE, "maze": MAZE}


def states(game):
    found = TabularOracle(game).table.states
    return [state for state in found if not game.is_terminal(state)]


def random_table(game, seed, forfeits=False):
    rng = random.Random(seed)
    table = {s: {a: rng.choice((0, 1, 2, 5)) for a in game.legal_actions(s)} for s in states(game)}
    for moves in table.values():
        moves[rng.choice(list(moves))] = 1
        if forfeits:
            moves[None] = 1
    return table


def normal(table):
    return {s: {a: w / sum(m.values()) for a, w in m.items()} for s, m in table.items()}


def walks_of(game, table):
    return ExactWalks(game, language_of(game), table, game.initial_states())


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("seed", range(3))
def test_returns_are_the_oracles(name, seed):
    game = GAMES[name]
    table = random_table(game, seed)
    expected = TabularOracle(game).policy_value(TabularPolicy(normal(table), "table"))
    walks = ExactWalks(game, language_of(game), table, states(game))
    for state in states(game):
        found = walks.results(state)
        assert found.return_ == pytest.approx(expected.value(state))
        assert found.win + found.loss + found.cut + found.forfeit == pytest.approx(1)
    assert mean_results(walks, game.initial_states()).return_ == pytest.approx(expected.at_start(0))


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("forfeits", [False, True])
def test_every_figure_is_the_mean_of_many_walks(name, forfeits):
    game, table = GAMES[name], random_table(GAMES[name], 7, forfeits)
    language, start, policy = language_of(game), game.initial_states()[0], normal(random_table(game, 7, forfeits))
    totals, n = [0.0] * 6, 4000
    for index in range(n):
        rng = Rng("walk", index)
        walk = Play(start, 0, NONE, rng)
        while not walk.is_over(game):
            moves = policy[walk.state]
            move_or_forfeit(game, walk, list(moves)[rng.weighted(list(moves.values()))])
        forfeited = walk.forfeited_by is not None
        score = -1.0 if forfeited else language.score_at(walk.state, len(walk.actions))
        result = walk.result(game)
        row = [walk.total(game), score, *(float(result == kind) for kind in ("win", "loss", "cut", "forfeit"))]
        totals = [total + value for total, value in zip(totals, row, strict=True)]
    for exact, total, spread in zip(walks_of(game, table).results(start), totals, (5, 1, 1, 1, 1, 1), strict=True):
        assert exact == pytest.approx(total / n, abs=4 * spread / math.sqrt(n))


def test_the_value_of_an_action_is_that_of_the_walk_it_begins():
    table = random_table(LAKE, 3)
    pairs = [(state, action) for state in states(LAKE) for action in LAKE.legal_actions(state)]
    values = action_values(LAKE, table, [], pairs)
    for state in states(LAKE):
        mixed = sum(w / sum(table[state].values()) * values[state, a] for a, w in table[state].items())
        walks = ExactWalks(LAKE, language_of(LAKE), table, [state]).results(state)
        assert mixed == pytest.approx(walks.score)
        assert walks.score == pytest.approx(2 * walks.win - 1)


def test_expected_scores_of_mazes_are_not_scores_of_expected_lengths():
    """From the cell beside the goal one way arrives at once and the other bumps for ever."""
    near = MAZE.parse_text("#####\n#..@#\n#.#G#\n#####")
    up, down = 2, 3
    table = {state: {down: 1, up: 1} for state in states(MAZE)}
    language = language_of(MAZE)
    value = walks_of(MAZE, table).results(near)
    lengths = {n: 0.5**n for n in range(1, 10)}
    assert value.cut == pytest.approx(0.5**9)
    assert value.score == pytest.approx(sum(p * language.score_of_steps(n) for n, p in lengths.items()) - 0.5**9)
    assert value.return_ == pytest.approx(sum(p * (1 - n) for n, p in lengths.items()) - 10 * 0.5**9)


def test_best_play_is_put_on_the_scale_of_verdicts():
    near = MAZE.parse_text("#####\n#..@#\n#.#G#\n#####")
    language, optimal = language_of(MAZE), optimal_values(MAZE, [near])
    assert optimal[near, 3] == pytest.approx(language.score_of_steps(1))
    assert optimal[near, 1] == pytest.approx(language.score_of_steps(2))
    start = LAKE.initial_states()[0]
    q_values = oracle_for(LAKE).q_values(start)
    assert optimal_values(LAKE, [start]) == {(start, a): pytest.approx(2 * q - 1) for a, q in q_values.items()}
    assert best_return(LAKE) == pytest.approx(oracle_for(LAKE).at_start(0))
    assert best_return(make("maze", layout="double_t")) == pytest.approx(-6.84)


def test_where_no_oracle_can_say_nothing_is_said(monkeypatch):
    large = make("breakthrough", rows=8, columns=8)
    monkeypatch.setattr("nlrl.orchestration.exact.oracle_for", lambda game: BreakthroughOracle(game, node_limit=1000))
    assert optimal_values(large, large.initial_states()) == {}


def test_a_missing_state_is_an_error_and_not_a_guess():
    table = random_table(MAZE, 0)
    table.pop(MAZE.initial_states()[0])
    with pytest.raises(KeyError):
        walks_of(MAZE, table)


def test_successors_of_chance_of_a_lost_reply_and_of_a_forfeit():
    start = LAKE.initial_states()[0]
    assert len(successors(LAKE, start, 1)) == 3
    assert successors(LAKE, start, None) == []
    corner = MAZE.initial_states()[0]
    assert successors(MAZE, corner, None) == [corner]


@pytest.mark.parametrize(
    ("spec", "most", "small"),
    [("tictactoe", 4520, True), ("tictactoe", 4519, False), ("maze(layout=double_t)", 25, True),
     ("breakthrough(columns=5,rows=5)", 500, False), ("frozen_lake", 11, True)],
)  # fmt: skip
def test_a_game_is_small_by_its_positions(spec, most, small):
    assert is_small(spec, most) == small
