"""Checks that a foreign game is the same whenever, wherever and beside whatever else it is played.

Where a series differs from the one played alone, something outside the game had a say in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from nlrl.envs.random import Rng
from nlrl.envs.testing.env_play import Plan, env_after, play, require_equal, series
from nlrl.envs.testing.foreign import Frame, TextEnv
from nlrl.envs.testing.replay import eager_switching, in_turns
from nlrl.envs.testing.report import NotApplicable, require
from nlrl.envs.testing.sample import global_generators


def _alone(plan: Plan) -> list[tuple[Frame, ...]]:
    return [tuple(series(plan.make(), seed, plan)) for seed in plan.seeds]


# -- seeds -------------------------------------------------------------------------------------------------------------
def equal_seeds(plan: Plan) -> None:
    for first, second in zip(_alone(plan), _alone(plan), strict=True):
        require_equal(second, first, "the same seed gave another game")


def seeds_matter(plan: Plan) -> None:
    if not plan.make().chance:
        raise NotApplicable("nothing is drawn at random")
    games = {tuple(play(plan.make(), seed, plan, choices=0)) for seed in range(20)}
    require(len(games) > 1, "20 seeds gave the same game: the seed is ignored")


def reset_leaves_nothing(plan: Plan) -> None:
    used = plan.make()
    for seed in plan.seeds:
        tuple(play(used, seed + 1, plan, choices=seed + 1))
        expected = tuple(play(plan.make(), seed, plan, choices=seed))
        require_equal(tuple(play(used, seed, plan, choices=seed)), expected, "after another game, a game differs")


# -- company -----------------------------------------------------------------------------------------------------------
def stepped_in_turns(plan: Plan) -> None:
    for order in ("in turns", "at random"):
        games = in_turns([series(plan.make(), seed, plan) for seed in plan.seeds], order)
        for game, alone in zip(games, _alone(plan), strict=True):
            require_equal(game, alone, f"stepped {order} with others, a series of two games differs")


def worker_threads(plan: Plan) -> None:
    """Every round of steps goes through a pool, as in vectorised environments."""
    expected = _alone(plan)
    for workers in (1, len(plan.seeds)):
        with ThreadPoolExecutor(workers) as pool, eager_switching():
            games = [series(plan.make(), seed, plan) for seed in plan.seeds]
            for game, alone in zip(_in_rounds(games, pool), expected, strict=True):
                require_equal(game, alone, f"with {workers} worker thread(s), a series of two games differs")


def _in_rounds(games: Sequence[Iterator[Frame]], pool: ThreadPoolExecutor) -> list[tuple[Frame, ...]]:
    seen: list[list[Frame]] = [[] for _ in games]
    while any(frames := list(pool.map(lambda game: next(game, None), games))):
        for one, frame in zip(seen, frames, strict=True):
            one += [] if frame is None else [frame]
    return [tuple(one) for one in seen]


def global_generators_untouched(plan: Plan) -> None:
    before = global_generators()
    env = plan.make()
    require(global_generators() == before, "making the environment used or seeded a global random generator")
    env.reset(plan.seeds[0])
    require(global_generators() == before, "reset used or seeded a global random generator")
    for _ in series(env, plan.seeds[0], plan):
        pass
    require(global_generators() == before, "step used or seeded a global random generator")


def copies(plan: Plan) -> None:
    """Play on a deep copy leaves the original alone, and both go on alike."""
    for seed in plan.seeds:
        env, frame = env_after(plan, seed, 2)
        if not frame.done:
            ahead = _go_on(copy.deepcopy(env), plan)
            require_equal(_go_on(env, plan), ahead, "after play on a deep copy, the original goes on differently")


def _go_on(env: TextEnv, plan: Plan) -> tuple[Frame, ...]:
    rng, frames = Rng("go on"), []
    for _ in range(plan.max_steps):
        if not (moves := env.moves()):
            break
        frames.append(env.step(rng.choice(moves)))
        if frames[-1].done:
            break
    return tuple(frames)
