"""How long answers took, beside the records and never in them: RUN/iterations/003/rollout/timings.jsonl.

1. A line is one record's: `{"key": ..., "turns": [[ply, attempt, asked, microseconds, tokens, stored], ...]}`, `asked`
   in milliseconds since 1970: whole numbers, which are written quickly. Records must be equal byte for byte however
   often a run is interrupted, and times are not, so they have a file of their own.
2. No manifest names the file and `verify` does not look at it. Without it nothing is lost but the times themselves.
3. A time is that of the request that made the answer, waiting in the queue and in its batch included. A policy's
   answers are kept and drawn from; a turn whose answer was whole before it was asked for is `stored`: its time was
   spent then, for another turn.
4. What workers found out comes back with their results, and the driver writes it: workers may be on other machines.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from nlrl.agents.asking import Reply
from nlrl.backbones.language_model import Timing
from nlrl.orchestration.players import Play

TIMINGS_FILE = "timings.jsonl"
MOST_BYTES = 1 << 28
"""Of one stage's file; what comes after that is left out."""
_log = logging.getLogger(__name__)
Line = tuple[str, list[tuple[Any, ...]]]
"""A record's key and its rows, as they are written."""


class TurnTiming(NamedTuple):
    """One attempt at one turn."""

    ply: int | None
    """None for records that are one text."""
    attempt: int
    """From 0; those before the last could not be read, or named no legal move."""
    asked: float
    """When its request was taken on, in seconds since 1970."""
    milliseconds: float
    """Until its answer was whole."""
    tokens: int
    """Generated."""
    stored: bool
    """The answer was there before this turn asked for it."""

    @property
    def tokens_per_second(self) -> float | None:
        """Of this answer alone; others were written beside it."""
        return 1000 * self.tokens / self.milliseconds if self.milliseconds > 0 else None


# -- noting ------------------------------------------------------------------------------------------------------------
def of_play(key: str, play: Play) -> Line:
    """The times of a game's turns."""
    rows: list[tuple[Any, ...]] = []
    for ply, reply in play.replies.items():
        rows += _rows(ply, reply, play.asked.get(ply, 0.0))
    return key, rows


def of_texts(keys: Iterable[str], replies: Iterable[Reply[Any]], asked: float = 0.0) -> list[Line]:
    """The times of records that are one text each."""
    return [(key, _rows(None, reply, asked)) for key, reply in zip(keys, replies, strict=True)]


def _rows(ply: int | None, reply: Reply[Any], asked: float) -> list[tuple[Any, ...]]:
    completion = reply.completion
    if not reply.earlier:  # nearly always
        return [_row(ply, 0, completion.timing, len(completion.tokens), asked)] if completion.timing else []
    attempts = (*reply.earlier, (completion.timing, len(completion.tokens)))
    return [_row(ply, i, timing, tokens, asked) for i, (timing, tokens) in enumerate(attempts) if timing]


def _row(ply: int | None, attempt: int, timing: Timing, tokens: int, asked: float) -> tuple[Any, ...]:
    began, took = timing
    return ply, attempt, int(1e3 * began), int(1e6 * took), tokens, 1 if began + took < asked else 0


class Notes(Protocol):
    """Where times are taken down."""

    def note(self, lines: Iterable[Line]) -> None: ...


class Collected:
    """Keeps times until a worker's result is sent."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def note(self, lines: Iterable[Line]) -> None:
        self._lines += lines

    def take(self) -> list[Line]:
        taken, self._lines = self._lines, []
        return taken


class Timings:
    """Writes the file of the stage that is being run; outside of stages it takes nothing down. A disk that refuses
    costs the times, and never the run."""

    def __init__(self) -> None:
        self._file: int | None = None

    def open(self, stage_dir: Path) -> None:
        """Begins (or goes on with) the file of a stage."""
        try:
            stage_dir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(stage_dir / TIMINGS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            self._room = MOST_BYTES - os.fstat(self._file).st_size
        except OSError as error:
            self._give_up(error)

    def note(self, lines: Iterable[Line]) -> None:
        """Takes times down."""
        if self._file is None:
            return
        data = b"".join(orjson.dumps({"key": key, "turns": rows}) + b"\n" for key, rows in lines if rows)
        if not data or len(data) > self._room:
            return
        self._room -= len(data)
        try:
            os.write(self._file, data)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _give_up(self, error: OSError) -> None:
        _log.warning("times of answers are not kept: %s", error)
        self.close()


# -- reading -----------------------------------------------------------------------------------------------------------
def read(stage_dir: str | Path, key: str) -> list[TurnTiming]:
    """The times of one record's turns, by ply and attempt; none, if they were not kept.

    Args:
        stage_dir: RUN/iterations/003/rollout.
    """
    needle, found = f'"key":"{key}"'.encode(), dict[tuple[int, int], TurnTiming]()
    for line in _lines(Path(stage_dir)):
        if needle in line and (known := _parsed(line)) and known[0] == key:
            found = {(-1 if row.ply is None else row.ply, row.attempt): row for row in known[1]}
    return [found[at] for at in sorted(found)]


def read_all(stage_dir: str | Path) -> Iterator[tuple[str, list[TurnTiming]]]:
    """(key, its times) of every line that can be read; a record that was made twice may come twice."""
    for line in _lines(Path(stage_dir)):
        if known := _parsed(line):
            yield known


def _lines(stage_dir: Path) -> Iterator[bytes]:
    try:
        with open(stage_dir / TIMINGS_FILE, "rb") as file:
            yield from file
    except OSError:
        return


def _parsed(line: bytes) -> tuple[str, list[TurnTiming]] | None:
    """None for a torn line, or one that somebody else wrote: times are never worth an error."""
    try:
        entry = orjson.loads(line)
        return str(entry["key"]), [_turn(row) for row in entry["turns"]]
    except (ValueError, TypeError, KeyError):
        return None


def _turn(row: Any) -> TurnTiming:
    ply, attempt, asked, micro, tokens, stored = row
    return TurnTiming(
        None if ply is None else int(ply), int(attempt), asked / 1e3, micro / 1e3, int(tokens), bool(stored)
    )
