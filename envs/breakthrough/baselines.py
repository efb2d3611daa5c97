"""Guesses at who wins that look one move ahead at most: what a learned evaluation has to beat.

Each is +1.0 if it gives the game to the player to move, else -1.0; ties go to the player to move.
"""

from __future__ import annotations

from collections.abc import Callable

from nlrl.envs.breakthrough import tactics
from nlrl.envs.breakthrough.board import Board, BreakthroughState

Guess = Callable[[Board, BreakthroughState], float]


def mover(board: Board, state: BreakthroughState) -> float:
    """The player to move wins."""
    return 1.0


def material(board: Board, state: BreakthroughState) -> float:
    """Whoever has more pawns wins."""
    return 1.0 if state[state.player].bit_count() >= state[1 - state.player].bit_count() else -1.0


def race(board: Board, state: BreakthroughState) -> float:
    """Whoever is nearer to the far row wins."""
    mine, theirs = (tactics.foremost(board, state, player)[0] for player in (state.player, 1 - state.player))
    return 1.0 if mine <= theirs else -1.0


def at_sight(board: Board, state: BreakthroughState) -> float | None:
    """What is decided: a win at once, or a threat to win at once that cannot be taken off the board; else None.

    A pawn one row from the far row can always go on, so only taking it helps, and two such pawns are one too many.
    """
    player = state.player
    if tactics.winning_moves(board, state, player):
        return 1.0
    rows, threats = tactics.foremost(board, state, 1 - player)
    takeable = {board.moves[player][action][1].bit_length() - 1 for action in tactics.captures(board, state, player)}
    return -1.0 if rows == 1 and (len(threats) > 1 or not takeable.issuperset(threats)) else None


def three_rules(board: Board, state: BreakthroughState) -> float:
    """A win at once; else a threat that cannot be met; else `material`."""
    decided = at_sight(board, state)
    return material(board, state) if decided is None else decided


GUESSES: dict[str, Guess] = {
    "player to move": mover,
    "nearer to the far row": race,
    "more pawns": material,
    "three rules": three_rules,
}
"""By the names that tables give them."""
