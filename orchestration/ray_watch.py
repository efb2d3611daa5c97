"""Ends a run at once when Ray itself dies under it.

A local Ray is two processes beside the workers: `raylet` and `gcs_server`. When one of them is killed, Ray needs 15 to
60 seconds to notice, and may then end the driver without a word. There is nothing left to go on with, so this says what
has happened and how to go on, and ends the process.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any

import ray
from ray._private import worker

_WATCHED = ("raylet", "gcs_server")
_PERIOD = 0.5
"""Seconds between two looks."""


class LocalWatch:
    """Watches the processes of the Ray that this process has started, until `stop`."""

    def __init__(self) -> None:
        self._node: Any = getattr(worker, "_global_node", None)
        self._stopped = threading.Event()
        atexit.register(self.stop)  # before Ray's own, which ends these processes
        if hasattr(self._node, "dead_processes"):
            threading.Thread(target=self._look, name="ray watch", daemon=True).start()

    def stop(self) -> None:
        """Looks no more; a second call does nothing."""
        self._stopped.set()
        atexit.unregister(self.stop)

    def _look(self) -> None:
        while not self._stopped.wait(_PERIOD):
            dead = [name for name, _ in self._node.dead_processes() if name in _WATCHED]
            if dead and not self._stopped.is_set() and ray.is_initialized():
                self._end(dead[0])

    @staticmethod
    def _end(name: str) -> None:
        print(
            f"nlrl: Ray's own process {name!r} died (killed, out of memory or crashed). "
            "Finished records are kept: rerun the same command to resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)
