"""The solver of Breakthrough against slow and plain ones, and the files it keeps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.envs.breakthrough import Breakthrough, BreakthroughState
from nlrl.envs.breakthrough.oracle import BreakthroughOracle
from nlrl.envs.breakthrough.solver import NO, SLOTS, UNBOUNDED, YES, ask, new_search, words_per_slot
from nlrl.envs.breakthrough.table import default_path, load_table, save_table
from nlrl.envs.oracle import oracle_for
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError

SMALL = ((3, 3, 1), (4, 3, 2), (3, 5, 1), (5, 3, 1), (4, 4, 1), (6, 3, 1))
"""Boards that a plain negamax can solve: rows, columns, rows of pawns."""


@pytest.fixture(autouse=True)
def no_kept_table(tmp_path, monkeypatch):
    """No table from the user's cache folder, and nothing written to it."""
    monkeypatch.setenv("NLRL_CACHE", str(tmp_path / "cache"))


def plain_solver(game):
    """state -> (value, distance), by negamax over every move, with nothing of the solver's in it."""

    @cache
    def solve(state):
        results = []
        for action in game.legal_actions(state):
            step = game.apply(state, action)
            mover = step.rewards[state.player]
            value, distance = (mover, 0) if mover else solve(step.state)
            results.append((value if mover else -value, distance + 1))
        wins = [distance for value, distance in results if value > 0]
        return (1, min(wins)) if wins else (-1, max(distance for _, distance in results))

    return solve


def random_position(game, rng, most=None):
    """Up to `most` pawns a side, anywhere but on the far rows; most such positions come up in no game."""
    cells, columns = game.board.cells, game.columns
    most = most or columns * game.pawn_rows
    while True:
        order = rng.shuffled(range(cells))
        black = [c for c in order if c < cells - columns][: 1 + rng.below(most)]
        white = [c for c in order if c >= columns and c not in black][: 1 + rng.below(most)]
        if black and white:
            return BreakthroughState(sum(1 << c for c in black), sum(1 << c for c in white), rng.below(2))


def played_position(game, rng, moves):
    """After at most `moves` random moves, before the end."""
    state = game.initial_states()[0]
    for _ in range(moves):
        after = game.apply(state, rng.choice(game.legal_actions(state))).state
        if game.is_terminal(after):
            break
        state = after
    return state


# -- against other solvers ---------------------------------------------------------------------------------------------
def mismatches(size, positions, most=None):
    """Positions where value or distance differ from the plain solver's; odd ones are asked for the distance first."""
    game = Breakthrough(*size)
    oracle, plain, rng = BreakthroughOracle(game), plain_solver(game), Rng("positions", *size)
    found = []
    for number in range(positions):
        state = random_position(game, rng, most)
        expected = plain(state)
        if number % 2:
            got = oracle.distance(state), oracle.value(state)
        else:
            got = oracle.value(state), oracle.distance(state)
        if expected != (got[::-1] if number % 2 else got):
            found.append((state, expected, got))
    return found


@pytest.mark.parametrize("size", SMALL)
def test_values_and_distances_are_those_of_a_plain_negamax(size):
    assert mismatches(size, 100) == []


@pytest.mark.parametrize("size", [(5, 5, 2), (6, 6, 2), (8, 8, 2)])
def test_endgames_of_large_boards_are_those_of_a_plain_negamax(size):
    """The table's entries for more than 20 cells have another form."""
    assert mismatches(size, 15, most=2) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [*SMALL, (5, 3, 2), (3, 6, 1), (8, 3, 1), (3, 8, 1), (5, 4, 1)])
def test_values_and_distances_are_those_of_a_plain_negamax_in_2000_positions(size):
    assert mismatches(size, 2000 if size in SMALL else 300) == []


def openspiel_solver(rows, columns):
    """The start by OpenSpiel's rules, and whether the mover wins a state, remembering what was seen."""
    import pyspiel

    seen = {}

    def wins(state):
        key = str(state), state.current_player()
        if key not in seen:
            seen[key] = any(loses(state.child(action), key[1]) for action in state.legal_actions())
        return seen[key]

    def loses(after, player):
        return after.returns()[player] > 0 if after.is_terminal() else not wins(after)

    return pyspiel.load_game(f"breakthrough(rows={rows},columns={columns})").new_initial_state(), wins


