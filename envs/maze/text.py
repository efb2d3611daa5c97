"""Text of a maze: the whole map, which can be read back, and what the walker is told.

1. The map is rows of `#` (wall), `.` (free), `G` (goal) and `@` (the walker; `*` where it stands on the goal).
2. A history follows as lines `walls left, up; move right`, oldest first. It is the same in map and observation.
3. Fully observed, the walker is told the goal, its own place and the walls beside it; partially observed, the walls.
"""

from __future__ import annotations

from collections.abc import Collection

from nlrl.envs.maze.grid import Grid
from nlrl.envs.maze.state import ACTION_TEXTS, NO_MOVE, Cell, MazeState, Seen, walls_text

_HEAD = "before, oldest first:"
_NO_MOVE_TEXT = "no legal move"
_WALLS = {walls_text(walls): walls for walls in range(16)}
_MOVES = {**{text: action for action, text in enumerate(ACTION_TEXTS)}, _NO_MOVE_TEXT: NO_MOVE}


def map_text(grid: Grid, state: MazeState) -> str:
    rows = [list(row) for row in grid.rows]
    rows[grid.goal[0]][grid.goal[1]] = "G"
    rows[state.row][state.column] = "*" if state.cell == grid.goal else "@"
    return "\n".join(["".join(row) for row in rows] + _history_lines(state))


def observation_text(grid: Grid, state: MazeState, full: bool) -> str:
    places = [f"goal: {_place(grid.goal)}", f"you: {_place(state.cell)}"]
    told = places if full else ["you: at the goal"] if state.cell == grid.goal else []
    return "\n".join([*told, f"walls: {walls_text(grid.walls[state.cell])}", *_history_lines(state)])


def _place(cell: Cell) -> str:
    return f"row {cell[0]}, column {cell[1]}"


def _history_lines(state: MazeState) -> list[str]:
    items = [
        f"walls {walls_text(seen.walls)}; {_NO_MOVE_TEXT if seen.action == NO_MOVE else ACTION_TEXTS[seen.action]}"
        for seen in state.history
    ]
    return [_HEAD, *items] if items else []


def read_map(grid: Grid, starts: Collection[Cell], kept: int, text: str) -> MazeState:
    """The inverse of `map_text` in a game that keeps `kept` items of history.

    Raises:
        ValueError: another maze, no walker or two, a cell without a way to the goal, or a history that no walk has.
    """
    lines = text.strip("\n").split("\n")
    height = len(grid.rows)
    if len(lines) < height:
        raise ValueError(f"the map has {height} rows, not {len(lines)}")
    here = [(row, column) for row in range(height) for column in _walkers(grid, row, lines[row])]
    if len(here) != 1:
        raise ValueError(f"the map shows the walker ('@', or '*' on the goal) once, not {len(here)} times")
    if here[0] not in grid.distance:
        raise ValueError(f"the walker is at {_place(here[0])}, from where no way leads to the goal")
    state = MazeState(*here[0], _read_history(lines[height:], height + 1, kept))
    _require_possible(grid, starts, kept, state)
    return state


def _walkers(grid: Grid, row: int, line: str) -> list[int]:
    """Columns where the walker stands in this row."""
    expected = grid.rows[row]
    if len(line) != len(expected):
        raise ValueError(f"line {row + 1}: expected {len(expected)} cells, not {line!r}")
    found: list[int] = []
    for column, (symbol, ground) in enumerate(zip(line, expected, strict=True)):
        at_goal = (row, column) == grid.goal
        if symbol == ("*" if at_goal else "@") and ground == ".":
            found.append(column)
        elif symbol != ("G" if at_goal else ground):
            wanted = "G" if at_goal else ground
            raise ValueError(f"line {row + 1}, column {column}: {symbol!r} where this maze has {wanted!r}")
    return found


def _read_history(lines: list[str], first: int, kept: int) -> tuple[Seen, ...]:
    """`first` is the number of the first line, for messages."""
    if not lines:
        return ()
    if lines[0] != _HEAD or len(lines) == 1:
        raise ValueError(f"line {first}: after the map, expected the end, or {_HEAD!r} and a history, not {lines[0]!r}")
    if len(lines) - 1 > kept:
        raise ValueError(f"line {first}: this game keeps {kept} items of history, not {len(lines) - 1}")
    return tuple(_read_seen(line, number) for number, line in enumerate(lines[1:], start=first + 1))


def _read_seen(line: str, number: int) -> Seen:
    walls, _, move = line.removeprefix("walls ").partition("; ")
    if not line.startswith("walls ") or walls not in _WALLS or move not in _MOVES:
        raise ValueError(f"line {number}: expected such as 'walls left, up; move right', not {line!r}")
    return Seen(_WALLS[walls], _MOVES[move])


def _require_possible(grid: Grid, starts: Collection[Cell], kept: int, state: MazeState) -> None:
    """Follows the history backwards: some walk must have seen it. One that is not full began at a start."""
    cells = {state.cell}
    for walls, action in reversed(state.history):
        cells = {
            cell
            for cell, after in grid.next.items()
            if grid.walls[cell] == walls
            and cell != grid.goal
            and (cell if action == NO_MOVE else after[action]) in cells
        }
    if len(state.history) < kept:
        cells &= set(starts)
    if not cells:
        raise ValueError(f"no walk that ends at {_place(state.cell)} has this history of {len(state.history)} items")
