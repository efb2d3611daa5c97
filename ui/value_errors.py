"""How far the values that a game's texts state are from the exact ones: a column of the table of games.

Only what the player itself said at the board counts (`said.own_verdict`), against best play. Working it out replays
every game, so pages do it when somebody asks for it, and keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nlrl.agents.language import NO_MOVE
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.records import GAME_KINDS, Record
from nlrl.ui.exact import Solver
from nlrl.ui.game_records import game_of
from nlrl.ui.games_index import Error, Source
from nlrl.ui.reading import read_stage
from nlrl.ui.said import own_verdict

SECONDS = 20.0
"""For the exact values of all positions of one game (as in `breakthrough`); those that are not found then count not."""


def value_errors(sources: Iterable[Source], seconds: float = SECONDS) -> list[Error]:
    """The mean error of every game in which a value was stated and is known exactly.

    Raises:
        NLRLError: a record file is damaged before its last line.
    """
    judges: dict[str, _Judge | None] = {}
    return [
        Error(source.run, source.stage, record["key"], error)
        for source in sources
        for record in read_stage(source.folder)
        if record["kind"] in GAME_KINDS and (error := _error(source, record, judges, seconds)) is not None
    ]


def _error(source: Source, record: Record, judges: dict[str, _Judge | None], seconds: float) -> float | None:
    name = str(record.get("game", source.run))
    if name not in judges:
        judges[name] = _judge(source.folder.parents[2], record, seconds)
    judge = judges[name]
    return judge.error(record) if judge else None


def _judge(run: Path, record: Record, seconds: float) -> _Judge | None:
    """None for a game that is not known here or has no exact values."""
    try:
        return _Judge(game_of(run, record), seconds)
    except NLRLError:
        return None


class _Judge:
    """Errors of one game's records; what was said and what is true of a position is worked out once."""

    def __init__(self, game: Game[Any], seconds: float):
        self._game, self._solver = game, Solver(game, seconds)
        self._known: dict[Any, float | None] = {}

    def error(self, record: Record) -> float | None:
        """Mean over the turns; None where nothing was stated."""
        errors = [error for error in self._turns(record) if error is not None]
        return sum(errors) / len(errors) if errors else None

    def _turns(self, record: Record) -> Iterator[float | None]:
        try:
            line = line_of_record(self._game, record)
            turns = {turn["ply"]: turn["reply"] for turn in record.get("turns", ())}
        except (ValueError, KeyError, TypeError, IndexError):
            return  # no game that can be replayed: the Replay page says why
        replies = [turns.get(ply) for ply in range(len(line.states))]
        for state, action, reply in zip(line.states, (*line.actions, None), replies, strict=True):
            if not isinstance(reply, str):
                continue
            place = (state, action, reply)
            if place not in self._known:
                self._known[place] = self._one(*place)
            yield self._known[place]

    def _one(self, state: Any, action: int | None, reply: str) -> float | None:
        said = own_verdict(self._game, state, None if action == NO_MOVE else action, reply)
        exact = self._solver.exact(state).value if said is not None else None
        return None if said is None or exact is None else abs(said - exact)
