"""Moves and text of a board as a few look-ups.

A *window* is a run of cells, cut out of two bitboards side by side by one shift and one mask. What it says (moves,
text) is worked out once and remembered, because the same few cells come back in position after position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from nlrl.envs.breakthrough.board import Board

T = TypeVar("T")
_PAWNS, _TEXT = 3, 6
"""Cells of a window. With more there would be fewer windows, but they come back less often and leave the cache: these
were the fastest in random play. A window can look in under a thousand ways, so what is remembered stays small."""

Window = tuple[int, int, dict[int, T], Callable[[int], T]]
"""(shift, mask, known, work_out): with `key = boards >> shift & mask`, `known[key]` is what the window says, or
`work_out(key)` if it is not known yet. Plain tuples and dictionaries are looked up twice as fast as our own classes."""


class _Way(NamedTuple):
    """A move as it looks in a window on `own | taken << cells`; all but the action and the texts are bits."""

    action: int
    source: int
    blocked: int
    """What forbids it: an own pawn on the target, or straight ahead any pawn."""
    prey: int
    """A pawn of anybody on the target."""
    quiet: str
    capture: str

    def shifted(self, shift: int) -> _Way:
        return self._replace(source=self.source >> shift, blocked=self.blocked >> shift, prey=self.prey >> shift)


def action_windows(board: Board, player: int) -> tuple[Window[tuple[int, ...]], ...]:
    """Windows on `own | taken << cells` that give the actions of `player`, together all of them in order."""
    return tuple(_pawn_windows(board, player, 0, _free_actions))


def name_windows(board: Board, player: int) -> tuple[Window[dict[int, str]], ...]:
    """The same that give action -> text. They look at more cells, as the text says what is captured."""
    return tuple(_pawn_windows(board, player, -1, _named_actions))


def text_windows(board: Board) -> tuple[Window[tuple[str, str, str]], ...]:
    """Windows on `black | white << cells`, top first: lines, black's cells and white's, a space before each name."""
    windows = []
    for cells in _runs(0, board.cells, _TEXT):
        mask = (1 << len(cells)) - 1
        windows.append((cells.start, mask | mask << board.cells, {}, partial(_text, board, cells)))
    return tuple(windows)


def _pawn_windows(
    board: Board, player: int, seen_prey: int, say: Callable[[list[_Way], int], T]
) -> Iterator[Window[T]]:
    first = (0, board.columns)[player]
    for cells in _runs(first, first + board.cells - board.columns, _PAWNS):
        ways = [_way(board, player, action) for action in board.moves[player] if action // 3 in cells]
        mask = 0
        for way in ways:
            mask |= way.source | way.blocked | way.prey & seen_prey
        shift = (mask & -mask).bit_length() - 1
        yield shift, mask >> shift, {}, partial(say, [way.shifted(shift) for way in ways])


def _way(board: Board, player: int, action: int) -> _Way:
    source, target, stop = board.moves[player][action]
    _, quiet, capture = board.move_texts[player][action]
    return _Way(action, source, target | stop << board.cells, target << board.cells, quiet, capture)


def _free_actions(ways: list[_Way], window: int) -> tuple[int, ...]:
    return tuple([way.action for way in ways if window & way.source and not window & way.blocked])


def _named_actions(ways: list[_Way], window: int) -> dict[int, str]:
    free = [way for way in ways if window & way.source and not window & way.blocked]
    return {way.action: way.capture if window & way.prey else way.quiet for way in free}


def _text(board: Board, cells: range, window: int) -> tuple[str, str, str]:
    line, names = "", ["", ""]
    for number, cell in enumerate(cells):
        row, column = divmod(cell, board.columns)
        side = 0 if window >> number & 1 else 1 if window >> number + board.cells & 1 else 2
        line += f"{board.rows - row} " if column == 0 else ""
        line += " " + "bw."[side]
        line += "\n" if column == board.columns - 1 else ""
        if side < 2:
            names[side] += f" {board.cell_names[cell]}"
    return line, names[0], names[1]


def _runs(start: int, stop: int, longest: int) -> list[range]:
    """The cells from `start` to `stop` in as few runs as can be, about equally long."""
    count = -(-(stop - start) // longest)
    ends = [start + (stop - start) * number // count for number in range(count + 1)]
    return [range(ends[number], ends[number + 1]) for number in range(count)]
