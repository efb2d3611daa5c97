"""Launch configurations as data: which one a program gets, and how others are tried.

A kernel asks `choose` for the numbers of a launch, by its op and a key of its own ("forward/128"). It gets what is
being tried, else what `devices/<gpu>.json` has under `launch`, else the default it brings. Whoever tunes sees what a
call asks for (`asked`) and puts others in its place (`trying`). A module lists what is worth a try as `CANDIDATES`, by
key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from nlrl.kernels import devices

Numbers = Sequence[int]
_tried: dict[tuple[str, str], Numbers] = {}
_watchers: list[set[str]] = []


def choose(op: str, key: str, default: Numbers) -> Numbers:
    """The numbers of a launch on this process's device."""
    for watcher in _watchers:
        watcher.add(key)
    return _tried.get((op, key)) or _recorded(op).get(key) or default


@contextmanager
def trying(op: str, key: str, numbers: Numbers) -> Iterator[None]:
    """Within it, `choose` gives these."""
    _tried[op, key] = numbers
    try:
        yield
    finally:
        del _tried[op, key]


@contextmanager
def asked() -> Iterator[set[str]]:
    """Collects the keys that are asked for within it."""
    keys: set[str] = set()
    _watchers.append(keys)
    try:
        yield keys
    finally:
        _watchers.remove(keys)


@cache
def _recorded(op: str) -> dict[str, Numbers]:
    return devices.launch(op, {})
