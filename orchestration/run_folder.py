"""A run on disk: kill anything, rerun the same command, get the same result.

    RUN/config.toml                             the resolved config, enough to make the run again
    RUN/iterations/003/rollout/manifest.json    there once the stage is committed, and only then
    RUN/iterations/003/rollout/records.jsonl    its records, sorted by key
    RUN/iterations/003/rollout/games.parquet    of stages that hold games: rows to search in
    RUN/iterations/003/rollout/shards/*.jsonl   before that: one shard a writer

A run whose place is a URL (`s3://...`) is kept like this in a local copy, which `mirror` keeps a store up with.

1. A stage adds records to shards. `owed` says which keys are still missing, so a rerun makes those and no others.
2. `commit` merges the shards into one file sorted by key, renames the manifest into place, removes the shards. A
   process killed between any two of these steps leaves a stage that the next commit finishes with the same bytes.
3. A manifest holds sizes, counts, hashes and metrics in canonical JSON and no times: an interrupted run's equals an
   uninterrupted run's byte for byte, provided that records and metrics depend on their keys alone (no latencies in
   them).
4. One driver holds the run's lock; the operating system drops it when the driver dies.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrl.errors import NLRLError
from nlrl.orchestration import run_config
from nlrl.orchestration.atomic import TEMP_PREFIX, remove_temporary, write_atomic
from nlrl.orchestration.records import SHARDS_FOLDER, lock_file
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.store import is_url
from nlrl.orchestration.store_config import StoreConfig

if TYPE_CHECKING:
    from nlrl.orchestration.mirror import Mirror

CONFIG_FILE = "config.toml"
LOCK_FILE = ".lock"
HANDOVER = 1.0
"""Seconds to wait for the lock: a killed driver holds it until the system has taken its memory back."""
_OF_COPIES = (".store.json", ".superseded")
"""What else is in the local copy of a run in a store; see `local_copy`."""


class RunFolder:
    """A run's folder. `RunFolder(path)` reads; `RunFolder.open(...)` creates or resumes, and holds the lock until
    `close`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: int | None = None
        self._mirror: Mirror | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        config_dict: Mapping[str, Any],
        config_text: str,
        ignore: Iterable[str] = (),
        store: StoreConfig | None = None,
    ) -> RunFolder:
        """Creates the run, or resumes the one that the same config made.

        Args:
            path: a folder, or a URL as text; of that the run's `path` is the local copy.
            config_dict: the resolved config as plain values, nested; None means "not set".
            config_text: the same as TOML.
            ignore: dotted fields (or their prefixes) that may differ when a run is resumed, such as where it runs or
                how long. The stored config follows them.
            store: how a run at a URL is kept.

        Raises:
            NLRLError: another process writes this run, another config made it, or the folder is not a run's.
        """
        run = cls._at_url(str(path), store or StoreConfig()) if is_url(path) else cls(path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._take_lock()
            if run._mirror is not None:
                run._mirror.open()
            run._settle_config(config_dict, config_text, ignore)
            run._sweep()
            if run._mirror is not None:
                run._mirror.resume()
        except OSError as error:
            run.close()
            raise NLRLError(f"{path}: cannot be used as a run's folder: {error}") from error
        except BaseException:
            run.close()
            raise
        return run

    def stage(self, iteration: int, name: str) -> Stage:
        """One stage of one iteration; nothing is created before something is written."""
        if iteration < 0 or not re.fullmatch(r"[a-z0-9_-]+", name):
            raise NLRLError(f"no such stage: iteration {iteration}, name {name!r} (names are lower-case words)")
        return self._stage(self.path / "iterations" / f"{iteration:03d}" / name, iteration, name)

    def stages(self) -> Iterator[Stage]:
        """The stages that exist on disk, committed or not, by iteration and name."""
        folders = [folder for folder in self.path.glob("iterations/*/*/") if folder.parent.name.isdigit()]
        for folder in sorted(folders, key=lambda folder: (int(folder.parent.name), folder.name)):
            yield self._stage(folder, int(folder.parent.name), folder.name)

    def close(self) -> None:
        """Releases the lock; a second call does nothing.

        Raises:
            NLRLError: a run in a store, and the last of it could not be put there.
        """
        try:
            if self._mirror is not None:
                self._mirror.close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- machinery -----------------------------------------------------------------------------------------------------
    @classmethod
    def _at_url(cls, url: str, store: StoreConfig) -> RunFolder:
        from nlrl.orchestration.mirror import Mirror  # fsspec, which runs in folders need not import

        mirror = Mirror(url, store)
        run = cls(mirror.folder)
        run._mirror = mirror
        return run

    def _stage(self, folder: Path, iteration: int, name: str) -> Stage:
        return Stage(folder, iteration, name, self._mirror.commit if self._mirror is not None else None)

    def _take_lock(self) -> None:
        path = self.path / LOCK_FILE
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        holder = path.read_text() or "another process"
        busy = f"{self.path} is being written by {holder}. Wait for it, stop it, or use another `out`"
        lock_file(self._lock, busy, HANDOVER)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _settle_config(self, config: Mapping[str, Any], text: str, ignore: Iterable[str]) -> None:
        path = self.path / CONFIG_FILE
        if path.is_file():
            run_config.check_same(path, config, ignore)
        elif strangers := sorted(
            name for name in os.listdir(self.path) if not name.startswith((LOCK_FILE, TEMP_PREFIX, *_OF_COPIES))
        ):
            raise NLRLError(
                f"{self.path} holds {strangers[0]} but no {CONFIG_FILE}: not a run. Use a new folder for `out`"
            )
        run_config.check_text(text, config)
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text.encode())

    def _sweep(self) -> None:
        """Finishes what a killed driver left after its last commit."""
        remove_temporary(self.path)
        for stage in self.stages():
            if stage.is_committed():
                shutil.rmtree(stage.dir / SHARDS_FOLDER, ignore_errors=True)


def verify(path: str | Path) -> list[str]:
    """The problems of a run, one line each: see `nlrl.orchestration.verify`."""
    from nlrl.orchestration.verify import verify_run

    return verify_run(path).problems
