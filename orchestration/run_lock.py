"""Whether somebody is writing a run: told from what its folder and the system say, never by taking its lock."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import NamedTuple

from nlrl.orchestration.run_folder import LOCK_FILE

PATIENCE = 180.0
"""Seconds without a new byte after which a run on another machine counts as stopped."""
LOCKS = Path("/proc/locks")
"""Where Linux lists the locks that processes hold."""


class Holder(NamedTuple):
    """Who took a run's lock last."""

    process: int
    host: str


def holder_of(run: Path) -> Holder | None:
    """None where nobody ever did, or the file does not say."""
    try:
        found = re.fullmatch(r"process (\d{1,9}) on (\S+)", (run / LOCK_FILE).read_text(errors="replace"))
    except OSError:
        return None
    return Holder(int(found[1]), found[2]) if found else None


def is_held(run: Path, changed: float, now: float | None = None) -> bool:
    """Whether the driver that the lock names lives and holds it; on another machine, whether files changed lately.

    Args:
        changed: when something in the folder last changed, in seconds since 1970.
        now: the same of now.
    """
    holder = holder_of(run)
    if holder is None:
        return False
    if holder.host != socket.gethostname():
        return (time.time() if now is None else now) - changed < PATIENCE
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's process lives, too
    return is_locked(run / LOCK_FILE)


def is_locked(path: Path) -> bool:
    """Whether the system lists a lock on a file, which asking for one would disturb; where it lists none, it may be."""
    try:
        held = LOCKS.read_text(errors="replace").splitlines()
        return any(line.split()[1:2] == ["FLOCK"] and f":{path.stat().st_ino} " in line for line in held)
    except OSError:
        return True
