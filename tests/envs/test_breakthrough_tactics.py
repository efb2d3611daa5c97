"""What the rules say of a Breakthrough position at a glance, held to play itself."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from itertools import product

import pytest

from nlrl.envs import make
from nlrl.envs.breakthrough import BreakthroughState, tactics
from nlrl.envs.breakthrough.baselines import GUESSES, at_sight, material, race, three_rules
from nlrl.envs.oracle import oracle_for

GAME = make("breakthrough")
BOARD = GAME.board
SIZES = [(5, 5), (4, 3), (3, 8), (8, 4)]


@cache
def positions(rows=5, columns=5, games=20):
    """Non-terminal positions of random games."""
    game, rng, found = make("breakthrough", rows=rows, columns=columns), random.Random(5), []
    for _ in range(games):
        state = game.initial_states()[0]
        while legal := game.legal_actions(state):
            found.append(state)
            state = game.apply(state, rng.choice(legal)).state
    return game, tuple(found)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_moves_captures_and_wins_are_those_of_the_rules(rows, columns):
    game, found = positions(rows, columns)
    for state in found:
        legal, taken, won = game.legal_actions(state), [], []
        for action in legal:
            after = game.apply(state, action).state
            if after[1 - state.player] != state[1 - state.player]:
                taken.append(action)
            if game.is_terminal(after):
                won.append(action)
        assert tactics.moves(game.board, state, state.player) == legal
        assert tactics.captures(game.board, state, state.player) == tuple(taken)
        assert tactics.winning_moves(game.board, state, state.player) == tuple(won)
        assert set(tactics.winning_pawns(game.board, state, state.player)) == {action // 3 for action in won}


def test_the_other_side_is_asked_as_if_it_were_to_move():
    for state in positions()[1]:
        other = state._replace(player=1 - state.player)
        assert tactics.moves(BOARD, state, other.player) == GAME.legal_actions(other)


def test_attacked_pawns_can_be_taken_and_hanging_ones_for_nothing():
    hanging = guarded = 0
    for state in positions()[1]:
        me = state.player
        for action in tactics.captures(BOARD, state, me):
            after = GAME.apply(state, action).state
            target = BOARD.moves[me][action][1]
            assert tactics.attacked(BOARD, state, 1 - me) & target
            if GAME.is_terminal(after):
                continue
            back = any(BOARD.moves[1 - me][reply][1] == target for reply in tactics.captures(BOARD, after, 1 - me))
            cell = target.bit_length() - 1
            assert (cell in tactics.hanging(BOARD, state, 1 - me)) == (not back)
            hanging, guarded = hanging + (not back), guarded + back
    assert min(hanging, guarded) > 50


def test_the_foremost_pawns_are_the_nearest_to_their_far_row():
    start = GAME.initial_states()[0]
    assert tactics.foremost(BOARD, start, 0) == (3, (5, 6, 7, 8, 9))
    assert tactics.foremost(BOARD, start, 1) == (3, (15, 16, 17, 18, 19))
    for state in positions()[1]:
        for player in (0, 1):
            rows, cells = tactics.foremost(BOARD, state, player)
            others = [tactics.rows_to_go(BOARD, player, c) for c in tactics.cells_of(state[player]) if c not in cells]
            assert all(tactics.rows_to_go(BOARD, player, cell) == rows for cell in cells)
            assert all(other > rows for other in others)


def meets(board, runner, enemy):
    """Whether black on `runner` and white on `enemy` can come to stand so that white could take black or block it,
    however both move."""
    (row, column), (other_row, other_column) = (divmod(cell, board.columns) for cell in (runner, enemy))
    if other_row - row == 1 and abs(other_column - column) <= 1:
        return True
    if other_row - row <= 1:
        return False
    steps = [(1, shift, 0, 0) for shift in (-1, 0, 1)] + [(0, 0, -1, shift) for shift in (-1, 0, 1)]
    for down, left, up, right in steps:
        places = (row + down, column + left, other_row + up, other_column + right)
        if 0 <= places[1] < board.columns and 0 <= places[3] < board.columns:
            cells = places[0] * board.columns + places[1], places[2] * board.columns + places[3]
            if meets(board, *cells):
                return True
    return False


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (4, 8)])
def test_a_runner_is_a_pawn_that_no_enemy_can_ever_meet(rows, columns):
    game = make("breakthrough", rows=rows, columns=columns)
    board, seen = game.board, set()
    pairs = [pair for pair in product(range(board.cells - columns), range(columns, board.cells)) if pair[0] != pair[1]]
    for runner, enemy in random.Random(1).sample(pairs, 150):
        state = BreakthroughState(1 << runner, 1 << enemy, 0)
        free = tactics.is_runner(board, state, 0, runner)
        assert free == (not meets(board, runner, enemy)), board.names(state.black | state.white)
        turned = BreakthroughState(*(1 << board.cells - 1 - cell for cell in (enemy, runner)), 1)
        assert tactics.is_runner(board, turned, 1, board.cells - 1 - runner) == free
        seen.add(free)
    assert seen == {True, False}


def test_a_runner_with_fewer_rows_to_go_than_anybody_wins():
    oracle, found = oracle_for(GAME), 0
    for state in positions(games=60)[1]:
        me = state.player
        nearest = tactics.foremost(BOARD, state, 1 - me)[0]
        free = [tactics.rows_to_go(BOARD, me, cell) for cell in tactics.runners(BOARD, state, me)]
        if free and min(free) <= nearest:
            found += 1
            assert oracle.value(state) == 1.0
    assert found >= 5


def test_goals_only_become_fewer_as_the_game_goes_on():
    rng = random.Random(2)
    for _ in range(30):
        state = GAME.initial_states()[0]
        known = [set(tactics.goals(BOARD, state, player)) for player in (0, 1)]
        assert known == [{20, 21, 22, 23, 24}, {0, 1, 2, 3, 4}]
        while legal := GAME.legal_actions(state):
            state = GAME.apply(state, rng.choice(legal)).state
            for player in (0, 1):
                now = set(tactics.goals(BOARD, state, player))
                assert now <= known[player]
                known[player] = now
        arrived = state.black & BOARD.goals[0] | state.white & BOARD.goals[1]
        assert set(tactics.cells_of(arrived)) <= known[1 - state.player]


# -- guesses at who wins -----------------------------------------------------------------------------------------------
def test_what_is_decided_at_sight_is_decided():
    oracle, found = oracle_for(GAME), Counter()
    for state in positions(games=60)[1]:
        decided = at_sight(BOARD, state)
        found[decided] += 1
        assert decided is None or decided == oracle.value(state)
        assert three_rules(BOARD, state) == (material(BOARD, state) if decided is None else decided)
    assert found[1.0] > 100
    assert found[-1.0] > 20


def test_guesses_favour_whoever_has_more_is_nearer_or_is_to_move():
    def read(rows, mover):
        state = BreakthroughState(
            *(sum(1 << i for i, cell in enumerate("".join(rows)) if cell == side) for side in "bw"), mover
        )
        return [guess(BOARD, state) for guess in (material, race, three_rules)]

    rows = ("b...b", ".....", "..b..", "....w", "w....")
    assert read(rows, 0) == [1.0, 1.0, 1.0]
    assert read(rows, 1) == [-1.0, -1.0, -1.0]
    even = ("b....", "..b..", ".....", "..w..", "w....")
    assert read(even, 0) == read(even, 1) == [1.0, 1.0, 1.0]
    assert set(GUESSES) == {"player to move", "nearer to the far row", "more pawns", "three rules"}
