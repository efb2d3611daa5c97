"""Rates of several programs that do the same thing, side by side: rounds in turns, medians, ratios round by round.

On a shared machine a rate depends on what else runs; the ratio of two rates from the same round hardly does.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median

Play = Callable[[int], int]
"""Does n pieces of work (games, batches) and returns how many units (steps) they held."""


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cpu_seconds_of(call: Callable[[], object]) -> float:
    """Processor time: for what is timed alone, without a peer beside it, on one thread that waits for nothing."""
    start = time.process_time()
    call()
    return time.process_time() - start


def work_for(play: Play, seconds: float) -> int:
    """How many pieces take about `seconds`; the first call, which may compile, does not count."""
    play(1)
    n = 1
    while (took := seconds_of(partial(play, n))) < seconds / 4:
        n *= 2
    return max(1, round(n * seconds / took))


def interleaved(plays: Mapping[str, Play], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Units per second of each in each round; a round gives every one of them about `seconds`."""
    work = {name: work_for(play, seconds) for name, play in plays.items()}
    rates: dict[str, list[float]] = {name: [] for name in plays}
    for _ in range(rounds):
        for name, play in plays.items():
            start = time.perf_counter()
            units = play(work[name])
            rates[name].append(units / (time.perf_counter() - start))
    return rates


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of ours / theirs."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this process, and libraries that would start threads, on one core (where the system lets it)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
