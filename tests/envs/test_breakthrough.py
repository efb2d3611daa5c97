"""Breakthrough: rules and text."""

import random
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrl.envs import make
from nlrl.envs.breakthrough import Breakthrough, BreakthroughState
from nlrl.envs.testing import check_game
from nlrl.envs.tictactoe import TicTacToeState

GAME = Breakthrough()
SMALL = Breakthrough(3, 3)
(START,) = GAME.initial_states()
BOARD = """\
5  . . . . .
4  . b b . .
3  w . w . .
2  . . . b .
1  . . w . .
   a b c d e
To move: black
Black: b4 c4 d2
White: a3 c3 c1"""
WON = """\
3  . w .
2  b . .
1  . . .
   a b c
Winner: white
Black: a2
White: b3"""
SIZES = [(rows, columns) for rows in range(3, 9) for columns in range(3, 9)]


def play(game: Breakthrough, moves: str) -> BreakthroughState:
    (state,) = game.initial_states()
    for move in moves.split():
        action = game.parse_action(state, move)
        assert action is not None, move
        state = game.apply(state, action).state
    return state


@st.composite
def positions(draw: st.DrawFn) -> tuple[Breakthrough, BreakthroughState]:
    """A game of any size and a position that random play reaches in it, often its last."""
    rows, columns = draw(st.sampled_from(SIZES))
    game = Breakthrough(rows, columns, draw(st.integers(1, rows // 2)))
    rng, state = random.Random(draw(st.integers(0, 2**32))), game.initial_states()[0]
    for _ in range(draw(st.integers(0, 80))):
        if game.is_terminal(state):
            break
        state = game.apply(state, rng.choice(game.legal_actions(state))).state
    return game, state


# -- the game ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "params", [{}, {"rows": 3, "columns": 3}, {"rows": 4, "columns": 7}, {"rows": 8, "columns": 4}]
)
def test_keeps_every_promise_of_a_game(params):
    check_game(lambda: make("breakthrough", **params), games=8)


def test_the_start_is_two_rows_of_pawns_a_side_and_black_moves_first():
    assert GAME.to_text(START) == (
        "5  b b b b b\n4  b b b b b\n3  . . . . .\n2  w w w w w\n1  w w w w w\n   a b c d e\nTo move: black\n"
        "Black: a5 b5 c5 d5 e5 a4 b4 c4 d4 e4\nWhite: a2 b2 c2 d2 e2 a1 b1 c1 d1 e1"
    )
    assert BreakthroughState(black=0b1111111111, white=0b1111111111 << 15, player=0) == START
    assert (GAME.player_names[0], GAME.num_actions, GAME.spec) == (
        "black",
        75,
        "breakthrough(columns=5,pawn_rows=2,rows=5)",
    )


def test_one_row_of_pawns_on_small_boards_unless_asked_otherwise():
    assert [Breakthrough(rows, 3).pawn_rows for rows in range(3, 9)] == [1, 1, 2, 2, 2, 2]
    assert Breakthrough(4, 3, pawn_rows=2).initial_states()[0] == BreakthroughState(0b111111, 0b111111 << 6, 0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rows": 2}, "rows must be from 3 to 8, not 2"),
        ({"rows": 9}, "rows must be from 3 to 8, not 9"),
        ({"columns": 2}, "columns must be from 3 to 8, not 2"),
        ({"columns": 27}, "columns must be from 3 to 8, not 27"),
        ({"rows": 5, "pawn_rows": 3}, "pawn_rows must be from 1 to 2 on 5 rows, not 3"),
        ({"pawn_rows": 0}, "pawn_rows must be from 1 to 2 on 5 rows, not 0"),
        ({"rows": "5"}, "rows cannot be '5'"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(params, message):
    with pytest.raises(ValueError, match=message):
        make("breakthrough", **params)


def test_pawns_move_ahead_and_capture_only_diagonally():
    state = GAME.parse_text(BOARD)
    moves = {GAME.action_text(state, action) for action in GAME.legal_actions(state)}
    # b4 and c4 have white ahead on their diagonals and c4 straight ahead, where it is in the way.
    assert moves == {"b4a3*", "b4b3", "b4c3*", "c4b3", "c4d3", "d2c1*", "d2d1", "d2e1"}
    after = GAME.apply(state, GAME.parse_action(state, "b4c3*")).state
    assert GAME.to_text(after).splitlines()[1:3] == ["4  . . b . .", "3  w . b . ."]
    assert GAME.to_text(after).splitlines()[6:] == ["To move: white", "Black: c4 c3 d2", "White: a3 c1"]


def test_actions_are_the_cell_moved_from_and_a_direction():
    state = GAME.parse_text(BOARD)
    named = {GAME.action_text(state, action): action for action in GAME.legal_actions(state)}
    assert [named[move] for move in ("b4a3*", "b4b3", "b4c3*", "d2e1")] == [18, 19, 20, 56]
    white = state._replace(player=1)
    assert GAME.parse_action(white, "c3b4*") == 3 * 12 + 0
    assert GAME.parse_action(white, "a3b4*") == 3 * 10 + 2


def test_reaching_the_far_row_wins():
    for moves, winner in (
        ("a3a2 b1a2* b3b2 a2a3", 1),
        ("a3b2 c1b2* b3a2 b2a3", 1),
        ("a3a2 a1b2 b3c2 b1c2* c3b2* c2b3", 1),
    ):
        state = play(SMALL, moves)
        assert SMALL.is_terminal(state)
        assert SMALL.returns(state) == ((1, -1), (-1, 1))[winner]
        assert (SMALL.legal_actions(state), SMALL.current_player(state)) == ((), -1)


def test_capturing_the_last_pawn_wins():
    game = Breakthrough(4, 3)
    state = game.parse_text("4  . . .\n3  . b .\n2  w . .\n1  . . .\n a b c\nTo move: black\nBlack: b3\nWhite: a2")
    step = game.apply(state, game.parse_action(state, "b3a2*"))
    assert step.rewards == (1, -1) == game.returns(step.state)
    assert game.to_text(step.state).splitlines()[-3:] == ["Winner: black", "Black: a2", "White: none"]
    assert game.parse_text(game.to_text(step.state)) == step.state


def test_no_move_after_the_end():
    state = SMALL.parse_text(WON)
    assert SMALL.parse_action(state, "a2a1") is None
    with pytest.raises(ValueError, match=r"action 10 is illegal in BreakthroughState.*legal: \(\)"):
        SMALL.apply(state, 10)


@pytest.mark.parametrize("action", [-1, 0, 15, 1, 61, 75, 10**9])
def test_illegal_actions_are_refused_with_what_is_legal(action):
    with pytest.raises(ValueError, match=rf"action {action} is illegal in BreakthroughState.*legal: \(16, 17,"):
        GAME.apply(START, action)


@pytest.mark.parametrize("action", [-1, 15, 75, None])
def test_actions_off_the_board_have_no_text(action):
    with pytest.raises(ValueError, match=f"action {action} is no move of black"):
        GAME.action_text(START, action)


@pytest.mark.parametrize(
    "text", ["a4a3*", "A4A3", "a4 a3", "a4a3 ", "a4", "", "a5a4", "a2a3", "a4c3", "16", "a4b3**", "\u0430 4a3"]
)
def test_only_exact_legal_moves_are_read(text):
    assert GAME.parse_action(START, text) is None


def test_captures_are_read_with_their_star_only():
    state = GAME.parse_text(BOARD)
    assert GAME.parse_action(state, "b4a3") is None
    assert GAME.parse_action(state, "b4b3*") is None
    assert GAME.parse_action(state, "b4a3*") == 18


# -- properties --------------------------------------------------------------------------------------------------------
@given(positions())
def test_text_is_lossless(case):
    game, state = case
    assert game.parse_text(game.to_text(state)) == state


@given(positions())
def test_moves_by_the_rules_one_cell_at_a_time(case):
    """The bitboards against the rules as people say them."""
    game, state = case
    expected, pawns = [], [{divmod(cell, game.columns) for cell in range(64) if side >> cell & 1} for side in state[:2]]
    won = any(row == game.rows - 1 for row, _ in pawns[0]) or any(row == 0 for row, _ in pawns[1]) or not all(pawns)
    for row, column in sorted(pawns[state.player]):
        for direction in range(3):
            target = row + (-1 if state.player else 1), column + direction - 1
            free = target not in pawns[state.player] and (direction != 1 or target not in pawns[1 - state.player])
            if not won and free and 0 <= target[1] < game.columns:
                expected.append(3 * (row * game.columns + column) + direction)
    assert game.legal_actions(state) == tuple(expected)
    assert game.is_terminal(state) is won
    assert won or expected  # there is always a move


@given(positions())
def test_the_mirror_image_of_a_move_is_a_move_of_the_mirror_image(case):
    game, state = case
    image = game.symmetries(state)[1]
    assert game.symmetries(image) == (image, state)
    assert len(game.legal_actions(image)) == len(game.legal_actions(state))
    for action in game.legal_actions(state):
        cell, direction = divmod(action, 3)
        row, column = divmod(cell, game.columns)
        mirrored = 3 * (row * game.columns + game.columns - 1 - column) + 2 - direction
        step, other = game.apply(state, action), game.apply(image, mirrored)
        assert (game.symmetries(step.state)[1], step.rewards) == (other.state, other.rewards)


@given(positions())
def test_a_move_takes_one_pawn_ahead_and_at_most_one_enemy(case):
    game, state = case
    for action in game.legal_actions(state):
        after = game.apply(state, action).state
        own, enemy = state.player, 1 - state.player
        assert after.player == enemy
        assert after[own].bit_count() == state[own].bit_count()
        captured = state[enemy].bit_count() - after[enemy].bit_count()
        assert captured == game.action_text(state, action).endswith("*")
        assert after[enemy] & ~state[enemy] == 0
        assert not after[0] & after[1]


@given(positions())
def test_moves_read_as_they_are_written(case):
    game, state = case
    moves = {action: game.action_text(state, action) for action in game.legal_actions(state)}
    assert game.legal_moves(state) == moves
    assert tuple(game.legal_moves(state)) == tuple(moves)
    assert {text: game.parse_action(state, text) for text in moves.values()} == {t: a for a, t in moves.items()}


@given(positions())
def test_the_guess_at_a_value_changes_sides_with_the_board(case):
    """Turned upside down with colours swapped, a position is the same for its mover."""
    game, state = case
    cells = game.rows * game.columns
    black, white = (int(f"{side:0{cells}b}"[::-1], 2) for side in state[:2])
    turned = BreakthroughState(white, black, 1 - state.player)
    assert game.heuristic(turned) == pytest.approx(game.heuristic(state))
    assert abs(game.heuristic(state)) < 1 or game.is_terminal(state)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_games_end_within_the_longest_length(rows, columns):
    """Play that avoids captures and wins while it can comes closest to it."""
    game = Breakthrough(rows, columns)
    for seed in range(3):
        rng, state, length = random.Random(seed), game.initial_states()[0], 0
        while legal := game.legal_actions(state):
            steps = [game.apply(state, action) for action in legal]
            least = min((any(s.rewards), -sum(p.bit_count() for p in s.state[:2])) for s in steps)
            quiet = [s for s in steps if (any(s.rewards), -sum(p.bit_count() for p in s.state[:2])) == least]
            state, length = rng.choice(quiet).state, length + 1
        assert length <= game.max_length


@pytest.mark.parametrize(("rows", "columns", "moves"), [(3, 3, 7), (3, 4, 9), (4, 3, 13)])
def test_the_longest_game_is_as_long_as_promised(rows, columns, moves):
    """By trying every game."""
    game = Breakthrough(rows, columns)
    assert longest(game) == moves == game.max_length


def longest(game: Breakthrough) -> int:
    @cache
    def moves_left(state: BreakthroughState) -> int:
        return max((1 + moves_left(game.apply(state, a).state) for a in game.legal_actions(state)), default=0)

    return moves_left(game.initial_states()[0])


# -- bad input ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("4  . b b . .", "4  . b b .", "line 2: expected 5 cells after the rank, not 4"),
        ("4  . b b . .", "3  . b b . .", "line 2: expected rank 4 first, not '3'"),
        ("4  . b b . .", ". b b . .", "line 2: expected rank 4 first, not '.'"),
        ("4  . b b . .", "", "line 2: expected rank 4 first, not ''"),
        ("4  . b b . .", "4  . b x . .", "line 2: c4 must be 'b', 'w' or '.', not 'x'"),
        ("4  . b b . .", "4  . b B . .", "line 2: c4 must be 'b', 'w' or '.', not 'B'"),
        ("4  . b b . .\n", "", r"a board has 9 lines \(5 rows, .*\), not 8"),
        ("a b c d e", "a b c d f", "line 6: expected 'a b c d e'"),
        ("To move: black", "To move: red", "line 7: expected 'To move: black' or 'To move: white', not 'To move: red'"),
        ("To move: black", "Winner: black", "line 7: expected 'To move: black' or 'To move: white'"),
        ("Black: b4", "Black: b5", "line 8: the board shows no pawn of black on 'b5'"),
        ("Black: b4", "Black: z9", "line 8: the board shows no pawn of black on 'z9'"),
        ("Black: b4", "Black:", "line 8: black's pawn on b4 is not listed"),
        ("Black: b4", "Black: b4 b4", "line 8: b4 is listed twice"),
        ("White: a3 c3 c1", "White: none", "line 9: the board shows no pawn of white on 'none'"),
        ("White: a3 c3 c1", "White:", "line 9: expected pawns of white, or 'none'"),
        ("White: a3", "white: a3", "line 9: expected 'White:' and its pawns"),
        ("5  . . . . .", "5  . w . . .", "line 7, as white has won: expected 'Winner: white', not 'To move: black'"),
        ("1  . . w . .", "1  . . b . .", "line 7, as black has won: expected 'Winner: black'"),
        ("5  . . . . .", "5  w . . w .", "impossible board: white is on a5 and d5, but the first pawn"),
        ("5  . . . . .", "5  b b b b b", "line 8: black's pawn on a5 is not listed"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_board_is_said_with_its_line(old, new, message):
    assert old in BOARD
    with pytest.raises(ValueError, match=message):
        GAME.parse_text(BOARD.replace(old, new))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("w.... ..... ..... ..... b....", "both sides have won: black is on a1, white on a5"),
        ("..... ..... ..... ..... .....", "neither side has a pawn"),
        ("bbbbb bbbbb b.... ..... w....", "black has 11 pawns, more than the 10 it starts with"),
        ("b.... wwwww ..w.. ..... wwwww", "white has 11 pawns, more than the 10 it starts with"),
    ],
)
def test_boards_that_no_game_shows_are_refused(cells, message):
    rows = [f"{rank} {' '.join(row)}" for rank, row in zip("54321", cells.split(), strict=True)]
    with pytest.raises(ValueError, match=f"impossible board: {message}"):
        GAME.parse_text("\n".join([*rows, "a b c d e", "To move: black", "Black: none", "White: none"]))


def test_spaces_and_the_order_of_lists_do_not_matter_to_reading():
    loose = "\n" + BOARD.replace("  ", " ").replace("b4 c4 d2", " d2 b4 c4 ").replace(" . .", "   .  .  ") + "\n\n"
    assert GAME.parse_text(loose) == GAME.parse_text(BOARD)


METHODS = {
    "current_player": GAME.current_player,
    "legal_actions": GAME.legal_actions,
    "legal_moves": GAME.legal_moves,
    "is_terminal": GAME.is_terminal,
    "returns": GAME.returns,
    "apply": lambda state: GAME.apply(state, 16),
    "transitions": lambda state: GAME.transitions(state, 16),
    "heuristic": GAME.heuristic,
    "to_text": GAME.to_text,
    "parse_action": lambda state: GAME.parse_action(state, "a4a3"),
    "render_svg": GAME.render_svg,
    "symmetries": GAME.symmetries,
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize(
    ("state", "message"),
    [
        (TicTacToeState(1, 2), "it is a TicTacToeState"),
        ((1023, 1023 << 15, 0), "it is a tuple"),
        (None, "it is a NoneType"),
        (Breakthrough(6, 6).initial_states()[0], "there are pawns outside 5 rows and 5 columns"),
        (BreakthroughState(1, 1 << 30, 0), "there are pawns outside 5 rows and 5 columns"),
        (BreakthroughState(-1, 1, 0), "there are pawns outside 5 rows and 5 columns"),
        (BreakthroughState(0, 0, 0), "neither side has a pawn"),
        (START._replace(player=2), "player must be 0 .black. or 1 .white., not 2"),
        (START._replace(player=-1), "player must be"),
        (BreakthroughState(1 << 22, 1 << 12, 0), "black has won, so the player to move is the other one"),
    ],
)
def test_states_of_other_games_are_refused_everywhere(method, state, message):
    with pytest.raises(ValueError, match=f"is not a state of .*: {message}"):
        method(state)


def test_text_of_a_move_in_a_state_of_another_game_is_refused():
    with pytest.raises(ValueError, match="is not a state of breakthrough"):
        GAME.action_text(TicTacToeState(), 16)
