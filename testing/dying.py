"""Runs `nlrl ...` in a process that kills itself at a chosen event of the file system.

    python -m nlrl.testing.dying any:137 RUN run config.toml     dies in the 137th event in the folder RUN
    python -m nlrl.testing.dying os.rename:3 RUN run ...         dies just before the third file takes its name
    python -m nlrl.testing.dying any:0 RUN run ...               lives, and prints how many events there were, by kind

Events are what a killed run may be caught in: `write` (half of the bytes of a record or a file are written, half are
not), `fsync`, and what Python's audit hooks tell: opening a file to write, rename, removal, truncation, new folder.
Nothing in the product knows of this.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

_AUDITED = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "shutil.rmtree")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Countdown:
    """Counts events below a folder; at the last one the process dies.

    Args:
        kind: which events count; "any" are all.
        last: number of the event, from 1; 0 counts only.
    """

    def __init__(self, kind: str, last: int, folder: str):
        self.seen: Counter[str] = Counter()
        self._last = kind, last
        self._folder = os.path.realpath(folder)

    def event(self, what: str, path: Any) -> None:
        if self.is_inside(path):
            self.seen.update((what, "any"))
            if self._last in ((what, self.seen[what]), ("any", self.seen["any"])):
                print(f"dies: {what} {os.path.basename(_named(path))}", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    def is_inside(self, path: Any) -> bool:
        return os.path.abspath(_named(path)).startswith(self._folder + os.sep)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDITED and (event != "open" or (arguments[2] or 0) & _WRITING):
            self.event(event, arguments[1] if event == "os.rename" else arguments[0])


def _named(path: Any) -> str:
    """The path of what may be an open file."""
    return os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)


def watch(countdown: Countdown) -> None:
    """From now on, events of this process count."""
    sys.addaudithook(countdown.audit)
    os.write = _in_halves(os.write, countdown)  # pyright: ignore[reportAttributeAccessIssue]
    os.fsync = _after(os.fsync, countdown)
    pathlib.Path.write_bytes = _write_bytes(countdown)  # pyright: ignore[reportAttributeAccessIssue]


def _in_halves(write: Callable[[int, Any], int], countdown: Countdown) -> Callable[[int, Any], int]:
    def halves(file: int, data: Any) -> int:
        if len(data) < 2 or not countdown.is_inside(file):
            return write(file, data)
        written = write(file, data[: len(data) // 2])
        countdown.event("write", file)
        return written  # whoever writes goes on with the rest

    return halves


def _after(sync: Callable[[int], None], countdown: Countdown) -> Callable[[int], None]:
    def synced(file: int) -> None:
        countdown.event("fsync", file)
        sync(file)

    return synced


def _write_bytes(countdown: Countdown) -> Callable[[pathlib.Path, bytes], int]:
    def halves(path: pathlib.Path, data: bytes) -> int:
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            countdown.event("write", path)
            file.write(data[len(data) // 2 :])
        return len(data)

    return halves


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    death, folder, *rest = arguments
    kind, _, last = death.partition(":")
    countdown = Countdown(kind, int(last), folder)
    watch(countdown)
    from nlrl.orchestration.cli import run_cli

    code = run_cli(rest)
    print(dict(countdown.seen), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
