"""Random mazes: a perfect maze carved depth-first, then some of its dead ends opened into loops.

Rooms lie on odd rows and columns. Equal arguments give equal mazes on every machine; mazes that differ only in `loops`
share their tree, and more loops only open more walls.
"""

from __future__ import annotations

from nlrl.envs.maze.layouts import Layout
from nlrl.envs.maze.state import DELTAS, Cell
from nlrl.envs.random import Rng

MIN_SIDE, MAX_SIDE = 5, 39


def generate(width: int, height: int, loops: float, seed: int) -> Layout:
    """A connected maze and a goal in one of its rooms. `width` and `height` count walls too.

    `loops` is the share of dead ends that get a second exit: 0 gives a tree, 1 a maze without dead ends.

    Raises:
        ValueError: an even side, a side out of range, or `loops` outside [0, 1].
    """
    for name, side in (("width", width), ("height", height)):
        if not MIN_SIDE <= side <= MAX_SIDE or side % 2 == 0:
            raise ValueError(f"{name} must be an odd number from {MIN_SIDE} to {MAX_SIDE}, not {side!r}")
    if not 0 <= loops <= 1:
        raise ValueError(f"loops must be from 0 to 1, not {loops!r}")
    rng = Rng("maze", width, height, seed)
    free = _carve(width, height, rng.spawn("tree"))
    rooms = sorted(cell for cell in free if cell[0] % 2 and cell[1] % 2)
    _open_dead_ends(free, rooms, loops, rng.spawn("loops"))
    rows = tuple("".join("." if (row, column) in free else "#" for column in range(width)) for row in range(height))
    return Layout(rows, rng.spawn("goal").choice(rooms))


def _carve(width: int, height: int, rng: Rng) -> set[Cell]:
    """Free cells of a perfect maze: every two rooms are joined by exactly one path."""
    free, walk = {(1, 1)}, [(1, 1)]
    while walk:
        room = walk[-1]
        ways = [way for way in _ways(room, width, height) if way[1] not in free]
        if ways:
            between, there = rng.choice(ways)
            free |= {between, there}
            walk.append(there)
        else:
            walk.pop()
    return free


def _ways(room: Cell, width: int, height: int) -> list[tuple[Cell, Cell]]:
    """(the cell between, the room) for each neighbouring room."""
    row, column = room
    return [
        ((row + dr, column + dc), (row + 2 * dr, column + 2 * dc))
        for dr, dc in DELTAS
        if 0 < row + 2 * dr < height and 0 < column + 2 * dc < width
    ]


def _open_dead_ends(free: set[Cell], rooms: list[Cell], loops: float, rng: Rng) -> None:
    """Gives a share of the dead ends a second exit, in a random order that does not depend on the share."""
    height, width = rooms[-1][0] + 2, rooms[-1][1] + 2
    dead_ends = [room for room in rooms if _exits(room, free) == 1]
    for room in rng.shuffled(dead_ends)[: round(loops * len(dead_ends))]:
        if _exits(room, free) == 1:  # another dead end may have been opened into this one
            free.add(rng.choice([between for between, _ in _ways(room, width, height) if between not in free]))


def _exits(room: Cell, free: set[Cell]) -> int:
    return sum((room[0] + dr, room[1] + dc) in free for dr, dc in DELTAS)
