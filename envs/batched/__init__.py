"""Many games at once, as NumPy arrays, on one core.

1. `make_batched(game, size)` holds `size` games of the same rules. Tic-Tac-Toe and Breakthrough are arrays of bitboards
   under Numba kernels; any other game with few enough states is its `StateTable`, stepped by the same kind of kernel,
   chance included; the rest are played in a Python loop behind the same interface.
2. A game that ends starts again within the same `step`. What it ended as is not lost: `BatchedStep.final` holds the
   terminal states, `ended` whose they are.
3. Game i draws its moves from `Rng("batched", seed, i, "moves")` and its chance from `Rng("batched", seed, i,
   "chance")`, draw for draw as the scalar rules would. So a game does not depend on how many others there are, and
   `game.apply` replays it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from nlrl.envs.batched.batch import BatchedGame, BatchedStep
from nlrl.envs.game import Game
from nlrl.errors import NLRLError

__all__ = ["BatchedGame", "BatchedStep", "from_states", "make_batched"]

State = TypeVar("State")


def make_batched(game: Game[State], size: int, seed: int | str = 0) -> BatchedGame[State]:
    """`size` games, each in an initial state.

    Raises:
        ValueError: `size` is not a positive integer.
    """
    return _kind(game)(game, size, seed)


def from_states(game: Game[State], states: Sequence[State], seed: int | str = 0) -> BatchedGame[State]:
    """One game for each of `states`, which it goes on from.

    Raises:
        ValueError: there are none; or one is terminal or not a state of this game (the message says which).
    """
    batch = make_batched(game, len(states), seed)
    batch.reset(states)
    return batch


def _kind(game: Game[Any]) -> Any:
    """The fastest kind of batch that plays by exactly these rules: a subclass of a known game may have changed them."""
    from nlrl.envs.breakthrough import Breakthrough
    from nlrl.envs.tictactoe import TicTacToe

    if type(game) is TicTacToe:
        from nlrl.envs.batched.tictactoe import TicTacToeBatch

        return TicTacToeBatch
    if type(game) is Breakthrough:
        from nlrl.envs.batched.breakthrough import BreakthroughBatch

        return BreakthroughBatch
    return _table_or_loop


def _table_or_loop(game: Game[Any], size: int, seed: int | str) -> BatchedGame[Any]:
    from nlrl.envs.batched.loop import LoopBatch
    from nlrl.envs.batched.table import TableBatch

    try:
        return TableBatch(game, size, seed)
    except NLRLError:
        return LoopBatch(game, size, seed)
