"""Tic-Tac-Toe: rules, text and the questions about lines that language asks."""

import xml.etree.ElementTree as ET
from contextlib import suppress
from itertools import product

import pytest

from nlrl.envs import svg
from nlrl.envs.tictactoe import (
    LINES,
    SYMMETRIES,
    TicTacToe,
    TicTacToeState,
    line_text,
    open_lines,
    to_move,
    winning_cells,
    won_lines,
)

GAME = TicTacToe()
START = TicTacToeState()
BOARD = """\
 1 | 2 | O
---+---+---
 O | 5 | 6
---+---+---
 O | X | X"""


def play(*cells: int) -> TicTacToeState:
    state = START
    for cell in cells:
        state = GAME.apply(state, cell).state
    return state


def all_states() -> set[TicTacToeState]:
    seen, waiting = set(), [START]
    while waiting:
        state = waiting.pop()
        if state not in seen:
            seen.add(state)
            waiting += [GAME.apply(state, action).state for action in GAME.legal_actions(state)]
    return seen


def test_the_board_reads_as_documented():
    state = GAME.parse_text(BOARD)
    assert state == TicTacToeState(o=1 << 2 | 1 << 3 | 1 << 6, x=1 << 7 | 1 << 8)
    assert GAME.to_text(state) == BOARD
    assert GAME.to_text(START).splitlines()[::2] == [" 1 | 2 | 3", " 4 | 5 | 6", " 7 | 8 | 9"]


def test_every_reachable_board_and_no_other_can_be_read():
    states = all_states()
    assert len(states) == 5478
    assert sum(not GAME.is_terminal(state) for state in states) == 4520
    assert sum(len(GAME.legal_actions(state)) for state in states) == 16167
    readable = set()
    for o, x in product(range(512), range(512)):
        if not o & x:
            with suppress(ValueError):
                readable.add(GAME.parse_text(GAME.to_text(TicTacToeState(o, x))))
    assert readable == states


def test_number_of_games_by_length():
    """Nodes of the game tree at each depth; the last sums are the 255,168 games of Tic-Tac-Toe."""
    layer, counts, finished = {START: 1}, [], []
    for _ in range(10):
        counts.append(sum(layer.values()))
        finished.append(sum(n for state, n in layer.items() if GAME.is_terminal(state)))
        below: dict[TicTacToeState, int] = {}
        for state, n in layer.items():
            for action in GAME.legal_actions(state):
                successor = GAME.apply(state, action).state
                below[successor] = below.get(successor, 0) + n
        layer = below
    assert counts == [1, 9, 72, 504, 3024, 15120, 54720, 148176, 200448, 127872]
    assert finished == [0, 0, 0, 0, 0, 1440, 5328, 47952, 72576, 127872]


def test_first_mover_is_o_and_players_alternate():
    assert [GAME.current_player(play(*range(n))) for n in range(6)] == [0, 1, 0, 1, 0, 1]
    assert GAME.player_names == ("O", "X")
    assert GAME.apply(START, 4).state.o == 1 << 4


@pytest.mark.parametrize(
    ("cells", "rewards"),
    [((0, 3, 1, 4, 2), (1, -1)), ((0, 3, 1, 4, 8, 5), (-1, 1)), ((0, 1, 2, 4, 3, 5, 7, 6, 8), (0, 0))],
    ids=["O wins", "X wins", "draw"],
)
def test_games_end_with_a_line_or_a_full_board(cells, rewards):
    before = play(*cells[:-1])
    assert not GAME.is_terminal(before)
    assert GAME.returns(before) == (0, 0)
    step = GAME.apply(before, cells[-1])
    assert step.rewards == rewards == GAME.returns(step.state)
    assert GAME.is_terminal(step.state)
    assert GAME.legal_actions(step.state) == ()
    assert GAME.current_player(step.state) == -1


@pytest.mark.parametrize("action", [-1, 0, 9, 100])
def test_illegal_actions_are_refused_by_name(action):
    with pytest.raises(ValueError, match=rf"action {action} .*TicTacToeState"):
        GAME.apply(play(0), action)


def test_no_move_after_the_end():
    with pytest.raises(ValueError, match="illegal"):
        GAME.apply(play(0, 3, 1, 4, 2), 8)


@pytest.mark.parametrize("text", ["12", "0", "1", "", " 2", "2.", "²", "-1", "٣"])
def test_only_exact_legal_moves_are_read(text):
    assert GAME.parse_action(play(0), text) is None


