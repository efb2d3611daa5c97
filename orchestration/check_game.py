"""`nlrl check GAME`: every promise of the platform's games, kept or broken."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from rich.table import Table

from nlrl.envs.testing import report_game
from nlrl.errors import NLRLError

_MARKS = {True: "kept", False: "[bold]BROKEN[/bold]", None: "does not apply"}


def check_table(game: str, games: int, seed: int) -> tuple[Table, int]:
    """The promises with what was found, and how many are broken.

    Args:
        game: a spec, as in `breakthrough(rows=5,columns=5)`, or `module:name` of a callable that makes a game.
    Raises:
        NLRLError: there is no such game.
    """
    report = report_game(_maker(game) if ":" in game else game, games=games, seed=seed)
    table = Table("promise", "", "what was found", title=f"{game}, {games} random games, seed {seed}")
    for check in report:
        table.add_row(check.promise, _MARKS[check.ok], check.message)
    return table, len(report.failed)


def _maker(path: str) -> Callable[[], Any]:
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NLRLError(f"{path!r}: {error}; write `package.module:name` of what makes your game") from None
