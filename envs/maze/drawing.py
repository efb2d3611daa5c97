"""Draws a maze. Apart from the rules, so that walking never pays for pictures.

Walls are outlined and lightly filled; the walker is a disc, the goal a diamond with a G. The last move is a framed cell
with a chevron that points where the walker was heading. Walked paths are solid, shortest ones dashed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from nlrl.envs import svg
from nlrl.envs.maze.grid import Grid
from nlrl.envs.maze.state import DELTAS, DIRECTIONS, Cell, MazeState

_CELL = 44
_MARGIN = 22
_DISC = 0.22 * _CELL
_GOAL = 0.38 * _CELL
_THICKEST = 0.3 * _CELL
"""The shaft of an arrow of weight 1."""


def draw(
    grid: Grid,
    state: MazeState,
    last_move: int | None,
    arrows: Mapping[int, float],
    marks: Mapping[int, str],
    path: Sequence[Cell],
    shortest: bool,
) -> str:
    """The maze as SVG. `arrows`: action -> weight in [0, 1] (clamped); `marks`: action -> short label.

    Raises:
        ValueError: an unknown action, or a path that is not one.
    """
    _require_actions([*arrows, *marks, *([] if last_move is None else [last_move])])
    _require_path(grid, path)
    height, width = len(grid.rows), len(grid.rows[0])
    root = svg.canvas(width * _CELL + 2 * _MARGIN, height * _CELL + 2 * _MARGIN, _title(grid, state))
    _coordinates(root, height, width)
    _walls(root, grid)
    if last_move is not None:
        _last_move(root, state.cell, last_move)
    if shortest:
        _shortest(root, [_beside(cell, 0.07) for cell in grid.shortest_path(state.cell)])
    if len(path) > 1:
        points = [_beside(cell, -0.07) for cell in path]
        svg.shape(root, "path", d=_polyline(points), fill="none", stroke=svg.FIRST, stroke_width=3)
    _goal(root, grid.goal)
    for action, weight in sorted(arrows.items()):
        _arrow(root, state.cell, action, weight)
    x, y = _centre(state.cell)
    svg.shape(root, "circle", cx=x, cy=y, r=_DISC, fill=svg.FIRST)
    for action, weight in sorted(arrows.items()):
        _label(root, state.cell, action, 0, f"{weight:.0%}")
    for action, text in sorted(marks.items()):
        _label(root, state.cell, action, 1, text)
    return svg.to_string(root)


def _require_actions(actions: Collection[int]) -> None:
    for action in actions:
        if action not in range(len(DELTAS)):
            moves = ", ".join(f"{number} {name}" for number, name in enumerate(DIRECTIONS))
            raise ValueError(f"action {action!r} is no move of a maze; moves: {moves}")


def _require_path(grid: Grid, path: Sequence[Cell]) -> None:
    for cell in path:
        if cell not in grid.distance:
            raise ValueError(f"the path goes through {cell}, which is not a cell with a way to the goal")
    for before, after in pairwise(path):
        if after != before and after not in grid.next[before]:
            raise ValueError(f"the path jumps from {before} to {after}")


def _title(grid: Grid, state: MazeState) -> str:
    if state.cell == grid.goal:
        return f"Maze: the walker has reached the goal at row {state.row}, column {state.column}"
    goal = f"row {grid.goal[0]}, column {grid.goal[1]}"
    return f"Maze: the walker at row {state.row}, column {state.column}; the goal at {goal}"


def _centre(cell: Cell) -> tuple[float, float]:
    return _MARGIN + (cell[1] + 0.5) * _CELL, _MARGIN + (cell[0] + 0.5) * _CELL


def _coordinates(root: ET.Element, height: int, width: int) -> None:
    for column in range(width):
        svg.label(root, _centre((0, column))[0], _MARGIN / 2, str(column), size=11)
    for row in range(height):
        svg.label(root, _MARGIN / 2, _centre((row, 0))[1], str(row), size=11)


# -- walls -------------------------------------------------------------------------------------------------------------
def _walls(root: ET.Element, grid: Grid) -> None:
    """One shape for all fills and one for all outlines: pictures of large mazes stay small."""
    height, width = len(grid.rows), len(grid.rows[0])
    solid = [[symbol == "#" for symbol in row] for row in grid.rows]
    fills = [
        f"M{_at(start)} {_at(row)}H{_at(end)}V{_at(row + 1)}H{_at(start)}Z"
        for row in range(height)
        for start, end in _runs(solid[row])
    ]
    svg.shape(root, "path", d="".join(fills), fill=svg.GRID, fill_opacity=0.12)
    across = [
        f"M{_at(start)} {_at(row)}H{_at(end)}"
        for row in range(height + 1)
        for start, end in _runs([_solid(solid, row - 1, c) != _solid(solid, row, c) for c in range(width)])
    ]
    down = [
        f"M{_at(column)} {_at(start)}V{_at(end)}"
        for column in range(width + 1)
        for start, end in _runs([_solid(solid, r, column - 1) != _solid(solid, r, column) for r in range(height)])
    ]
    outline = {"stroke": svg.GRID, "stroke_width": 2, "stroke_linecap": "square", "fill": "none"}
    svg.shape(root, "path", d="".join(across + down), **outline)


def _solid(solid: list[list[bool]], row: int, column: int) -> bool:
    """Outside the map there is wall."""
    return not (0 <= row < len(solid) and 0 <= column < len(solid[0])) or solid[row][column]


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """[start, end) of each run of true flags."""
    edges = [at for at in range(len(flags) + 1) if (at > 0 and flags[at - 1]) != (at < len(flags) and flags[at])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at(index: int) -> int:
    return _MARGIN + index * _CELL


# -- what happens in the maze ------------------------------------------------------------------------------------------
def _last_move(root: ET.Element, cell: Cell, action: int) -> None:
    x, y = _centre(cell)
    inset = 0.5 * _CELL - 3
    box = {"x": x - inset, "y": y - inset, "width": 2 * inset, "height": 2 * inset, "rx": 4}
    svg.shape(root, "rect", **box, fill=svg.LAST_MOVE, fill_opacity=0.25, stroke=svg.LAST_MOVE, stroke_width=2)
    points = [_ahead(cell, action, along, aside) for along, aside in ((-0.52, -0.14), (-0.36, 0.0), (-0.52, 0.14))]
    svg.shape(root, "path", d=_polyline(points), fill="none", stroke=svg.LAST_MOVE, stroke_width=3)


def _ahead(cell: Cell, action: int, along: float, aside: float) -> tuple[float, float]:
    """A point `along` cells ahead of the centre in the action's direction and `aside` cells beside that line."""
    x, y = _centre(cell)
    down, right = DELTAS[action]
    return x + (along * right - aside * down) * _CELL, y + (along * down + aside * right) * _CELL


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _beside(cell: Cell, shift: float) -> tuple[float, float]:
    """The centre, shifted diagonally by `shift` cells, so that two lines lie beside each other."""
    x, y = _centre(cell)
    return x + shift * _CELL, y + shift * _CELL


