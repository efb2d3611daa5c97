"""Draws a Breakthrough board. Apart from the rules, so that play never pays for pictures.

Pawns are triangles that point where they go: black's are filled and point down, white's are outlined and point up. The
cells of the last move are framed.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from nlrl.envs import svg
from nlrl.envs.breakthrough.board import BLACK, LETTERS, NAMES, WHITE, Board, BreakthroughState

_CELL = 76
_MARGIN = 28
_LEGEND = 30
"""Height of the line below the board that says whose pawns are whose."""
_PAWN = 0.3 * _CELL
_THIN, _THICK = 3.0, 11.0
"""Shafts of arrows of weight 0 and 1."""
_HEAD = 0.2 * _CELL
_COLOURS = (svg.FIRST, svg.SECOND)
Point = tuple[float, float]


def draw(
    board: Board, state: BreakthroughState, last_move: int | None, arrows: Mapping[int, float], marks: Mapping[int, str]
) -> str:
    """The board as SVG. `arrows`: action -> weight in [0, 1] (clamped); `marks`: action -> short label.

    Raises:
        ValueError: an action that is no move on this board.
    """
    ways = {action: _way(board, state.player, action) for action in sorted({*arrows, *marks})}
    height = board.rows * _CELL + 2 * _MARGIN
    root = svg.canvas(board.columns * _CELL + 2 * _MARGIN, height + _LEGEND, _title(board, state))
    if last_move is not None:
        for centre in _way(board, 1 - state.player, last_move):
            _frame(root, centre)
    _grid(root, board)
    for cell in range(board.cells):
        for player in (BLACK, WHITE):
            if state[player] >> cell & 1:
                _pawn(root, _centre(board, cell), player)
    _legend(root, height + 0.3 * _LEGEND)
    for action, weight in sorted(arrows.items()):
        _arrow(root, *ways[action], max(0.0, min(1.0, weight)))
    for action, weight in sorted(arrows.items()):  # last, so that no arrow covers a number
        _percentage(root, *ways[action], f"{weight:.0%}")
    for action, text in sorted(marks.items()):
        _mark(root, ways[action][1], action, state.player, text)
    return svg.to_string(root)


def _way(board: Board, player: int, action: int) -> tuple[Point, Point]:
    """The centres of the cells moved from and to."""
    if action not in board.moves[player]:
        size = f"{board.rows} rows and {board.columns} columns"
        raise ValueError(f"action {action!r} is no move of {NAMES[player]} on {size}")
    source, target, _ = board.moves[player][action]
    return _centre(board, source.bit_length() - 1), _centre(board, target.bit_length() - 1)


def _title(board: Board, state: BreakthroughState) -> str:
    winner = board.winner(state.black, state.white)
    return (
        f"Breakthrough: {NAMES[state.player]} to move" if winner is None else f"Breakthrough: {NAMES[winner]} has won"
    )


def _centre(board: Board, cell: int) -> Point:
    row, column = divmod(cell, board.columns)
    return _MARGIN + (column + 0.5) * _CELL, _MARGIN + (row + 0.5) * _CELL


def _frame(root: ET.Element, centre: Point) -> None:
    inset = 0.5 * _CELL - 4
    box = {"x": centre[0] - inset, "y": centre[1] - inset, "width": 2 * inset, "height": 2 * inset, "rx": 6}
    svg.shape(root, "rect", **box, fill=svg.LAST_MOVE, fill_opacity=0.25, stroke=svg.LAST_MOVE, stroke_width=2)


def _grid(root: ET.Element, board: Board) -> None:
    """Lines in one shape, ranks on the left, the columns' letters below."""
    width, height = board.columns * _CELL, board.rows * _CELL
    across = [f"M{_MARGIN} {_MARGIN + row * _CELL}h{width}" for row in range(board.rows + 1)]
    down = [f"M{_MARGIN + column * _CELL} {_MARGIN}v{height}" for column in range(board.columns + 1)]
    svg.shape(root, "path", d="".join(across + down), stroke=svg.GRID, stroke_width=1.5, stroke_linecap="square")
    for row in range(board.rows):
        svg.label(root, _MARGIN / 2, _MARGIN + (row + 0.5) * _CELL, str(board.rows - row), size=14)
    for column in range(board.columns):
        svg.label(root, _MARGIN + (column + 0.5) * _CELL, 1.5 * _MARGIN + height, LETTERS[column], size=14)


def _pawn(root: ET.Element, centre: Point, player: int, size: float = _PAWN) -> None:
    x, y = centre
    ahead = (1, -1)[player] * size
    points = f"{x - size:g},{y - 0.75 * ahead:g} {x + size:g},{y - 0.75 * ahead:g} {x:g},{y + 0.95 * ahead:g}"
    fill = svg.FIRST if player == BLACK else "none"
    line = {"stroke": _COLOURS[player], "stroke_width": 0.22 * size, "stroke_linejoin": "round"}
    svg.shape(root, "polygon", points=points, fill=fill, **line)


def _legend(root: ET.Element, y: float) -> None:
    for player, name in enumerate(NAMES):
        x = _MARGIN + 10 + 85.0 * player
        _pawn(root, (x, y), player, 8)
        svg.label(root, x + 16, y, name, size=14, text_anchor="start")


def _arrow(root: ET.Element, start: Point, end: Point, weight: float) -> None:
    """From rim to centre, thicker and darker for a greater weight."""
    length = math.dist(start, end)
    dx, dy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    tip = end[0] - 0.1 * _CELL * dx, end[1] - 0.1 * _CELL * dy
    neck = tip[0] - _HEAD * dx, tip[1] - _HEAD * dy
    tail = start[0] + 0.16 * _CELL * dx, start[1] + 0.16 * _CELL * dy
    shaft, barb = (_THIN + (_THICK - _THIN) * weight) / 2, (_THIN + (_THICK - _THIN) * weight) / 2 + 4
    corners = [(tail, shaft), (neck, shaft), (neck, barb), (tip, 0.0), (neck, -barb), (neck, -shaft), (tail, -shaft)]
    points = " ".join(f"{x - side * dy:.2f},{y + side * dx:.2f}" for (x, y), side in corners)
    svg.shape(root, "polygon", points=points, fill=svg.CANDIDATE, fill_opacity=0.45 + 0.4 * weight)


def _percentage(root: ET.Element, start: Point, end: Point, text: str) -> None:
    """Beside a straight shaft; on a diagonal one near its start, as two may cross in the middle."""
    along, aside = (0.6, 0.18 * _CELL) if start[0] == end[0] else (0.33, 0.0)
    x, y = (a + along * (b - a) for a, b in zip(start, end, strict=True))
    svg.label(root, x + aside, y, text, size=12, font_weight="bold")


def _mark(root: ET.Element, target: Point, action: int, player: int, text: str) -> None:
    """Beyond the tips of arrows. Up to three moves lead to a cell, so each direction has a line of its own, that of the
    diagonals clear of a pawn that they capture.
    """
    ahead = (1, -1)[player] * (0.3, 0.16, 0.43)[action % 3] * _CELL
    svg.label(root, target[0], target[1] + ahead, text, size=11, font_weight="bold")
