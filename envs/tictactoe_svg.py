"""Draws a Tic-Tac-Toe board. Apart from the rules, so that playing games never pays for pictures."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from nlrl.envs import svg
from nlrl.envs.tictactoe import O, TicTacToeState, X, free_cells, line_text, to_move, won_lines

_CELL = 80
_MARGIN = 10
_SIZE = 3 * _CELL + 2 * _MARGIN
_REACH = 0.28 * _CELL
"""From a cell's centre to the rim of its piece."""


def draw(state: TicTacToeState, last_move: int | None, arrows: Mapping[int, float], marks: Mapping[int, str]) -> str:
    """The board as SVG. `arrows`: cell -> weight in [0, 1] (clamped); `marks`: cell -> short label.

    Raises:
        ValueError: a cell outside 0..8.
    """
    _require_cells([*arrows, *marks, *([] if last_move is None else [last_move])])
    root = svg.canvas(_SIZE, _SIZE, _title(state))
    if last_move is not None:
        _highlight(root, last_move)
    _grid(root)
    for cell in range(9):
        _content(root, state, cell)
    for player in (O, X):
        for line in won_lines(state, player):
            _strike(root, line, svg.FIRST if player == O else svg.SECOND)
    for cell, weight in sorted(arrows.items()):
        _candidate(root, cell, weight)
    for cell, text in sorted(marks.items()):
        x, y = _centre(cell)
        svg.label(root, x, y + 0.4 * _CELL, text, size=13, font_weight="bold")
    return svg.to_string(root)


def _require_cells(cells: list[int]) -> None:
    wrong = [cell for cell in cells if not 0 <= cell < 9]
    if wrong:
        raise ValueError(f"cell {wrong[0]} is not on the board (0 to 8)")


def _title(state: TicTacToeState) -> str:
    for player, name in enumerate("OX"):
        if won_lines(state, player):
            return f"Tic-tac-toe: {name} has won on {line_text(won_lines(state, player)[0])}"
    return f"Tic-tac-toe: {'OX'[to_move(state)]} to move" if free_cells(state) else "Tic-tac-toe: a draw"


def _centre(cell: int) -> tuple[float, float]:
    row, column = divmod(cell, 3)
    return _MARGIN + (column + 0.5) * _CELL, _MARGIN + (row + 0.5) * _CELL


def _highlight(root: ET.Element, cell: int) -> None:
    x, y = _centre(cell)
    inset = 0.5 * _CELL - 4
    box = {"x": x - inset, "y": y - inset, "width": 2 * inset, "height": 2 * inset, "rx": 6}
    svg.shape(root, "rect", **box, fill=svg.LAST_MOVE, fill_opacity=0.25, stroke=svg.LAST_MOVE, stroke_width=2)


def _grid(root: ET.Element) -> None:
    low, high = _MARGIN, _SIZE - _MARGIN
    for at in (_MARGIN + _CELL, _MARGIN + 2 * _CELL):
        svg.shape(root, "line", x1=at, y1=low, x2=at, y2=high, stroke=svg.GRID, stroke_width=2)
        svg.shape(root, "line", x1=low, y1=at, x2=high, y2=at, stroke=svg.GRID, stroke_width=2)


def _content(root: ET.Element, state: TicTacToeState, cell: int) -> None:
    x, y = _centre(cell)
    if state.o >> cell & 1:
        svg.shape(root, "circle", cx=x, cy=y, r=_REACH, fill="none", stroke=svg.FIRST, stroke_width=7)
    elif state.x >> cell & 1:
        for way in (-1, 1):
            ends = {"x1": x - _REACH, "y1": y - way * _REACH, "x2": x + _REACH, "y2": y + way * _REACH}
            svg.shape(root, "line", **ends, stroke=svg.SECOND, stroke_width=7, stroke_linecap="round")
    else:
        svg.label(root, x, y, str(cell + 1), size=16)


def _strike(root: ET.Element, line: tuple[int, int, int], colour: str) -> None:
    (x1, y1), (x2, y2) = _centre(line[0]), _centre(line[2])
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    svg.shape(root, "line", **ends, stroke=colour, stroke_width=4, stroke_opacity=0.6, stroke_linecap="round")


def _candidate(root: ET.Element, cell: int, weight: float) -> None:
    """A translucent disc whose *area* grows with the weight, and the weight as a percentage."""
    x, y = _centre(cell)
    radius = 0.45 * _CELL * math.sqrt(max(0.0, min(1.0, weight)))
    svg.shape(root, "circle", cx=x, cy=y, r=radius, fill=svg.CANDIDATE, fill_opacity=0.35)
    svg.label(root, x, y - 0.38 * _CELL, f"{weight:.0%}", size=13, font_weight="bold")
