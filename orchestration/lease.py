"""Who writes a run that lies in a store.

    URL/.nlrl/terms/000004.json     the fourth writer: its name, its heartbeat, whether it has ended

1. Each writer holds a *term*, an object that only one can create; the highest term is the writer's. No clock decides
   who that is.
2. The holder rewrites its term every quarter of `seconds`. Another that wants to write watches the term: if it changes,
   the holder lives, and the newcomer is refused by its name; if it stays the same for `seconds`, the holder is dead and
   the next term is free to create. A holder that said it ended, or whose process is gone from this very machine, is
   not waited for.
3. A holder that was only asleep finds a higher term when it next looks (`check`), before anything it commits.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from nlrl.errors import NLRLError
from nlrl.orchestration.store import Store

FOLDER = ".nlrl/terms"
LONG_AGO = 3600.0
"""Seconds after which a term is dead by its own date; clocks of two machines may differ, but not by so much."""
_log = logging.getLogger(__name__)


class Lease:
    """The right to write a run. Made by `Lease.take`."""

    def __init__(self, store: Store, term: int, seconds: float, previous: int):
        self.term, self.seconds = term, seconds
        self.previous = previous
        """The last term before this one; 0 if this is the first."""
        self._store, self._beat, self._stopped = store, 0, threading.Event()
        self._token = secrets.token_hex(8)
        self._thread: threading.Thread | None = None

    @classmethod
    def take(cls, store: Store, seconds: float) -> Lease:
        """Takes the next term, waiting up to `seconds` of the holder's to see whether it lives.

        Raises:
            NLRLError: somebody else writes this run, or the store refuses.
        """
        while True:
            last = latest(store)
            if last and not _is_over(told := _read(store, last)):
                _watch(store, last, told)
            lease = cls(store, last + 1, seconds, last)
            if store.create(_name(lease.term), lease._words()) and latest(store) == lease.term:
                lease._begin()
                return lease

    def check(self) -> None:
        """Refuses to go on if another writer has taken the run over.

        Raises:
            NLRLError: names it.
        """
        if (last := latest(self._store)) != self.term:
            holder = _read(self._store, last).get("holder", "nobody: its record is gone from the store")
            raise NLRLError(
                f"{self._store.url}: this process was not heard of for {self.seconds:g} s, and the run was taken over "
                f"by {holder}. What was made here and is not in the store stays in the local copy"
            )

    def release(self) -> None:
        """Ends the term, so that nobody has to wait for it."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            with suppress(NLRLError):
                self._store.write(_name(self.term), self._words(ended=True))

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        self._store.remove(name for name in _terms(self._store) if _number(name) < self.term - 1)
        self._thread = threading.Thread(target=self._keep, name="nlrl-lease", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._stopped.wait(self.seconds / 4):
            self._beat += 1
            try:
                self._store.write(_name(self.term), self._words())
            except Exception as error:  # the next beat may get through; `check` decides what a silence meant
                _log.warning("%s: heartbeat failed: %s", self._store.url, error)

    def _words(self, ended: bool = False) -> bytes:
        told = {
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "token": self._token,
            "beat": self._beat,
            "seconds": self.seconds,
            "time": time.time(),
            "ended": ended,
            **_process(),
        }
        return json.dumps(told).encode()


def holder_of(store: Store) -> str | None:
    """Who wrote this run last and has not said that it ended; None if nobody."""
    last = latest(store)
    told = _read(store, last) if last else {}
    return None if told.get("ended") else told.get("holder")


def latest(store: Store) -> int:
    """The highest term; 0 if there is none."""
    return max(map(_number, _terms(store)), default=0)


def _terms(store: Store) -> list[str]:
    return [name for name in store.sizes(FOLDER) if name.endswith(".json")]


def _number(name: str) -> int:
    digits = name.rpartition("/")[2].removesuffix(".json")
    return int(digits) if digits.isdigit() else 0


def _name(term: int) -> str:
    return f"{FOLDER}/{term:06d}.json"


def _read(store: Store, term: int) -> dict[str, Any]:
    """A term's content; a torn or missing one says nothing, and is watched as if it were written."""
    try:
        told = json.loads(store.read(_name(term)))
    except (FileNotFoundError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _is_over(told: dict[str, Any]) -> bool:
    if told.get("ended"):
        return True
    if time.time() - told.get("time", time.time()) > max(LONG_AGO, 2 * told.get("seconds", 0)):
        return True
    here = _process()
    return told.get("machine") == here["machine"] and not _lives(told.get("pid"), told.get("started"))


def _watch(store: Store, term: int, before: dict[str, Any]) -> None:
    """Returns when a term has been silent for as long as it may be.

    Raises:
        NLRLError: it was not.
    """
    holder, seconds = before.get("holder", "another process"), float(before.get("seconds", 60))
    _log.warning("%s: written by %s; waiting up to %g s to see whether it lives", store.url, holder, seconds)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 10))
        told = _read(store, term)
        if told.get("ended"):
            return
        if told.get("beat") != before.get("beat") or told.get("token") != before.get("token"):
            raise NLRLError(f"{store.url} is being written by {holder}. Wait for it, stop it, or use another `out`")


# -- processes ---------------------------------------------------------------------------------------------------------
def _process() -> dict[str, Any]:
    """This process, so that it can be told from another that gets its number later."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """Equal for processes that see each other's numbers: one boot of one machine, one namespace of processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts) if len(parts) == 3 else f"{parts[0]} {secrets.token_hex(4)}"


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine's boot; empty if it has ended, or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return ""


def _lives(pid: Any, started: Any) -> bool:
    return isinstance(pid, int) and _started(pid) == started != ""
