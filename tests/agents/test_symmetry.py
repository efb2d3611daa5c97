"""Critics and policies that see the game alone are symmetric; those that see names of cells are found out."""

from __future__ import annotations

import math

import pytest

from nlrl.agents.metrics.symmetry import Reading, equal_moves, images, moved_choices, score_readings, spreads
from nlrl.envs import make
from nlrl.envs.oracle import oracle_for
from nlrl.envs.symmetries import symmetries_of

GAME = make("tictactoe")
SYMMETRIES = symmetries_of(GAME)


def position(moves: str):
    state = GAME.initial_states()[0]
    for move in moves.split():
        state = GAME.apply(state, int(move) - 1).state
    return state


STATES = [position(moves) for moves in ("", "1", "5 1", "2 3", "1 5 9", "5 1 3 7")]
PAIRS = [(state, action) for state in STATES for action in GAME.legal_actions(state)]


def readings(critic) -> list[Reading]:
    by_symmetry = images(GAME, SYMMETRIES, PAIRS)
    return [
        Reading(name, pair, critic(*pair), critic(*image))
        for name, found in by_symmetry.items()
        for pair, image in found.items()
    ]


def test_exact_values_are_symmetric():
    found = readings(lambda state, action: oracle_for(GAME).q_values(state)[action])
    scores = score_readings(found)
    assert (scores.coverage, scores.same_sign, scores.opposite, scores.difference) == (1, 1, 0, 0)
    assert scores.unrelated > 0.2
    assert set(spreads(found).values()) == {0.0}


def test_a_critic_that_reads_the_names_of_cells_is_not():
    found = readings(lambda state, action: action / 4 - 1)
    scores = score_readings(found)
    assert scores.same_sign < 0.7
    assert scores.opposite > 0.1
    assert scores.difference == pytest.approx(scores.unrelated, abs=0.2)
    assert min(spreads(found).values()) < 0.01 < 0.3 < max(spreads(found).values())


def test_what_cannot_be_read_is_a_difference():
    scores = score_readings([Reading("s", PAIRS[0], 1.0, None), Reading("s", PAIRS[0], 1.0, 1.0)])
    assert (scores.coverage, scores.same_sign, scores.difference) == (0.5, 0.5, 0)
    assert math.isnan(score_readings([]).same_sign)
    assert spreads([Reading("s", PAIRS[0], None, None)]) == {}
    assert spreads([Reading("s", PAIRS[0], 1.0, None)]) == {}  # one number has no spread


def test_a_position_that_is_its_own_image_counts_for_nothing():
    centre = [(STATES[0], 4)]
    assert all(not found for found in images(GAME, SYMMETRIES, centre).values())


def test_equal_moves_are_those_that_a_symmetry_of_the_position_exchanges():
    assert equal_moves(GAME, SYMMETRIES, STATES[0], 0) == {0, 2, 6, 8}
    assert equal_moves(GAME, SYMMETRIES, STATES[0], 4) == {4}
    assert equal_moves(GAME, SYMMETRIES, position("1"), 1) == {1, 3}
    assert equal_moves(GAME, SYMMETRIES, position("1 2"), 4) == {4}


def choices_of(policy):
    choices = {state: policy(state) for state in STATES}
    of_image = {(s.name, state): policy(s.state(state)) for s in SYMMETRIES for state in STATES}
    return moved_choices(GAME, SYMMETRIES, choices, of_image)


def value_order(state):
    """The best move by what it leads to, ties by the smallest picture under all symmetries: no cell's name matters."""
    values = oracle_for(GAME).q_values(state)

    def picture(action):
        after = GAME.apply(state, action).state
        return min((image.o, image.x) for image in GAME.symmetries(after))

    return max(values, key=lambda action: (values[action], [-bits for bits in picture(action)]))


def test_a_policy_that_sees_the_game_alone_plays_the_image_of_its_move():
    found = choices_of(value_order)
    assert found
    assert all(choice.equivariant for choice in found)
    assert all(0 < choice.chance <= 1 for choice in found)


def test_a_policy_of_the_first_free_cell_does_not():
    found = choices_of(lambda state: GAME.legal_actions(state)[0])
    assert sum(choice.equivariant for choice in found) / len(found) < 0.6


def test_a_forfeit_is_never_right():
    found = choices_of(lambda state: None)
    assert found
    assert not any(choice.equivariant for choice in found)
    assert {choice.chance for choice in found} == {0.0}


def test_images_of_a_maze_are_judged_by_the_symmetries_of_their_own_maze():
    maze = make("maze", layout="umaze")
    symmetries = symmetries_of(maze)
    states = list(maze.initial_states())
    choices = {state: oracle_for(maze).best_actions(state)[0] for state in states}
    of_image = {}
    for symmetry in symmetries:
        for state in states:
            best = oracle_for(symmetry.game(state)).best_actions(symmetry.state(state))
            of_image[symmetry.name, state] = best[0]
    found = moved_choices(maze, symmetries, choices, of_image)
    assert len(found) == len(symmetries) * len(states)
    assert all(choice.equivariant for choice in found)  # the way to this goal is the only one
