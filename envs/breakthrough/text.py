"""A Breakthrough board as people read it, and back.

    5  b b b b b
    4  b b b b b
    3  . . . . .
    2  w w w w w
    1  w w w w w
       a b c d e
    To move: black
    Black: a5 b5 c5 d5 e5 a4 b4 c4 d4 e4
    White: a2 b2 c2 d2 e2 a1 b1 c1 d1 e1

After the end, `Winner: white` stands in place of the side to move. Reading minds neither the number of spaces nor the
order of a list; all else must be so, and the parts must agree.
"""

from __future__ import annotations

from nlrl.envs.breakthrough.board import NAMES, Board, BreakthroughState

TURNS = (("To move: black", "To move: white"), ("Winner: white", "Winner: black"))
"""Is the game over? -> player -> the line that says so."""


def middles(board: Board) -> tuple[tuple[str, ...], ...]:
    """What stands between the rows and black's pawns, found like `TURNS`."""
    return tuple(tuple(f"   {board.letters}\n{turn}\nBlack:" for turn in turns) for turns in TURNS)


def read(board: Board, most: int, text: str) -> BreakthroughState:
    """The state that `text` shows; no side has more than `most` pawns.

    Raises:
        ValueError: it is not such a board; the message names the line and what is wrong there.
    """
    lines = text.strip("\n").split("\n")
    if len(lines) != board.rows + 4:
        parts = f"{board.rows} rows, the columns' letters, the side to move, two lists of pawns"
        raise ValueError(f"a board has {board.rows + 4} lines ({parts}), not {len(lines)}")
    black, white = _read_rows(board, lines)
    if lines[board.rows].split() != board.letters.split():
        raise ValueError(f"line {board.rows + 1}: expected {board.letters!r}, not {lines[board.rows]!r}")
    problem = board.problem(black, white, most)
    if problem:
        raise ValueError(f"impossible board: {problem}")
    player = _read_turn(board, lines, black, white)
    for number, (name, pawns) in enumerate(zip(NAMES, (black, white), strict=True), start=board.rows + 2):
        _check_list(f"line {number + 1}", lines[number], name, board.names(pawns))
    return BreakthroughState(black, white, player)


def _read_rows(board: Board, lines: list[str]) -> tuple[int, int]:
    """Black's and white's bitboards."""
    sides = {"b": 0, "w": 0, ".": 0}
    for row in range(board.rows):
        rank, *cells = lines[row].split() or [""]
        if rank != str(board.rows - row):
            raise ValueError(f"line {row + 1}: expected rank {board.rows - row} first, not {rank!r}")
        if len(cells) != board.columns:
            raise ValueError(f"line {row + 1}: expected {board.columns} cells after the rank, not {len(cells)}")
        for cell, symbol in enumerate(cells, start=row * board.columns):
            if symbol not in sides:
                raise ValueError(f"line {row + 1}: {board.cell_names[cell]} must be 'b', 'w' or '.', not {symbol!r}")
            sides[symbol] |= 1 << cell
    return sides["b"], sides["w"]


def _read_turn(board: Board, lines: list[str], black: int, white: int) -> int:
    """The player to move; after the end, the loser, whose turn it would be."""
    winner = board.winner(black, white)
    expected = TURNS[0] if winner is None else TURNS[1][1 - winner : 2 - winner]
    line = " ".join(lines[board.rows + 1].split())
    if line not in expected:
        where = f"line {board.rows + 2}" if winner is None else f"line {board.rows + 2}, as {NAMES[winner]} has won"
        raise ValueError(f"{where}: expected {' or '.join(map(repr, expected))}, not {line!r}")
    return expected.index(line) if winner is None else 1 - winner


def _check_list(where: str, line: str, name: str, pawns: list[str]) -> None:
    """Holds a list of pawns to the board."""
    head, *listed = line.split() or [""]
    if head != f"{name.capitalize()}:":
        raise ValueError(f"{where}: expected '{name.capitalize()}:' and its pawns, not {line!r}")
    if not pawns and listed == ["none"]:
        return
    if not listed:
        raise ValueError(f"{where}: expected pawns of {name}, or 'none'")
    for cell in listed:
        if cell not in pawns:
            raise ValueError(f"{where}: the board shows no pawn of {name} on {cell!r}")
        if listed.count(cell) > 1:
            raise ValueError(f"{where}: {cell} is listed twice")
    missing = [cell for cell in pawns if cell not in listed]
    if missing:
        raise ValueError(f"{where}: {name}'s pawn on {missing[0]} is not listed")
