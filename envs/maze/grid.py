"""A layout with its goal, as the rules need it: where each move leads, where walls are, how far the goal is."""

from __future__ import annotations

from nlrl.envs.maze.layouts import Layout
from nlrl.envs.maze.state import DELTAS, Cell


class Grid:
    """The part of a layout from which its goal can be reached.

    Raises:
        ValueError: the layout has no goal, or it is not on a free cell.
    """

    rows: tuple[str, ...]
    goal: Cell
    distance: dict[Cell, int]
    """Steps to the goal from every cell that it can be reached from, nearest first."""
    next: dict[Cell, tuple[Cell, ...]]
    """Where action i leads from each of these cells; a wall leaves the walker where it is."""
    walls: dict[Cell, int]
    """Bit i is set where action i bumps into a wall."""

    def __init__(self, layout: Layout):
        if layout.goal is None:
            raise ValueError("the layout has no goal: mark it 'G' or pass goal=(row, column)")
        if not layout.is_free(layout.goal):
            height, width = len(layout.rows), len(layout.rows[0])
            row, column = layout.goal
            where = "in a wall" if 0 <= row < height and 0 <= column < width else f"outside the {height}x{width} map"
            raise ValueError(f"goal {layout.goal} is {where}; it must be a free cell (row, column)")
        self.rows, self.goal = layout.rows, layout.goal
        self.distance, self.next, self.walls = {layout.goal: 0}, {}, {}
        queue = [layout.goal]
        for cell in queue:  # breadth first: grows while it is read
            for there in self._enter(cell, layout):
                if there not in self.distance:
                    self.distance[there] = self.distance[cell] + 1
                    queue.append(there)

    def _enter(self, cell: Cell, layout: Layout) -> tuple[Cell, ...]:
        row, column = cell
        ways = [(row + dr, column + dc) for dr, dc in DELTAS]
        after = tuple(way if layout.is_free(way) else cell for way in ways)
        self.next[cell] = after
        self.walls[cell] = sum(1 << action for action, there in enumerate(after) if there == cell)
        return after

    def shortest_path(self, cell: Cell) -> list[Cell]:
        """Cells from `cell` to the goal, both included; where several paths are shortest, the first move decides."""
        path = [cell]
        while path[-1] != self.goal:
            path.append(min(self.next[path[-1]], key=self.distance.__getitem__))
        return path