def check_against_openspiel(rows, columns, positions):
    """The start and random positions of OpenSpiel's stock board."""
    start, wins = openspiel_solver(rows, columns)
    game = Breakthrough(rows, columns, pawn_rows=2 if rows >= 6 else 1)
    oracle, rng = BreakthroughOracle(game), Rng("openspiel", rows, columns)
    assert from_openspiel(start, columns) == game.initial_states()[0]
    for number in range(positions):
        state = start.clone()
        for _ in range(number % 12):
            after = state.child(rng.choice(state.legal_actions()))
            if after.is_terminal():
                break
            state = after
        assert oracle.value(from_openspiel(state, columns)) == (1 if wins(state) else -1), state


def from_openspiel(state, columns):
    """Its text has a rank before each row."""
    cells = "".join(line[1:] for line in str(state).splitlines() if line[0] != " ")
    black, white = (sum(1 << cell for cell, c in enumerate(cells) if c == side) for side in "bw")
    return BreakthroughState(black, white, state.current_player())


def test_4x4_is_solved_as_on_openspiels_rules():
    check_against_openspiel(4, 4, 100)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(5, 4), (6, 3)])
def test_other_boards_are_solved_as_on_openspiels_rules(rows, columns):
    check_against_openspiel(rows, columns, 100)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(8, 40))
def test_on_5x5_values_and_distances_follow_from_those_one_move_later(seed, moves):
    game = Breakthrough()
    oracle, state = oracle_for(game), played_position(game, Rng("consistent", seed), moves)
    after = [game.apply(state, action).state for action in game.legal_actions(state)]
    mine = oracle.value(state)
    ends = [oracle.distance(s) for s in after if mine < 0 or game.is_terminal(s) or oracle.value(s) < 0]
    assert (mine > 0) == bool([s for s in after if game.is_terminal(s) or oracle.value(s) < 0])
    assert oracle.distance(state) == 1 + (min(ends) if mine > 0 else max(ends))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(8, 40))
