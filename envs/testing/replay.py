"""Checks that a game is the same whenever, wherever and beside whatever else it is played.

A *trace* is everything there is to see in one random game: states, turns, legal moves, texts, views and rewards. It may
depend on the game and the seed and on nothing else.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.envs.testing.report import NotApplicable, require
from nlrl.envs.testing.sample import Sample, global_generators

_GAMES = 4
"""Games that are played in turns or at once."""
_UNKNOWN_CLASS = 3
"""Exit status of a worker that cannot import the game's class."""

Trace = tuple[Any, ...]


def trace(game: Game[Any], seed: int) -> Iterator[Any]:
    """Plays the random game `seed` and yields what there is to see, step by step."""
    rng = Rng("trace", seed)
    state, rewards = game.initial_state(rng), None
    for _ in range(game.max_length + 1):
        legal = game.legal_actions(state)
        seen = tuple(game.observation_text(state, player) for player in range(game.num_players))
        moves = tuple(game.action_text(state, action) for action in legal)
        yield state, rewards, game.current_player(state), legal, moves, game.returns(state), game.to_text(state), seen
        if not legal:
            return
        step = game.apply(state, rng.choice(legal), rng)
        state, rewards = step.state, step.rewards


def _alone(sample: Sample) -> list[Trace]:
    """Each game by itself, in a fresh instance."""
    return [tuple(trace(sample.make(), seed)) for seed in range(_GAMES)]


def resetting(sample: Sample) -> None:
    """A game after others, in an instance that played them, is the game that a fresh instance plays."""
    used = sample.make()
    for seed, expected in enumerate(_alone(sample)):
        tuple(trace(used, seed + 1))
        _require_equal(tuple(trace(used, seed)), expected, "a game must not depend on the games before it")


def interleaving(sample: Sample) -> None:
    """Games stepped in turns, in one instance or in one each, are the games played alone."""
    expected = _alone(sample)
    shared = sample.make()
    for games in ([shared] * _GAMES, [sample.make() for _ in range(_GAMES)]):
        for order in ("in turns", "at random"):
            played = in_turns([trace(game, seed) for seed, game in enumerate(games)], order)
            for one, alone in zip(played, expected, strict=True):
                _require_equal(one, alone, f"games stepped {order} must not change one another")


def in_turns(games: Sequence[Iterator[Any]], order: str = "in turns") -> list[Trace]:
    """Steps all games until each is over, round by round or at random."""
    rng, seen = Rng("in_turns"), [[] for _ in games]
    waiting = list(range(len(games)))
    while waiting:
        for index in list(waiting) if order == "in turns" else [rng.choice(waiting)]:
            try:
                seen[index].append(next(games[index]))
            except StopIteration:
                waiting.remove(index)
    return [tuple(one) for one in seen]


# -- workers -----------------------------------------------------------------------------------------------------------
def workers(sample: Sample) -> None:
    """Games played by threads, and by a fresh process, are the games played alone."""
    if not sample.workers:
        raise NotApplicable("workers=0")
    expected, game = _alone(sample), sample.make()
    for count in range(1, sample.workers + 1):
        with ThreadPoolExecutor(count) as pool, eager_switching():
            played = list(pool.map(lambda seed: tuple(trace(game, seed)), range(_GAMES)))
        for one, alone in zip(played, expected, strict=True):
            _require_equal(one, alone, f"games must be the same with {count} worker threads")
    for one, alone in zip(_in_a_process(game), expected, strict=True):
        _require_equal(one, alone, "games must be the same in another process")


@contextmanager
def eager_switching() -> Iterator[None]:
    """Threads give way to one another as often as Python lets them, so that races show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _in_a_process(game: Game[Any]) -> list[Trace]:
    """Traces from a fresh interpreter, which hashes strings differently.

    Raises:
        NotApplicable: the interpreter cannot import the game's class.
    """
    environment = os.environ | {"PYTHONHASHSEED": "20201"}
    work = pickle.dumps((sys.path, pickle.dumps(game), _GAMES))
    command = [sys.executable, "-c", "from nlrl.envs.testing.replay import serve; serve()"]
    done = subprocess.run(command, input=work, capture_output=True, env=environment, timeout=120)
    if done.returncode == _UNKNOWN_CLASS:
        where = f"{type(game).__module__}.{type(game).__qualname__}"
        raise NotApplicable(f"same in threads; not tried in a process: a fresh one cannot import {where}")
    reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    require(done.returncode == 0, f"another process must be able to play the game, not fail with {reason}")
    return pickle.loads(done.stdout)


def serve() -> None:
    """The other process: reads a game from standard input, writes its traces to standard output."""
    sys.path[:], game, games = pickle.load(sys.stdin.buffer)
    try:
        game = pickle.loads(game)
    except (ImportError, AttributeError):
        sys.exit(_UNKNOWN_CLASS)
    traces = [tuple(trace(game, seed)) for seed in range(games)]
    sys.stdout.buffer.write(pickle.dumps(traces))


# -- clones ------------------------------------------------------------------------------------------------------------
_COPIES: dict[str, Callable[[Any], Any]] = {
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
}


def clones(sample: Sample) -> None:
    """A copy of a state is that state, and playing on from the copy leaves the original alone."""
    game = sample.game
    for playout in sample.playouts:
        middle = playout.states[len(playout.states) // 2]
        for how, make_copy in _COPIES.items():
            clone = make_copy(middle)
            require(clone == middle and hash(clone) == hash(middle), f"a state must equal its {how}", middle)
            before = (pickle.dumps(middle), repr(middle), game.to_text(middle), game.legal_actions(middle))
            _play_on(game, clone)
            after = (pickle.dumps(middle), repr(middle), game.to_text(middle), game.legal_actions(middle))
            require(before == after, f"playing on from a {how} of a state must not change the state", middle)


def _play_on(game: Game[Any], state: Any) -> None:
    rng = Rng("clone")
    for _ in range(game.max_length):
        if not (legal := game.legal_actions(state)):
            return
        state = game.apply(state, rng.choice(legal), rng).state


# -- global generators -------------------------------------------------------------------------------------------------
def generators(sample: Sample) -> None:
    """After all that the other checks did, Python's and numpy's global generators stand where they stood."""
    tuple(trace(sample.make(), 0))
    require(global_generators() == sample.generators, "a global random generator was used or seeded")


_PARTS = ("state", "rewards", "current_player", "legal_actions", "action_text", "returns", "to_text", "a view")


def _require_equal(one: Trace, other: Trace, promise: str) -> None:
    """Requires equal traces, naming the first difference."""
    if one == other:
        return
    step, (now, then) = next(
        ((n, pair) for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        (min(len(one), len(other)), (None, None)),
    )
    if now is None or then is None:
        raise AssertionError(f"{promise}: one game has {len(one)} states, the other {len(other)}")
    part = next(n for n, (a, b) in enumerate(zip(now, then, strict=True)) if a != b)
    raise AssertionError(f"{promise}: {_PARTS[part]} at step {step} is {now[part]!r}, not {then[part]!r}")
