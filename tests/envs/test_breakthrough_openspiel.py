"""Our Breakthrough and OpenSpiel's must agree, on every board that both can set up.

OpenSpiel numbers moves otherwise but writes them alike, so moves are compared by their text. Its boards have one row of
pawns below six rows, two from there on.
"""

import random

import pytest

from nlrl.envs.breakthrough import Breakthrough, BreakthroughState

pyspiel = pytest.importorskip("pyspiel")

SIZES = [(3, 3), (4, 5), (5, 5), (5, 3), (6, 6), (7, 4), (8, 8)]


def both(rows: int, columns: int):
    ours = Breakthrough(rows, columns, pawn_rows=2 if rows >= 6 else 1)
    return ours, pyspiel.load_game(f"breakthrough(rows={rows},columns={columns})")


def board_of(game: Breakthrough, state: BreakthroughState) -> str:
    """In OpenSpiel's form: rows of rank and cells, then the columns' letters."""
    rows = game.to_text(state).splitlines()[: game.rows]
    return "\n".join(row.replace(" ", "") for row in rows) + "\n " + "abcdefgh"[: game.columns] + "\n"


def assert_agree(game: Breakthrough, state: BreakthroughState, peer) -> None:
    assert board_of(game, state) == str(peer)
    assert game.is_terminal(state) == peer.is_terminal()
    assert list(game.returns(state)) == peer.returns()
    if not peer.is_terminal():
        assert game.current_player(state) == peer.current_player()
    theirs = sorted(peer.action_to_string(action) for action in peer.legal_actions())
    assert sorted(game.action_text(state, action) for action in game.legal_actions(state)) == theirs


def compare_random_games(rows: int, columns: int, positions: int, seed: int) -> None:
    """Random games until `positions` are compared; each whole, so that ends are among them."""
    (game, theirs), rng, compared = both(rows, columns), random.Random(seed), 0
    while compared < positions:
        state, peer = game.initial_states()[0], theirs.new_initial_state()
        assert_agree(game, state, peer)
        while not peer.is_terminal():
            action = rng.choice(peer.legal_actions())
            ours = game.parse_action(state, peer.action_to_string(action))
            assert ours is not None
            state = game.apply(state, ours).state
            peer.apply_action(action)
            assert_agree(game, state, peer)
            compared += 1


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_random_games_agree(rows, columns):
    compare_random_games(rows, columns, positions=1000, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (8, 8)])
def test_a_hundred_thousand_positions_agree(rows, columns):
    compare_random_games(rows, columns, positions=100_000, seed=2)


# -- perft: how many games there are of each length --------------------------------------------------------------------
def perft(rows: int, columns: int, depth: int) -> list[int]:
    """The counts for 1 to `depth` moves, while both rules are held to each other in every position on the way.

    Positions that arise in several ways are looked at once, with the number of ways.
    """
    game, theirs = both(rows, columns)
    layer, counts = {game.initial_states()[0]: (theirs.new_initial_state(), 1)}, []
    while len(counts) < depth:
        below, count = {}, 0
        for state, (peer, ways) in layer.items():
            moves = {peer.action_to_string(action): action for action in peer.legal_actions()}
            assert {
                game.action_text(state, action): action for action in game.legal_actions(state)
            }.keys() == moves.keys()
            count += ways * len(moves)
            if len(counts) < depth - 1:  # of the last moves only the number matters
                add_positions(game, state, peer, ways, below)
        counts.append(count)
        layer = below
    return counts


def add_positions(game: Breakthrough, state: BreakthroughState, peer, ways: int, below: dict) -> None:
    for action in peer.legal_actions():
        ours = game.parse_action(state, peer.action_to_string(action))
        assert ours is not None
        after, child = game.apply(state, ours).state, peer.child(action)
        known, others = below.get(after, (child, 0))
        assert str(known) == str(child)
        if not others:
            assert board_of(game, after) == str(child)
        below[after] = known, others + ways


@pytest.mark.parametrize(
    ("rows", "columns", "games"),
    [
        (3, 3, [7, 42, 174, 466, 930, 972, 788]),
        (5, 5, [13, 169, 1911, 21514, 232478]),
        (6, 6, [16, 256, 4308, 71478]),
        (8, 8, [22, 484, 11132, 256036]),
    ],
)
def test_perft(rows, columns, games):
    assert perft(rows, columns, len(games)) == games


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "columns", "games"),
    [
        (6, 6, [16, 256, 4308, 71478, 1248290, 21470998]),
        (8, 8, [22, 484, 11132, 256036, 6182818, 149264638]),
    ],
)
def test_perft_to_six_moves(rows, columns, games):
    assert perft(rows, columns, len(games)) == games
