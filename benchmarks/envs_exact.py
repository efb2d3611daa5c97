"""How long exact values take: tables, oracles and the solver, in processor time (they have no peer to run beside)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean, median
from typing import Any

from nlrl import envs
from nlrl.benchmarks.figures import Figure
from nlrl.benchmarks.timing import cpu_seconds_of
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import TabularOracle
from nlrl.envs.random import Rng

_FROM_NOTHING = """
import time
from nlrl.envs.oracle import TabularOracle
from nlrl.envs.tictactoe import TicTacToe
start = time.process_time()
TabularOracle(TicTacToe())
print(time.process_time() - start)
"""
"""In a process of its own, because rules and tables are remembered for as long as a process lives."""


def tables(rounds: int) -> Iterator[Figure]:
    """Tic-Tac-Toe's table and a maze's search."""
    game = envs.make("tictactoe")
    first = 1e3 * median(_seconds_of_process(_FROM_NOTHING) for _ in range(rounds))
    yield Figure("exact", "Tic-Tac-Toe", "all states enumerated and solved, first in a process", first, "ms")
    again = _milliseconds(lambda: TabularOracle(game), rounds)
    yield _limited("Tic-Tac-Toe", "V* and Q* of all states, after the first call", again, 50, "ms")
    oracle = TabularOracle(game)
    array = oracle.table.probabilities(make_opponent("random", game))
    for name, call in {
        "V^pi and Q^pi of a policy": lambda: oracle.policy_value(array),
        "best response to a policy": lambda: oracle.best_response(array, seat=0),
        "exploitability of a policy": lambda: oracle.exploitability(array),
    }.items():
        yield Figure("exact", "Tic-Tac-Toe", name, _milliseconds(call, rounds), "ms")
    envs.make("maze").make_oracle()  # so that no import is timed
    yield _limited("maze double_t", "search, and the value of every start", _milliseconds(_maze, rounds), 5, "ms")


def _limited(what: str, name: str, value: float, at_most: float, unit: str) -> Figure:
    return Figure("exact", what, name, value, unit, target=f"at most {at_most:g}", met=value <= at_most)


def _milliseconds(call: Callable[[], object], rounds: int) -> float:
    return 1e3 * median(cpu_seconds_of(call) for _ in range(rounds))


def _seconds_of_process(code: str) -> float:
    """What `code` prints."""
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def _maze() -> None:
    maze = envs.make("maze")
    oracle = maze.make_oracle()
    for state in maze.initial_states():
        oracle.value(state)


def solver(rows: int = 5, columns: int = 5, positions: int = 3000) -> Iterator[Figure]:
    """The exact solver of Breakthrough, from an empty table; its code is compiled before."""
    small, game = envs.make("breakthrough", rows=3, columns=3), envs.make("breakthrough", rows=rows, columns=columns)
    with _no_saved_table():
        small.make_oracle().value(small.initial_states()[0])
        oracle, start, what = game.make_oracle(), game.initial_states()[0], f"Breakthrough {rows}x{columns}"
    yield _limited(what, "the start, cold", cpu_seconds_of(lambda: oracle.value(start)), 15, "s")
    later = [random_position(game, Rng("bench", i)) for i in range(positions)]
    times = [1e3 * cpu_seconds_of(partial(oracle.value, state)) for state in later]
    yield _limited(what, f"then mean of {positions} positions of random play", mean(times), 2, "ms")


@contextlib.contextmanager
def _no_saved_table() -> Iterator[None]:
    """Oracles made meanwhile find no table of an earlier day."""
    with tempfile.TemporaryDirectory() as empty, unittest.mock.patch.dict(os.environ, NLRL_CACHE=empty):
        yield


def random_position(game: Any, rng: Rng) -> Any:
    """A position that is not terminal, uniformly from the plies of one random game."""
    states = [game.initial_state(rng)]
    while not game.is_terminal(states[-1]):
        states.append(game.apply(states[-1], rng.choice(game.legal_actions(states[-1])), rng).state)
    return rng.choice(states[:-1])
