"""What is possible against a uniformly random player at Tic-Tac-Toe, exactly, half the games in each seat.

python benchmarks/tictactoe_references.py
"""

from __future__ import annotations

from functools import cache
from typing import Any

from nlrl.envs import make
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import TabularOracle
from nlrl.orchestration.exact import mixed_results

GAME = make("tictactoe")
ORACLE = TabularOracle(GAME)


@cache
def wins(state: Any, seat: int, never_loses: bool) -> float:
    """Most wins against a random player from a state; with `never_loses` among moves that keep the game's value."""
    if GAME.is_terminal(state):
        return float(GAME.returns(state)[seat] > 0)
    legal = GAME.legal_actions(state)
    if GAME.current_player(state) != seat:
        return sum(wins(GAME.apply(state, a).state, seat, never_loses) for a in legal) / len(legal)
    moves = ORACLE.best_actions(state) if never_loses else legal
    return max(wins(GAME.apply(state, a).state, seat, never_loses) for a in moves)


def main() -> None:
    start, random_player = GAME.initial_states()[0], make_opponent("random", GAME)

    class Uniform(dict[Any, dict[int | None, float]]):
        def __missing__(self, state: Any) -> dict[int | None, float]:
            return dict.fromkeys(GAME.legal_actions(state), 1.0)

    print(f"a random player wins      {mixed_results(GAME, Uniform(), random_player).win:.4f}")
    for label, never_loses in (("at best                  ", False), ("at best, never losing    ", True)):
        print(f"{label} {sum(wins(start, seat, never_loses) for seat in (0, 1)) / 2:.4f}")


if __name__ == "__main__":
    main()
