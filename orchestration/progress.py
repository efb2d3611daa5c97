"""How far a stage is: a bar on a terminal, a log line now and then everywhere else (a job's log, a pipe, CI)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from nlrl.orchestration.instruments import instruments
from nlrl.orchestration.logs import console, context, writes_json

if TYPE_CHECKING:
    import rich.progress

T = TypeVar("T")
_log = logging.getLogger(__name__)
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable in the entrypoint of a submitted job."""


class Progress(Protocol):
    """Use as a context manager: `with progress("rollout", 512) as bar: bar.advance()`."""

    def advance(self, steps: int = 1) -> None:
        """So many more are done."""
        ...

    def __enter__(self) -> Progress: ...

    def __exit__(self, *_: object) -> None: ...


def progress(name: str, total: int, done: int = 0, every: float = 30.0) -> Progress:
    """A progress display for `total` things (0: nobody knows how many), of which a resumed stage may have `done` some.

    Args:
        every: seconds between log lines where there is no terminal.
    """
    bars = console().is_terminal and _RAY_JOB not in os.environ and not writes_json()
    return _Counted(_Bar(name, total, done) if bars else _Lines(name, total, done, every), name, total, done)


def track(items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` while showing how many there have been."""
    items = items if total is not None else list(items)
    with progress(name, total if total is not None else len(items)) as bar:  # type: ignore[arg-type]
        for item in items:
            yield item
            bar.advance()


class Part(NamedTuple):
    """What is being shown: a stage may do several things, one after another."""

    name: str
    since: float
    """Seconds since 1970."""


def newest_part() -> Part | None:
    """What this process shows, or has shown last."""
    return _Counted.newest


class _Counted:
    """Also keeps count for metrics and heartbeats, which know the stage."""

    newest: Part | None = None

    def __init__(self, shown: Progress, name: str, total: int, done: int):
        self._shown, self._done, self._stage = shown, done, str(context().get("stage", ""))
        _Counted.newest = Part(name, time.time())
        for name, value in (("done", done), ("before", done), ("wanted", total)):
            instruments.set(f"nlrl_stage_{name}", value, self._stage)

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        instruments.set("nlrl_stage_done", self._done, self._stage)
        self._shown.advance(steps)

    def __enter__(self) -> _Counted:
        self._shown.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._shown.__exit__(*raised)


class _Bar:
    """A line of the display that all bars of this process share: a terminal can be redrawn by one only."""

    _display: rich.progress.Progress | None = None
    _open = 0
    _guard = threading.Lock()

    def __init__(self, name: str, total: int, done: int):
        self._name, self._total, self._done = name, total, done

    def advance(self, steps: int = 1) -> None:
        assert _Bar._display is not None, "advance inside the with block"
        _Bar._display.advance(self._task, steps)

    def __enter__(self) -> _Bar:
        with _Bar._guard:
            if _Bar._display is None:
                _Bar._display = _new_display()
                _Bar._display.start()
            _Bar._open += 1
            self._task = _Bar._display.add_task(self._name, total=self._total or None, completed=self._done)
        return self

    def __exit__(self, *_: object) -> None:
        with _Bar._guard:
            _Bar._open -= 1
            if _Bar._open == 0 and _Bar._display is not None:
                _Bar._display.stop()
                _Bar._display = None


class _Lines:
    """Log lines at the start, at intervals, and at the end."""

    def __init__(self, name: str, total: int, done: int, every: float):
        self._name, self._total, self._done, self._every = name, total, done, every
        self._first = done

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        if time.monotonic() >= self._next:
            self._say()

    def __enter__(self) -> _Lines:
        self._start = time.monotonic()
        self._say()
        return self

    def __exit__(self, *_: object) -> None:
        self._say()

    def _say(self) -> None:
        now = time.monotonic()
        self._next = now + self._every
        of = f" of {self._total}" if self._total else ""
        _log.info("%s: %d%s%s", self._name, self._done, of, self._pace(now - self._start))

    def _pace(self, seconds: float) -> str:
        made = self._done - self._first
        if not made:
            return ""
        left = (self._total - self._done) * seconds / made
        return f", {seconds:.0f} s" + (f", about {left:.0f} s left" if left > 0 else "")


def _new_display() -> rich.progress.Progress:
    from rich import progress as bars

    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        console=console(),
    )
