"""`check_game` and `report_game`: every promise of `Game`, in the order in which they are easiest to mend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.testing import exact, replay, rules, texts
from nlrl.envs.testing.report import Report, run
from nlrl.envs.testing.sample import Sample

PROMISES: dict[str, Callable[[Sample], None]] = {
    "declarations are consistent": rules.declarations,
    "equal parameters make equal games": rules.remaking,
    "states say whose turn it is and what is legal": rules.states,
    "illegal actions raise ValueError and change nothing": rules.illegal_actions,
    "moves lead to one of their outcomes and change nothing": rules.outcomes,
    "games end in time and pay what they say": rules.ends,
    "a cut game is not a drawn game": rules.truncation,
    "a reply without a move costs something and play goes on": rules.invalid_replies,
    "text of a state parses back": texts.state_texts,
    "each player has a view that depends on the state alone": texts.views,
    "moves have texts of their own, and nothing else is a move": texts.move_texts,
    "pictures are well-formed and self-contained": texts.pictures,
    "symmetric states are alike": rules.symmetries,
    "a clone is independent": replay.clones,
    "reset leaves nothing behind": replay.resetting,
    "equal seeds give equal games in any interleaving": replay.interleaving,
    "equal seeds give equal games with any number of workers": replay.workers,
    "exact values agree with the rules": exact.oracle,
    "global random generators are untouched": replay.generators,
}
"""Promise -> its check. The last one looks back at all the others."""


def check_game(make: Callable[[], Game[Any]], games: int = 30, seed: int = 0, workers: int = 2) -> None:
    """Checks the game that `make` gives, on `games` random games.

    A game with two players must end within `max_length` moves by its own rules; one with a single player, whose states
    may recur, is cut there.

    Args:
        make: makes the game; called several times.
        workers: play in 1, 2, ... `workers` threads, and in another process; 0 leaves that out.

    Raises:
        AssertionError: a promise of `Game` is broken; the message says which, and in which state.
    """
    sample = Sample(make, games, seed, workers)
    for promise, check in PROMISES.items():
        found = run(promise, partial(check, sample))
        if found.ok is False:
            raise AssertionError(f"{found.promise}: {found.message}")


def report_game(
    game: str | Game[Any] | Callable[[], Game[Any]], games: int = 30, seed: int = 0, workers: int = 2
) -> Report:
    """All promises, kept or not: `print(report_game("tictactoe"))`; arguments as in `check_game`.

    Args:
        game: a spec such as `breakthrough(rows=4,columns=4)`, a game, or what makes one.

    Raises:
        GameError: there is no game of this spec.
    """
    make = _maker(game)
    sample = Sample(make, games, seed, workers)
    return Report(make().spec, [run(promise, partial(check, sample)) for promise, check in PROMISES.items()])


def _maker(game: str | Game[Any] | Callable[[], Game[Any]]) -> Callable[[], Game[Any]]:
    if isinstance(game, str):
        make_from_spec(game)
        return partial(make_from_spec, game)
    if isinstance(game, Game):
        return partial(type(game), **game.params)
    return game
