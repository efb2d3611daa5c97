"""Draws a frozen lake. Apart from the rules, so that playing games never pays for pictures."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from nlrl.envs import svg
from nlrl.envs.frozen_lake import ACTIONS, DIRECTIONS, FrozenLakeState, Lake, lake_of

_CELL = 72
_MARGIN = 60
"""Room for the numbers of rows and columns, and for arrows and labels that point off the lake."""
_RIM = 0.22 * _CELL
"""Radius of the player."""
_TIP = 0.66 * _CELL
"""From the player's centre to the tip of a candidate's arrow."""
_MARK_ACROSS, _MARK_ALONG = 0.98 * _CELL, 0.84 * _CELL
"""From there to the centre of a mark, left and right (where words are long) and up and down."""


def draw(state: FrozenLakeState, last_move: int | None, arrows: Mapping[int, float], marks: Mapping[int, str]) -> str:
    """The lake as SVG. `arrows`: action -> weight in [0, 1] (clamped); `marks`: action -> short label.

    `last_move` is what the player wanted; on slippery ice it may have come from elsewhere.

    Raises:
        ValueError: an action outside 0..3.
    """
    _require_actions([*arrows, *marks, *([] if last_move is None else [last_move])])
    lake = lake_of(state.map)
    width, height = (side * _CELL + 2 * _MARGIN for side in (lake.columns, lake.rows))
    root = svg.canvas(width, height, _title(lake, state, last_move))
    for cell in range(len(lake.tiles)):
        _tile(root, lake, cell)
    _numbers(root, lake)
    x, y = _centre(lake, state.cell)
    if last_move is not None:
        _last_move(root, x, y, last_move)
    _player(root, x, y, fallen=lake.tiles[state.cell] == "H")
    for action, weight in sorted(arrows.items()):
        _candidate(root, x, y, action, weight)
    for action, text in sorted(marks.items()):
        down, right = DIRECTIONS[action]
        svg.label(root, x + right * _MARK_ACROSS, y + down * _MARK_ALONG, text, size=13, font_weight="bold")
    return svg.to_string(root)


def _require_actions(actions: list[int]) -> None:
    wrong = [action for action in actions if not 0 <= action < len(ACTIONS)]
    if wrong:
        raise ValueError(f"action {wrong[0]} is none of 0 to 3 (left, down, right, up)")


def _title(lake: Lake, state: FrozenLakeState, last_move: int | None) -> str:
    row, column = divmod(state.cell, lake.columns)
    place = {"G": "the player has reached the goal", "H": "the player has fallen into a hole"}.get(
        lake.tiles[state.cell], "the player is"
    )
    wanted = "" if last_move is None else f" after {ACTIONS[last_move]}"
    return f"Frozen lake: {place} in row {row + 1}, column {column + 1}{wanted}"


def _centre(lake: Lake, cell: int) -> tuple[float, float]:
    row, column = divmod(cell, lake.columns)
    return _MARGIN + (column + 0.5) * _CELL, _MARGIN + (row + 0.5) * _CELL


def _numbers(root: ET.Element, lake: Lake) -> None:
    for column in range(lake.columns):
        svg.label(root, _MARGIN + (column + 0.5) * _CELL, 10, str(column + 1), size=12)
    for row in range(lake.rows):
        svg.label(root, 10, _MARGIN + (row + 0.5) * _CELL, str(row + 1), size=12)


def _tile(root: ET.Element, lake: Lake, cell: int) -> None:
    x, y = _centre(lake, cell)
    box = {"x": x - _CELL / 2, "y": y - _CELL / 2, "width": _CELL, "height": _CELL}
    svg.shape(root, "rect", **box, fill=svg.FIRST, fill_opacity=0.08, stroke=svg.GRID, stroke_width=1.5)
    tile = lake.tiles[cell]
    if tile == "H":
        svg.shape(
            root, "circle", cx=x, cy=y, r=0.36 * _CELL, fill=svg.GRID, fill_opacity=0.2, stroke=svg.GRID, stroke_width=5
        )
    elif tile == "G":
        _flag(root, x, y)
    elif tile == "S":
        svg.label(root, x - 0.36 * _CELL, y - 0.33 * _CELL, "S", size=14, font_weight="bold")


def _flag(root: ET.Element, x: float, y: float) -> None:
    """Beside the middle, so that a player on the goal hides neither pole nor cloth."""
    pole, top, foot = x + 0.14 * _CELL, y - 0.42 * _CELL, y + 0.42 * _CELL
    svg.shape(root, "line", x1=pole, y1=top, x2=pole, y2=foot, stroke=svg.CANDIDATE, stroke_width=4)
    corners = ((pole, top), (pole + 0.3 * _CELL, top + 0.12 * _CELL), (pole, top + 0.24 * _CELL))
    svg.shape(root, "polygon", points=_points(corners), fill=svg.CANDIDATE)


def _player(root: ET.Element, x: float, y: float, fallen: bool) -> None:
    """A disc; one that has fallen into a hole is crossed out."""
    svg.shape(root, "circle", cx=x, cy=y, r=_RIM, fill=svg.SECOND)
    if fallen:
        reach = 0.3 * _CELL
        for way in (-1, 1):
            ends = {"x1": x - reach, "y1": y - way * reach, "x2": x + reach, "y2": y + way * reach}
            svg.shape(root, "line", **ends, stroke=svg.SECOND, stroke_width=5, stroke_linecap="round")


def _last_move(root: ET.Element, x: float, y: float, action: int) -> None:
    """A frame around the player's cell; in its lower right corner an arrowhead shows where the player wanted to go."""
    inset = _CELL / 2 - 3
    box = {"x": x - inset, "y": y - inset, "width": 2 * inset, "height": 2 * inset, "rx": 5}
    svg.shape(root, "rect", **box, fill=svg.LAST_MOVE, fill_opacity=0.25, stroke=svg.LAST_MOVE, stroke_width=2)
    corner, size = 0.33 * _CELL, 0.2 * _CELL
    svg.shape(root, "polygon", points=_head(x + corner, y + corner, action, size / 3, size), fill=svg.LAST_MOVE)


