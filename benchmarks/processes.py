"""What processes hold in memory over time, and whether a series grows."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PAGE = os.sysconf("SC_PAGE_SIZE")
BLOCKS = 10
"""A series is averaged in so many blocks before a line is laid through it: neighbouring samples are not independent."""
_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""Two-sided 95% quantiles of Student's t, by degrees of freedom."""


def resident(pid: int) -> int:
    """Bytes of a process that are in memory; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def parent(pid: int) -> int:
    """The process that started it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Slope(NamedTuple):
    """How a series changes: by how much a minute, with a 95% interval."""

    per_minute: float
    low: float
    high: float


def slope(seconds: Sequence[float], values: Sequence[float]) -> Slope | None:
    """Least squares through the means of `BLOCKS` blocks; None where there are fewer than three."""
    blocks = min(BLOCKS, len(values))
    if blocks < 3:
        return None
    x = np.array([part.mean() for part in np.array_split(np.asarray(seconds, float) / 60, blocks)])
    y = np.array([part.mean() for part in np.array_split(np.asarray(values, float), blocks)])
    spread = ((x - x.mean()) ** 2).sum()
    found = ((x - x.mean()) * (y - y.mean())).sum() / spread
    rest = y - y.mean() - found * (x - x.mean())
    error = _T_95[blocks - 2] * float(np.sqrt((rest**2).sum() / (blocks - 2) / spread))
    return Slope(float(found), float(found - error), float(found + error))


class Watch:
    """Samples what groups of processes hold, on a thread, while it is entered.

    Args:
        groups: name -> process ids, whose memory is added up.
        every: seconds between two samples.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]], every: float):
        self.seconds: list[float] = []
        self.bytes: dict[str, list[int]] = {name: [] for name in groups}
        self._groups, self._every = groups, every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.perf_counter()
        while not self._done.is_set():
            self.seconds.append(time.perf_counter() - began)
            for name, pids in self._groups.items():
                self.bytes[name].append(sum(map(resident, pids)))
            self._done.wait(self._every)
