"""Log lines: for people on a terminal, plain lines in a file or a job's log, JSON for machines.

Standard-library logging throughout, because Ray, vLLM and transformers speak it too. What the program is doing (run,
iteration, stage, game) travels in a context variable, so that a message from deep inside says where it comes from
without passing it down.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from nlrl.orchestration.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

_context: ContextVar[dict[str, Any]] = ContextVar("nlrl_log_context", default={})  # noqa: B039 - replaced, never changed
_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s%(context)s"


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Every message inside the block carries `fields` as well as those of enclosing blocks."""
    token = _context.set(_context.get() | fields)
    try:
        yield
    finally:
        _context.reset(token)


def setup_logging(level: str = "info", json_lines: bool = False) -> None:
    """Sends log messages to stderr: this project's from `level` up, everybody else's from "warning" up.

    For programs, not for libraries; calling it again replaces the earlier set-up.

    Args:
        level: "debug", "info", "warning" or "error".
        json_lines: one JSON object a line instead of text for people.
    """
    handler = _json_handler() if json_lines else _terminal_handler() if console().is_terminal else _plain_handler()
    handler.addFilter(_ours_or_warning)
    handler.set_name("nlrl")
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == "nlrl"]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("nlrl").setLevel(level.upper())


@cache
def console() -> Console:
    """The one terminal (stderr) that log lines and progress bars share, so that neither tears the other."""
    from rich.console import Console

    return Console(stderr=True)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the context's fields, and the traceback if there is
    one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_context.get(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _context.get().items())
        record.context = f" [{fields}]" if fields else ""
        return printable(super().format(record))


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