def _shortest(root: ET.Element, points: list[tuple[float, float]]) -> None:
    """A dashed line that ends at the rim of the goal."""
    if len(points) > 1:
        (x1, y1), (x2, y2) = points[-2:]
        points = [*points[:-1], ((x1 + x2) / 2, (y1 + y2) / 2)]
        stroke = {"stroke": svg.SECOND, "stroke_width": 2.5, "stroke_dasharray": "7 5"}
        svg.shape(root, "path", d=_polyline(points), fill="none", **stroke)


def _goal(root: ET.Element, cell: Cell) -> None:
    x, y = _centre(cell)
    diamond = _polyline([(x, y - _GOAL), (x + _GOAL, y), (x, y + _GOAL), (x - _GOAL, y)]) + "Z"
    svg.shape(root, "path", d=diamond, fill="none", stroke=svg.SECOND, stroke_width=2.5)
    svg.label(root, x, y, "G", size=15, font_weight="bold", fill=svg.SECOND)


def _arrow(root: ET.Element, cell: Cell, action: int, weight: float) -> None:
    """A translucent arrow from the walker towards the next cell; the *width* of its shaft grows with the weight."""
    half = max(0.0, min(1.0, weight)) * _THICKEST / _CELL / 2
    if half == 0:
        return
    head = half + 0.09
    side = [(0.26, half), (0.5, half), (0.5, head)]
    outline = [*side, (0.5 + 1.2 * head, 0.0), *((along, -aside) for along, aside in reversed(side))]
    points = [_ahead(cell, action, along, aside) for along, aside in outline]
    svg.shape(root, "path", d=_polyline(points) + "Z", fill=svg.CANDIDATE, fill_opacity=0.6, stroke=svg.CANDIDATE)


def _label(root: ET.Element, cell: Cell, action: int, line: int, text: str) -> None:
    """Text at the arrow's tip: one behind the other up and down, above (line 0) and below (1) the arrow sideways."""
    vertical = DELTAS[action][0] != 0
    x, y = _ahead(cell, action, 0.86 + 0.3 * line if vertical else 1.0, 0.0)
    svg.label(root, x, y if vertical else y + (0.64 * line - 0.32) * _CELL, text, size=12, font_weight="bold")