def _candidate(root: ET.Element, x: float, y: float, action: int, weight: float) -> None:
    """An arrow to the next cell whose *area* grows with the weight, and the weight as a percentage beside it."""
    down, right = DIRECTIONS[action]
    size = _CELL * (0.06 + 0.24 * math.sqrt(max(0.0, min(1.0, weight))))
    start, neck = _RIM, _TIP - 0.7 * size
    ends = {"x1": x + right * start, "y1": y + down * start, "x2": x + right * neck, "y2": y + down * neck}
    svg.shape(root, "line", **ends, stroke=svg.CANDIDATE, stroke_width=size / 2, stroke_opacity=0.7)
    svg.shape(root, "polygon", points=_head(x, y, action, _TIP, size), fill=svg.CANDIDATE, fill_opacity=0.7)
    beside = (0.72 * right, -0.24) if right else (0.3, 0.6 * down)
    at = x + beside[0] * _CELL, y + beside[1] * _CELL
    svg.label(root, *at, f"{weight:.0%}", size=13, font_weight="bold")


def _head(x: float, y: float, action: int, tip: float, size: float) -> str:
    """The corners of an arrowhead `size` wide whose point is `tip` from (x, y) in the direction of `action`."""
    down, right = DIRECTIONS[action]
    back, side = tip - 0.7 * size, size / 2
    flat = ((tip, 0.0), (back, side), (back, -side))
    return _points(tuple((x + right * on - down * off, y + down * on + right * off) for on, off in flat))


def _points(corners: tuple[tuple[float, float], ...]) -> str:
    return " ".join(f"{round(x, 1):g},{round(y, 1):g}" for x, y in corners)
