"""`check_env(make)`: the promises that any text environment should keep, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nlrl.envs.testing import env_rules, env_seeds
from nlrl.envs.testing.env_play import Plan
from nlrl.envs.testing.foreign import TextEnv
from nlrl.envs.testing.report import Report, run

PROMISES: dict[str, Callable[[Plan], None]] = {
    "equal seeds give equal games": env_seeds.equal_seeds,
    "different seeds give different games": env_seeds.seeds_matter,
    "reset leaves nothing behind": env_seeds.reset_leaves_nothing,
    "games stepped in turns leave one another alone": env_seeds.stepped_in_turns,
    "games are the same in worker threads": env_seeds.worker_threads,
    "global random generators are untouched": env_seeds.global_generators_untouched,
    "a copy is independent": env_seeds.copies,
    "illegal replies change nothing": env_rules.illegal_changes_nothing,
    "whoever is to move has a move": env_rules.somebody_can_move,
    "moves are those of the rules": env_rules.rules_of_the_game,
    "truncation differs from an end": env_rules.truncation_is_told,
    "each player sees its own view": env_rules.own_views,
    "the terminal observation survives auto-reset": env_rules.terminal_observation,
}
"""Promise -> its check."""


def check_env(
    make: Callable[[], TextEnv],
    name: str = "",
    games: int = 4,
    more_games: int = 50,
    seed: int = 0,
    max_steps: int = 200,
) -> Report:
    """Checks the environment that `make` gives; each call of it must give an independent one.

    Args:
        name: heads the report.
        games: how many games are played in turns, in threads and again.
        more_games: how many are only played through, to see that somebody can always move.
        max_steps: a game is left after so many steps.
    """
    plan = Plan(make, range(seed, seed + games), range(seed, seed + more_games), max_steps)
    return Report(name, [run(promise, partial(check, plan)) for promise, check in PROMISES.items()])
