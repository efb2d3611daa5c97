"""Runs in a store, to read them: their local copies, brought up to date. Nothing in the store is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlrl.errors import NLRLError
from nlrl.orchestration import lease
from nlrl.orchestration.local_copy import LocalCopy, Wanted, everything
from nlrl.orchestration.records import lock_file
from nlrl.orchestration.run_folder import CONFIG_FILE, LOCK_FILE
from nlrl.orchestration.store import Store, cache_folder, is_url


def but_weights(name: str) -> bool:
    """What it takes to look at a run: everything but networks, which may be large."""
    return not name.endswith((".safetensors", ".bin", ".pt"))


def local(place: str | Path, wanted: Wanted = everything) -> Path:
    """The folder of a run: the place itself, or the copy of what is at a URL, brought up to date; see `fetch`."""
    return fetch(str(place), wanted) if is_url(place) else Path(place)


def local_runs(place: str | Path, wanted: Wanted = everything) -> Path:
    """The same for a folder of runs: itself, its children and theirs, as the viewer looks for them.

    Raises:
        NLRLError: there is no run at the URL.
    """
    if not is_url(place):
        return Path(place)
    url = str(place).rstrip("/")
    configs = [name for name in Store(url).sizes() if re.fullmatch(rf"([^/.][^/]*/){{0,2}}{CONFIG_FILE}", name)]
    if not configs:
        raise NLRLError(f"{url}: no run is there; name a run, or what holds some")
    for name in configs:
        fetch(f"{url}/{name}".removesuffix(CONFIG_FILE).rstrip("/"), wanted)
    return cache_folder(url)


def fetch(url: str, wanted: Wanted = everything, cache: str | None = None) -> Path:
    """Brings the local copy of a run up to date, to read it; returns its folder. A copy that a driver on this machine
    is writing is ahead of the store, and is returned as it is.

    Args:
        wanted: by name within the run, whether a file is needed.
        cache: the folder of all copies.

    Raises:
        NLRLError: there is no run, or it cannot be fetched.
    """
    store, folder = Store(url), cache_folder(url, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder) as lock:
        if lock is not None:
            copy = LocalCopy(store, folder)
            copy.identify(create=False)
            copy.bring_config()
            if not (folder / CONFIG_FILE).is_file():
                raise NLRLError(f"{url} is not a run's folder (no config.toml in it)")
            copy.bring(wanted, lease.latest(store))
            os.ftruncate(lock, 0)
            os.pwrite(lock, (lease.holder_of(store) or "").encode(), 0)  # tells the viewer whether it goes on
    return folder


@contextmanager
def _held(folder: Path) -> Iterator[int | None]:
    """The folder's lock; None where a driver has it."""
    descriptor: int | None = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            lock_file(descriptor, "a driver is at work")
            held = descriptor
        except NLRLError:
            held = None
        yield held
    finally:
        os.close(descriptor)
