"""What the rules say about a position at a glance: wins in one move, captures, guards, races, runners. No search.

1. Every function takes the tables of the board, a position and a player, who need not be the one to move: it says what
   that player has, or could do if it were his turn.
2. Cells are numbered as in `rules`, from the top left; lists of them and of actions are in increasing order.
3. The far row of a player is the one he wins on; *rows to go* are the moves that a pawn needs to get there.
"""

from __future__ import annotations

from functools import lru_cache

from nlrl.envs.breakthrough.board import BLACK, Board, BreakthroughState

Cells = tuple[int, ...]
Actions = tuple[int, ...]
_KEPT = 1 << 15
"""Positions that each function remembers: texts ask the same of one position many times."""


def cells_of(bits: int) -> Cells:
    """The cells of a bitboard."""
    cells = []
    while bits:
        lowest = bits & -bits
        cells.append(lowest.bit_length() - 1)
        bits ^= lowest
    return tuple(cells)


def rows_to_go(board: Board, player: int, cell: int) -> int:
    """Moves that a pawn of `player` on `cell` needs to reach the far row."""
    row = cell // board.columns
    return board.rows - 1 - row if player == BLACK else row


@lru_cache(_KEPT)
def moves(board: Board, state: BreakthroughState, player: int) -> Actions:
    """What `player` could play."""
    own, enemy = state[player], state[1 - player]
    return tuple(
        action
        for action, (source, target, stop) in board.moves[player].items()
        if source & own and not target & own and not stop & enemy
    )


@lru_cache(_KEPT)
def captures(board: Board, state: BreakthroughState, player: int) -> Actions:
    """The moves that take a pawn: diagonal ones onto an enemy."""
    enemy, ways, found = state[1 - player], board.moves[player], []
    for cell in cells_of(state[player]):
        for action in (3 * cell, 3 * cell + 2):
            if action in ways and ways[action][1] & enemy:
                found.append(action)
    return tuple(found)


@lru_cache(_KEPT)
def winning_moves(board: Board, state: BreakthroughState, player: int) -> Actions:
    """The moves that win at once: to the far row, or taking the last pawn."""
    goal, enemy, ways = board.goals[player], state[1 - player], board.moves[player]
    return tuple(a for a in moves(board, state, player) if ways[a][1] & goal or ways[a][1] == enemy)


def winning_pawns(board: Board, state: BreakthroughState, player: int) -> Cells:
    """The pawns that have a winning move."""
    return tuple(sorted({action // 3 for action in winning_moves(board, state, player)}))


def foremost(board: Board, state: BreakthroughState, player: int) -> tuple[int, Cells]:
    """The rows to go of the pawns nearest to the far row, and those pawns."""
    pawns = cells_of(state[player])
    fewest = min(rows_to_go(board, player, cell) for cell in pawns)
    return fewest, tuple(cell for cell in pawns if rows_to_go(board, player, cell) == fewest)


def attacked(board: Board, state: BreakthroughState, player: int) -> int:
    """The pawns of `player` that the other side could take, as bits."""
    bits, ways = 0, board.moves[1 - player]
    for action in captures(board, state, 1 - player):
        bits |= ways[action][1]
    return bits


def guards(board: Board, state: BreakthroughState, player: int, cell: int) -> Cells:
    """The pawns of `player` that could take back on `cell`."""
    row, column = divmod(cell, board.columns)
    behind = row - 1 if player == BLACK else row + 1
    near = (behind * board.columns + c for c in (column - 1, column + 1) if 0 <= c < board.columns)
    return tuple(other for other in near if 0 <= behind < board.rows and state[player] >> other & 1)


def hanging(board: Board, state: BreakthroughState, player: int) -> Cells:
    """The pawns of `player` that the other side could take and nobody could take back."""
    pawns = cells_of(attacked(board, state, player))
    return tuple(cell for cell in pawns if not guards(board, state, player, cell))


def is_runner(board: Board, state: BreakthroughState, player: int, cell: int) -> bool:
    """Whether no enemy pawn could ever meet the pawn of `player` on `cell` on its way.

    Each move of either closes one row and shifts one column at most, so an enemy `d` rows ahead that is more than `d`
    columns aside can neither take it nor stand in its way, whatever both sides play.
    """
    ahead = 1 if player == BLACK else -1
    row, column = divmod(cell, board.columns)
    for other in cells_of(state[1 - player]):
        distance = (other // board.columns - row) * ahead
        if distance > 0 and abs(other % board.columns - column) <= distance:
            return False
    return True


@lru_cache(_KEPT)
def runners(board: Board, state: BreakthroughState, player: int) -> Cells:
    """The pawns that no enemy pawn could ever meet."""
    return tuple(cell for cell in cells_of(state[player]) if is_runner(board, state, player, cell))


@lru_cache(_KEPT)
def goals(board: Board, state: BreakthroughState, player: int) -> Cells:
    """The cells of the far row that some pawn of `player` could get to if nothing were in its way.

    None is ever added as the game goes on, so what may be reached later may be reached now.
    """
    far = cells_of(board.goals[player])
    pawns = [(cell % board.columns, rows_to_go(board, player, cell)) for cell in cells_of(state[player])]
    return tuple(g for g in far if any(abs(g % board.columns - column) <= rows for column, rows in pawns))