def test_legal_moves_are_read():
    assert [GAME.parse_action(play(0), str(n)) for n in range(2, 10)] == list(range(1, 9))
    assert GAME.action_text(START, 8) == "9"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" 4 | 5 | 6", " 4 | 5 | 7", "line 3: .*'6', not '7'"),
        (" 4 | 5 | 6", " 4 | o | 6", "line 3: .*'5', not 'o'"),
        (" 7 | 8 | 9", " 7 | 8", "line 5: expected 3 cells"),
        ("---+---+---", "-----------", "line 2: expected '---"),
        (" 4 | 5 | 6\n", "", "5 lines"),
        ("1", "X", "0 O and 1 X"),
        ("1 | 2", "O | O", "2 O and 0 X"),
    ],
)
def test_what_is_wrong_with_a_board_is_said_with_its_line(old, new, message):
    with pytest.raises(ValueError, match=message):
        GAME.parse_text(GAME.to_text(START).replace(old, new))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (TicTacToeState(0b000000111, 0b000111000), "both O and X have a line"),
        (TicTacToeState(0b000000111, 0b100011000), "O has a line, yet a move was made after it"),
        (TicTacToeState(0b110011000, 0b000000111), "X has a line, yet a move was made after it"),
    ],
)
def test_boards_no_game_passes_through_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        GAME.parse_text(GAME.to_text(state))


def test_surrounding_space_does_not_matter_to_reading():
    assert GAME.parse_text("\n".join(line.strip() + "  " for line in BOARD.splitlines()) + "\n") == GAME.parse_text(
        BOARD
    )


def test_lines_in_words():
    assert [line_text(line) for line in LINES] == [
        "1-2-3",
        "4-5-6",
        "7-8-9",
        "1-4-7",
        "2-5-8",
        "3-6-9",
        "1-5-9",
        "3-5-7",
    ]


def test_questions_about_lines_against_their_definitions():
    for state in all_states():
        pieces = [{c for c in range(9) if state[player] >> c & 1} for player in (0, 1)]
        free = set(range(9)) - pieces[0] - pieces[1]
        assert to_move(state) == len(pieces[0]) - len(pieces[1])
        for player in (0, 1):
            own, other = pieces[player], pieces[1 - player]
            completing = {c for line in LINES for c in line if c in free and set(line) - {c} <= own}
            assert winning_cells(state, player) == tuple(sorted(completing))
            assert open_lines(state, player) == tuple(line for line in LINES if not set(line) & other)
            assert won_lines(state, player) == tuple(line for line in LINES if set(line) <= own)


def test_symmetries_are_the_eight_of_the_square():
    assert len(set(SYMMETRIES)) == 8
    lines = {frozenset(line) for line in LINES}
    for cells in SYMMETRIES:
        assert {frozenset(cells[c] for c in line) for line in LINES} == lines
    state = play(0, 1)
    images = GAME.symmetries(state)
    assert images[0] == state
    assert len(set(images)) == 8
    for cells, image in zip(SYMMETRIES, images, strict=True):
        assert image == TicTacToeState(1 << cells[0], 1 << cells[1])


def contrast(colour: str, background: float) -> float:
    """WCAG contrast ratio against a grey of relative luminance `background`."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return (max(luminance, background) + 0.05) / (min(luminance, background) + 0.05)


@pytest.mark.parametrize("colour", [svg.FIRST, svg.SECOND, svg.GRID])
def test_pieces_and_letters_show_on_light_and_dark_pages(colour):
    assert contrast(colour, 1.0) >= 3
    assert contrast(colour, 0.0) >= 3


def test_picture_shows_pieces_candidates_marks_and_last_move():
    state = play(4, 0)
    root = ET.fromstring(GAME.render_svg(state, last_move=0, arrows={2: 0.75, 5: 0.25}, marks={2: "a < b\x00"}))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"75%", "25%", "a < b", "9"} <= set(texts)
    assert "5" not in texts  # taken cells show no number
    discs = [element for element in root.iter("{http://www.w3.org/2000/svg}circle") if "fill-opacity" in element.attrib]
    radii = [float(disc.attrib["r"]) for disc in discs]
    assert radii[0] ** 2 / radii[1] ** 2 == pytest.approx(3, rel=0.01)  # area in proportion to weight
    assert svg.LAST_MOVE in GAME.render_svg(state, last_move=0)
    assert svg.LAST_MOVE not in GAME.render_svg(state)


def test_picture_refuses_cells_off_the_board():
    with pytest.raises(ValueError, match="cell 9 is not on the board"):
        GAME.render_svg(START, marks={9: "?"})
