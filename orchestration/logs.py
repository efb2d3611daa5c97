"""Log lines: for people on a terminal, plain lines in a file or a job's log, JSON for machines.

Standard-library logging throughout, because Ray, vLLM and transformers speak it too. What the program is doing (run,
iteration, stage) travels in a context variable, so that a message from deep inside says where it comes from without
passing it down; calls take it along to the processes of workers. A message about one game says so itself: `about`.

Messages may quote what a model wrote: control characters are written as escapes, and no such text begins a line.
Values of environment variables that hold keys, and passwords in addresses, are left out.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrl.orchestration.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

MOST_BYTES = 16 << 20
"""Of a log file; one older one of that size is kept beside it."""
HIDDEN = "***"
_KEYS = re.compile(r"(?i)key|token|secret|passw")
"""Names of environment variables whose values are nobody's business."""
_SHORTEST_KEY = 8
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_context: ContextVar[dict[str, Any]] = ContextVar("nlrl_log_context", default={})  # noqa: B039 - replaced, never changed
_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s%(context)s"
_keys: re.Pattern[str] | None = None


# -- context -----------------------------------------------------------------------------------------------------------
@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Every message inside the block carries `fields` as well as those of enclosing blocks."""
    token = _context.set(_context.get() | fields)
    try:
        yield
    finally:
        _context.reset(token)


def context() -> dict[str, Any]:
    """What messages carry now. Not to be changed."""
    return _context.get()


def about(game: str, ply: int | None = None) -> dict[str, Any]:
    """`log.info("...", extra=about(key, 3))`: a message about one game, or one of its turns."""
    return {"about": {"game": game} | ({} if ply is None else {"ply": ply})}


class Seldom:
    """Lets so many messages through in so many seconds, and counts the others: for what may happen in every game."""

    def __init__(self, most: int = 20, seconds: float = 60.0):
        self._most, self._seconds = most, seconds
        self._since, self._said, self.unsaid = 0.0, 0, 0

    def __bool__(self) -> bool:
        now = time.monotonic()
        if now - self._since >= self._seconds:
            self._since, self._said = now, 0
        self._said += 1
        if self._said > self._most:
            self.unsaid += 1
        return self._said <= self._most

    def take(self) -> int:
        """How many were not said since the last call."""
        unsaid, self.unsaid = self.unsaid, 0
        return unsaid


# -- set-up ------------------------------------------------------------------------------------------------------------
def setup_logging(level: str = "info", json_lines: bool = False, secrets: Sequence[str] = ()) -> None:
    """Sends log messages to stderr: this project's from `level` up, everybody else's from "warning" up.

    For programs, not for libraries; calling it again replaces the earlier set-up.

    Args:
        level: "debug", "info", "warning" or "error".
        json_lines: one JSON object a line instead of text for people.
        secrets: environment variables that hold keys, besides those whose names say so.
    """
    global _keys
    _keys = _known_keys(os.environ, secrets)
    handler = _json_handler() if json_lines else _terminal_handler() if console().is_terminal else _plain_handler()
    _install(handler, "nlrl")
    logging.getLogger("nlrl").setLevel(level.upper())


def writes_json() -> bool:
    """Whether lines on stderr are for machines."""
    ours = [handler for handler in logging.getLogger().handlers if handler.get_name() == "nlrl"]
    return any(isinstance(handler.formatter, JsonFormatter) for handler in ours)


def add_log_file(folder: Path, process: str) -> logging.Handler | None:
    """Also writes messages, as JSON lines, to FOLDER/PROCESS.jsonl; None if the disk refuses, which is no reason to
    stop."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]", "_", process)
        handler = RotatingFileHandler(folder / f"{name}.jsonl", maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8")
    except OSError as error:
        logging.getLogger(__name__).warning("no log file: %s", error)
        return None
    handler.setFormatter(JsonFormatter(process))
    handler.handleError = lambda record: None  # a full disk: the run tells of it where it matters
    _install(handler, "nlrl file")
    return handler


def remove_log_file(handler: logging.Handler | None) -> None:
    """Ends what `add_log_file` began."""
    if handler is not None:
        logging.getLogger().removeHandler(handler)
        handler.close()


@cache
def console() -> Console:
    """The one terminal (stderr) that log lines and progress bars share, so that neither tears the other."""
    from rich.console import Console

    return Console(stderr=True)


def _install(handler: logging.Handler, name: str) -> None:
    handler.addFilter(_ours_or_warning)
    handler.set_name(name)
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == name]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)


# -- form --------------------------------------------------------------------------------------------------------------
class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: time (UTC), level, logger, message, the context's fields, `game` and `ply` of
    messages about them, and the traceback if there is one."""

    def __init__(self, process: str = ""):
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_keys(record.getMessage()),
            **self._process,
            **_fields(record),
        }
        if record.exc_info:
            line["error"] = without_keys(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        record.context = f" [{fields}]" if fields else ""
        return visible(without_keys(super().format(record)))


def visible(text: str) -> str:
    """Text without control characters, but for tabs and ends of lines; lines after the first are indented."""
    return printable(text).replace("\n", "\n    ")


def without_keys(text: str) -> str:
    """Text without the keys that this process knows, and without passwords in addresses."""
    if "://" in text:
        text = _PASSWORD.sub(HIDDEN, text)
    return _keys.sub(HIDDEN, text) if _keys is not None else text


def _known_keys(environment: Mapping[str, str], secrets: Sequence[str]) -> re.Pattern[str] | None:
    values = {
        value
        for name, value in environment.items()
        if (_KEYS.search(name) or name in secrets) and len(value) >= _SHORTEST_KEY and not value.isdigit()
    }
    return re.compile("|".join(map(re.escape, sorted(values, key=len, reverse=True)))) if values else None


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return _context.get() | getattr(record, "about", {})


def _json_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    return handler


def _plain_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter(_PLAIN, "%H:%M:%S"))
    return handler


def _terminal_handler() -> logging.Handler:
    from rich.logging import RichHandler

    handler = RichHandler(console=console(), show_path=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
    handler.setFormatter(_PlainFormatter("%(message)s%(context)s"))
    return handler


def _ours_or_warning(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == "nlrl" or record.levelno >= logging.WARNING
