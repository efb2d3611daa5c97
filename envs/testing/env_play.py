"""Playing foreign environments with seeded replies, and comparing what was seen.

A *series* is two games in a row, one after `reset(seed)` and one after `reset(None)`, as training loops and
auto-resetting drivers play them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from nlrl.envs.random import Rng
from nlrl.envs.testing.foreign import Frame, TextEnv
from nlrl.envs.testing.report import require

STUCK = Frame(-1, "nobody can move, yet the game is not over")
"""Stands at the end of a game in which somebody should move and cannot."""
_SHOWN = 60
"""Characters of an observation that a message quotes."""


class Plan(NamedTuple):
    """What to check and how much."""

    make: Callable[[], TextEnv]
    seeds: range
    more_seeds: range
    """Of games that are only played through."""
    max_steps: int


def play(env: TextEnv, seed: int | None, plan: Plan, choices: int) -> Iterator[Frame]:
    """One game: the frames from reset to end, with replies drawn by the generator `choices`."""
    rng, frame = Rng("replies", choices), env.reset(seed)
    yield frame
    for _ in range(plan.max_steps):
        if frame.done:
            return
        if not (moves := env.moves()):
            yield STUCK
            return
        frame = env.step(rng.choice(moves))
        yield frame


def series(env: TextEnv, seed: int, plan: Plan) -> Iterator[Frame]:
    """Two games in a row: `reset(seed)`, then `reset(None)`."""
    yield from play(env, seed, plan, seed)
    yield from play(env, None, plan, seed + 1)


def env_after(plan: Plan, seed: int, moves: int) -> tuple[TextEnv, Frame]:
    """A fresh environment after the first `moves` moves of game `seed`."""
    env, rng = plan.make(), Rng("replies", seed)
    frame = env.reset(seed)
    for _ in range(moves):
        if not frame.done and (legal := env.moves()):
            frame = env.step(rng.choice(legal))
    return env, frame


def require_equal(one: Sequence[Frame], other: Sequence[Frame], promise: str) -> None:
    for step, (now, then) in enumerate(zip(one, other, strict=False)):
        for field, a, b in zip(Frame._fields, now, then, strict=True):
            require(a == b, f"{promise}: {field} of frame {step} is {_differs(a, b)}")
    require(len(one) == len(other), f"{promise}: {len(one)} frames, not {len(other)}")


def _differs(a: Any, b: Any) -> str:
    """Both values, texts from where they part."""
    if not isinstance(a, str) or not isinstance(b, str):
        return f"{a!r}, not {b!r}"
    same = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, same - 20)
    return f"{short(a[start:])}, not {short(b[start:])} ({len(a)} characters, not {len(b)})"


def short(text: str | None) -> str:
    return repr(text if text is None or len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