def test_colour_and_side_of_the_board_do_not_matter(seed, moves):
    game = Breakthrough()
    oracle, state = oracle_for(game), played_position(game, Rng("symmetric", seed), moves)

    def image(bits, turn):
        """Turned by 180 degrees, or reflected left to right."""
        cells = [c for c in range(25) if bits >> c & 1]
        return sum(1 << (24 - c if turn else c // 5 * 5 + 4 - c % 5) for c in cells)

    turned = BreakthroughState(image(state.white, True), image(state.black, True), 1 - state.player)
    mirrored = BreakthroughState(image(state.black, False), image(state.white, False), state.player)
    for other in (turned, mirrored):
        assert (oracle.value(other), oracle.distance(other)) == (oracle.value(state), oracle.distance(state))


# -- the board of the paper --------------------------------------------------------------------------------------------
def test_the_5x5_start_is_lost_for_the_side_that_moves_first():
    game = Breakthrough()
    oracle, start = BreakthroughOracle(game), game.initial_states()[0]
    assert oracle.value(start) == -1.0
    assert set(oracle.q_values(start).values()) == {-1.0}
    assert oracle.nodes < 5_000_000


@pytest.mark.slow
def test_the_5x5_game_takes_26_plies():
    game = Breakthrough()
    assert BreakthroughOracle(game).distance(game.initial_states()[0]) == 26


@pytest.mark.slow
def test_later_positions_take_milliseconds():
    game, rng = Breakthrough(), Rng("later")
    oracle = BreakthroughOracle(game)
    oracle.value(game.initial_states()[0])
    states = [played_position(game, rng, rng.below(40)) for _ in range(1000)]
    before = time.process_time()
    for state in states:
        oracle.value(state)
    assert (time.process_time() - before) / len(states) < 0.01  # 0.002 on a quiet machine


# -- what an oracle says -----------------------------------------------------------------------------------------------
def position(game, *rows, player):
    cells = "".join(rows)
    return BreakthroughState(*(sum(1 << i for i, c in enumerate(cells) if c == side) for side in "bw"), player)


def test_moves_that_win_are_best_and_the_others_cost_two():
    game = Breakthrough()
    oracle = BreakthroughOracle(game)
    state = position(game, "....b", ".....", ".w..b", ".....", "...w.", player=0)
    values = {game.action_text(state, action): value for action, value in oracle.q_values(state).items()}
    assert values == {"e5d4": -1, "e5e4": -1, "e3d2": 1, "e3e2": -1}  # on e2, d1 captures it
    assert oracle.value(state) == 1
    for action in game.legal_actions(state):
        assert oracle.regret(state, action) == 1 - values[game.action_text(state, action)]
    assert [game.action_text(state, action) for action in oracle.best_actions(state)] == ["e3d2"]
    assert oracle.distance(state) == 3
    with pytest.raises(ValueError, match="illegal"):
        oracle.regret(state, 0)


def test_in_a_lost_position_every_move_is_best():
    game = Breakthrough()
    oracle = BreakthroughOracle(game)
    state = position(game, "....b", "w....", ".....", ".....", "...w.", player=0)
    assert (oracle.value(state), oracle.distance(state)) == (-1, 2)
    assert oracle.best_actions(state) == game.legal_actions(state)
    assert {oracle.regret(state, action) for action in game.legal_actions(state)} == {0}


def test_the_last_pawn_taken_ends_the_game():
    game = Breakthrough()
    oracle = BreakthroughOracle(game)
    state = position(game, ".....", "b....", ".w...", ".....", ".....", player=1)
    assert (oracle.value(state), oracle.distance(state)) == (1.0, 1)
    over = game.apply(state, oracle.best_actions(state)[0]).state
    assert (oracle.value(over), oracle.distance(over), oracle.q_values(over)) == (0.0, 0, {})
    assert oracle.best_actions(over) == ()


def test_a_board_that_is_too_large_is_refused_by_name_and_its_endgames_are_solved():
    game = Breakthrough(8, 8)
    oracle = BreakthroughOracle(game, node_limit=20_000)
    start = game.initial_states()[0]
    with pytest.raises(NLRLError, match=r"columns=8.*no proof of this position in 20,000 nodes.*25 cells"):
        oracle.value(start)
    assert oracle.distance(start) is None
    assert oracle.nodes <= 40_000
    empty = "." * 8
    race = position(game, *[empty] * 2, "b......w", *[empty] * 2, "b......w", *[empty] * 2, player=0)
    assert oracle.value(race) == 1.0
    assert oracle.distance(race) == 3


def test_a_search_that_was_given_up_goes_on_where_it_was():
    game = Breakthrough(6, 3)
    oracle, start = BreakthroughOracle(game, node_limit=2000), game.initial_states()[0]
    for _ in range(200):
        try:
            value = oracle.value(start)
            break
        except NLRLError:
            continue
    assert value == BreakthroughOracle(game).value(start)


@pytest.mark.parametrize(("size", "most"), [((4, 4), 4), ((5, 5), 2), ((6, 6), 2)])
def test_a_table_with_hardly_any_room_changes_no_answer(size, most):
    """Every position has to make do with the same four slots."""
    game = Breakthrough(*size)
    plain, rng = plain_solver(game), Rng("crowded")
    search = new_search(*size, np.zeros((SLOTS, words_per_slot(*size)), np.uint64))
    for _ in range(40):
        state = random_position(game, rng, most)._replace(player=0)
        value, distance = plain(state)
        pawns = np.uint64(state.black), np.uint64(state.white)
        assert ask(*pawns, UNBOUNDED, True, 10**9, search) == (YES if value > 0 else NO)
        assert ask(*pawns, distance, value > 0, 10**9, search) == YES
        assert ask(*pawns, distance - 2, value > 0, 10**9, search) == NO


# -- files -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def solved(tmp_path):
    """A saved table of a small board, and the oracle that it came from."""
    game = Breakthrough(6, 3)
    oracle = BreakthroughOracle(game)
    oracle.distance(game.initial_states()[0])
    return oracle.save(tmp_path / "new" / "solved.table"), oracle


def test_a_saved_table_answers_without_search(solved):
    path, oracle = solved
    start = oracle.game.initial_states()[0]
    again = BreakthroughOracle(oracle.game, table=path)
    assert (again.value(start), again.distance(start)) == (oracle.value(start), oracle.distance(start))
    assert again.nodes == 0
    assert oracle.nodes > 1000
    assert [file.name for file in path.parent.iterdir()] == ["solved.table"]


def test_what_is_found_later_does_not_change_the_file(solved):
    path, oracle = solved
    before = path.read_bytes()
    again, rng = BreakthroughOracle(oracle.game, table=path), Rng("more")
    for _ in range(50):
        again.distance(random_position(oracle.game, rng))
    assert again.nodes > 0
    assert path.read_bytes() == before


def test_a_full_size_table_loads_in_under_a_second(tmp_path):
    path, table = tmp_path / "big.table", np.arange(1 << 22, dtype=np.uint64).reshape(-1, 1)
    save_table(path, table, 5, 5)
    before = time.perf_counter()
    loaded = load_table(path, 5, 5)
    assert time.perf_counter() - before < 1
    assert np.array_equal(loaded, table)


def test_the_cache_folder_is_read_if_it_has_a_table_and_written_only_on_request(tmp_path):
    game = Breakthrough(5, 3)
    oracle, start = BreakthroughOracle(game), game.initial_states()[0]
    oracle.value(start)
    assert not default_path(5, 3).exists()
    assert oracle.save() == default_path(5, 3) == tmp_path / "cache" / "breakthrough-5x3.table"
    again = BreakthroughOracle(game)
    again.value(start)
    assert (again.nodes, oracle.nodes > 0) == (0, True)


def test_a_damaged_table_in_the_cache_folder_is_reported_and_not_used(solved):
    path, oracle = solved
    kept = default_path(6, 3)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(path.read_bytes()[:-8])
    with pytest.warns(UserWarning, match=r"breakthrough-6x3\.table.*damaged"):
        again = BreakthroughOracle(oracle.game)
    start = oracle.game.initial_states()[0]
    assert again.value(start) == oracle.value(start)


def flipped(data):
    return data[:600] + bytes([data[600] ^ 1]) + data[601:]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda data: data[:-8], "damaged: .* bytes, not"),
        (lambda data: data + b"more", "damaged: .* bytes, not"),
        (flipped, "checksum"),
        (lambda data: data[:100], "not a file of the format"),
        (lambda data: b"", "not a file of the format"),
        (lambda data: b"\x93NUMPY" + data, "not a file of the format"),
        (lambda data: data.replace(b"version 1", b"version 0", 1), "not a file of the format"),
        (lambda data: data.replace(b'"rows": 6', b'"rows": 5', 1), "another board: rows is 5, not 6"),
        (lambda data: data.replace(b'"slots": ', b'"slots":-', 1), "cannot have -"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(solved, damage, complaint):
    path, oracle = solved
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(NLRLError, match=complaint) as refusal:
        BreakthroughOracle(oracle.game, table=path)
    assert str(path) in str(refusal.value)


def test_a_table_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(NLRLError, match=r"none\.table: the table cannot be read"):
        BreakthroughOracle(Breakthrough(), table=tmp_path / "none.table")


def test_a_save_that_fails_leaves_the_old_file_and_no_other(solved, monkeypatch):
    path, oracle = solved
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NLRLError, match="No space left"):
        oracle.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["solved.table"]


# -- compiled code -----------------------------------------------------------------------------------------------------
def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_compiled_code_works_when_it_comes_from_the_disk():
    code = (
        "from nlrl.envs.breakthrough import Breakthrough\n"
        "from nlrl.envs.breakthrough.oracle import BreakthroughOracle\n"
        "game = Breakthrough(4, 4)\n"
        "print(BreakthroughOracle(game).distance(game.initial_states()[0]))"
    )
    BreakthroughOracle(Breakthrough(4, 4)).distance(Breakthrough(4, 4).initial_states()[0])  # is on the disk now
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "11\n"), done.stderr


def test_functions_compile_where_no_folder_can_be_written(tmp_path):
    code = "from nlrl.envs.jit import compiled\nprint(compiled(lambda x: x + 1)(1))"
    done = run_python(code, NUMBA_CACHE_LOCATOR_CLASSES="ZipCacheLocator")
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_a_good_or_missing_table_is_no_reason_for_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BreakthroughOracle(Breakthrough(4, 4)).save()
        BreakthroughOracle(Breakthrough(4, 4))
