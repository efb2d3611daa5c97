"""How fast the rules and the exact tables are: `python benchmarks/envs.py`.

Rules: random Tic-Tac-Toe games, ours and OpenSpiel's (C++ behind Python) in turns on the same machine; a step is asking
for the legal moves, choosing one and playing it. Tables: the first call enumerates the game, later ones sweep over its
arrays.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from timeit import repeat

import pyspiel

from nlrl.envs import make
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import TabularOracle
from nlrl.envs.random import Rng
from nlrl.envs.state_table import StateTable

GAMES, ROUNDS = 5000, 7


def ours(games: int) -> int:
    """Plays random games; returns the number of moves."""
    game, rng, steps = make("tictactoe"), random.Random(0), 0
    for _ in range(games):
        state = game.initial_states()[0]
        while legal := game.legal_actions(state):
            state = game.apply(state, legal[int(rng.random() * len(legal))]).state
            steps += 1
    return steps


def openspiel(games: int) -> int:
    """The same with OpenSpiel."""
    game, rng, steps = pyspiel.load_game("tic_tac_toe"), random.Random(0), 0
    for _ in range(games):
        state = game.new_initial_state()
        while legal := state.legal_actions():
            state.apply_action(legal[int(rng.random() * len(legal))])
            steps += 1
    return steps


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rules() -> None:
    rates: dict[str, list[float]] = {"nlrl": [], "OpenSpiel": []}
    for _ in range(ROUNDS):
        for name, play in (("nlrl", ours), ("OpenSpiel", openspiel)):
            start = time.perf_counter()
            rates[name].append(play(GAMES) / (time.perf_counter() - start))
    print(f"random Tic-Tac-Toe, median of {ROUNDS} rounds of {GAMES} games, thousand steps/s")
    for name, values in rates.items():
        print(f"  {name:12}{median(values) / 1e3:8.0f}")
    print(f"  ratio nlrl / OpenSpiel {median(a / b for a, b in zip(*rates.values(), strict=True)):.2f}")
    game = make("tictactoe")
    state = game.initial_states()[0]
    calls = 200_000
    print(f"  apply alone {calls / 1e3 / min(repeat(lambda: game.apply(state, 4), number=calls, repeat=5)):8.0f}")


def tables() -> None:
    game = make("tictactoe")
    random_player = make_opponent("random", game)
    print(f"exact tables of {len(StateTable(game).states)} states, ms")
    print(f"  enumerate, once a process        {1e3 * seconds(lambda: StateTable(game)):7.2f}")
    oracle = TabularOracle(game)
    array = oracle.table.probabilities(random_player)
    calls: dict[str, Callable[[], object]] = {
        "V* and Q*": lambda: TabularOracle(game),
        "V^pi and Q^pi, policy as array": lambda: oracle.policy_value(array),
        "V^pi and Q^pi, policy as object": lambda: oracle.policy_value(random_player),
        "best response": lambda: oracle.best_response(array, seat=0),
        "exploitability": lambda: oracle.exploitability(array),
        "win, draw, loss": lambda: oracle.outcome(array),
    }
    for name, call in calls.items():
        print(f"  {name:33}{1e3 * median(seconds(call) for _ in range(20)):7.2f}")


def opponents() -> None:
    game = make("tictactoe")
    states = [game.initial_states()[0]] * 1000
    print("moves of opponents, thousand/s in batches of 1000")
    for name in ("random", "first-move", "minimax", "epsilon(0.25,minimax)"):
        player = make_opponent(name, game)
        rngs = [Rng(i) for i in range(len(states))]
        choose = partial(player.choose, states, rngs)
        print(f"  {name:22}{len(states) / 1e3 / median(seconds(choose) for _ in range(7)):8.0f}")


if __name__ == "__main__":
    rules()
    tables()
    opponents()
