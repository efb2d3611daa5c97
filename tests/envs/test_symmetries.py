"""Every symmetry commutes with its game's rules; maps that do not are caught."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from nlrl.envs import make_from_spec
from nlrl.envs.oracle import oracle_for
from nlrl.envs.random import Rng
from nlrl.envs.symmetries import TURNS, exchange_names, mismatch, register_symmetries, symmetries_of

SPECS = {
    "tictactoe": 7,
    "breakthrough(rows=4,columns=3)": 3,
    "breakthrough(rows=5,columns=5)": 3,
    "frozen_lake": 7,
    "frozen_lake(layout=random,maps=4)": 7,
    "frozen_lake(layout=SFFF/FHFG,slippery=False)": 7,
    "maze(layout=double_t)": 7,
    "maze(layout=umaze,observed=partial,history=3)": 7,
}
"""Games and how many symmetries they have beside the identity."""


@cache
def visited(spec: str, count: int = 60) -> tuple:
    """Different states of random games, terminal ones included."""
    game, rng, found = make_from_spec(spec), Rng("symmetries", spec), {}
    while len(found) < count and rng.below(5000):
        state = game.initial_state(rng)
        for _ in range(game.max_length):
            found[state] = None
            if game.is_terminal(state):
                break
            state = game.apply(state, rng.choice(game.legal_actions(state)), rng).state
    return tuple(found)[:count]


@pytest.mark.parametrize("spec", SPECS)
def test_playing_and_mapping_can_be_exchanged(spec):
    game = make_from_spec(spec)
    found = symmetries_of(game)
    assert len(found) == SPECS[spec] == len({symmetry.name for symmetry in found})
    for symmetry in found:
        for state in visited(spec):
            assert mismatch(game, symmetry, state) is None, (symmetry.name, state)


@pytest.mark.parametrize("spec", SPECS)
def test_images_are_states_of_their_game_and_survive_its_text(spec):
    game = make_from_spec(spec)
    for symmetry in symmetries_of(game):
        for state in visited(spec)[:20]:
            other, image = symmetry.game(state), symmetry.state(state)
            assert other.parse_text(other.to_text(image)) == image


@pytest.mark.parametrize("spec", ["tictactoe", "breakthrough(rows=4,columns=3)"])
def test_with_the_identity_they_are_a_group(spec):
    game = make_from_spec(spec)
    found, states = symmetries_of(game), visited(spec)
    maps = {tuple(symmetry.state(state) for state in states) for symmetry in found} | {states}
    assert len(maps) == len(found) + 1
    for first in found:
        for second in found:
            assert tuple(second.state(first.state(state)) for state in states) in maps


@pytest.mark.parametrize("spec", ["tictactoe", "breakthrough(rows=4,columns=3)", "frozen_lake", "maze(layout=umaze)"])
def test_exact_values_are_those_of_the_images(spec):
    game = make_from_spec(spec)
    for symmetry in symmetries_of(game):
        for state in visited(spec)[:15]:
            other, image = symmetry.game(state), symmetry.state(state)
            values = oracle_for(other).q_values(image)
            for action, value in oracle_for(game).q_values(state).items():
                assert values[symmetry.action(state, action)] == pytest.approx(value), (symmetry.name, state)


def test_a_map_that_is_its_own_image_stays_in_its_game():
    maze = make_from_spec("maze(layout=double_t)")
    kept = [symmetry.name for symmetry in symmetries_of(maze) if symmetry.game(maze.initial_states()[0]) is maze]
    assert kept == ["mirrored left-right"]
    lake = make_from_spec("frozen_lake(layout=SFF/FHF/FFG)")
    kept = [symmetry.name for symmetry in symmetries_of(lake) if symmetry.game(lake.initial_states()[0]) is lake]
    assert kept == ["mirrored on the diagonal"]


def test_turns_move_pictures_and_cells_alike():
    picture = ("abc", "def")
    for turn in TURNS:
        turned = turn.rows(picture)
        for row in range(2):
            for column in range(3):
                there = turn.cell((row, column), 2, 3)
                assert turned[there[0]][there[1]] == picture[row][column], turn.name


# -- maps that are no symmetries ---------------------------------------------------------------------------------------
def broken(spec: str, symmetry) -> bool:
    game = make_from_spec(spec)
    return any(mismatch(game, symmetry, state) for state in visited(spec))


def test_a_map_that_forgets_the_actions_is_caught():
    game = make_from_spec("tictactoe")
    mirror = symmetries_of(game)[3]
    assert broken("tictactoe", replace(mirror, action=lambda state, action: action))


def test_exchanging_colours_without_turning_the_board_is_caught():
    game = make_from_spec("breakthrough(rows=4,columns=3)")
    turned = symmetries_of(game)[1]

    def exchange(state):
        return type(state)(state.white, state.black, 1 - state.player)

    assert broken(game.spec, replace(turned, state=exchange))


def test_exchanging_colours_without_saying_so_is_caught():
    game = make_from_spec("breakthrough(rows=4,columns=3)")
    assert broken(game.spec, replace(symmetries_of(game)[1], swaps_players=False))


def test_a_lake_turned_without_its_map_is_caught():
    game = make_from_spec("frozen_lake")
    turned = symmetries_of(game)[0]
    still = make_from_spec("frozen_lake")

    class Wrong:
        name, swaps_players = "wrong", False
        game = staticmethod(lambda state: still)
        state = staticmethod(lambda state: type(state)(state.map, turned.state(state).cell))
        action = staticmethod(turned.action)

    assert broken("frozen_lake", Wrong())


def test_a_game_without_symmetries_has_none_until_it_registers_them(monkeypatch):
    monkeypatch.setattr("nlrl.envs.symmetries._MAKERS", {})
    game = make_from_spec("tictactoe")
    assert symmetries_of(game) == ()
    register_symmetries("tictactoe", lambda game: ["one"])
    assert symmetries_of(game) == ("one",)


# -- names -------------------------------------------------------------------------------------------------------------
def test_names_are_exchanged_as_whole_words():
    game = make_from_spec("tictactoe")
    text = " X | 2 | O\nX is to move; O threatens 7. Out of the box: X's cell."
    swapped = " O | 2 | X\nO is to move; X threatens 7. Out of the box: O's cell."
    assert exchange_names(game, text) == swapped
    assert exchange_names(game, swapped) == text
    board = make_from_spec("breakthrough(rows=5,columns=5)")
    assert exchange_names(board, "White attacks black on a blackboard.") == "Black attacks white on a blackboard."


def test_names_of_one_player_cannot_be_exchanged():
    with pytest.raises(ValueError, match="two players"):
        exchange_names(make_from_spec("frozen_lake"), "player")
