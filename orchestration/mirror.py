"""A run in a store: the driver works on a local copy, and everything it makes follows into the store.

    URL/config.toml, metrics.jsonl, evaluations.md, agent/...      as in a folder
    URL/iterations/003/rollout/manifest.json                       created once; from then on the stage is committed
    URL/iterations/003/rollout/shards/000004-000017.jsonl          before that: records, in pieces that never change
    URL/iterations/003/rollout/shards/000004-000017.ledger         and what they cost (term 4, piece 17)
    URL/.nlrl/run.json, terms/000004.json                          the run's identity; who writes it (see `lease`)

1. Locally nothing differs from a run in a folder: same files, same locks, same renames.
2. When a stage is committed locally, its files are put, looked at, and then its manifest is created. Of two drivers
   that commit the same stage with other bytes one is refused, whatever became of the lease.
3. New records of a stage in progress are put every few seconds, costs before records. A driver on another machine
   takes them up.
4. The store unreachable stops the run with an error; the local copy is whole, and the same command goes on from it.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from nlrl.errors import NLRLError
from nlrl.orchestration.budget import LEDGER_FILE
from nlrl.orchestration.lease import Lease
from nlrl.orchestration.local_copy import STORED, LocalCopy
from nlrl.orchestration.records import MANIFEST_FILE, SHARDS_FOLDER
from nlrl.orchestration.run_folder import CONFIG_FILE
from nlrl.orchestration.store import Store, cache_folder
from nlrl.orchestration.store_config import StoreConfig
from nlrl.orchestration.watch import LOGS_FOLDER, STATUS_FILE

PIECE = 32 * 2**20
"""Most bytes in one piece of records."""
STAYS = ("wandb", "mlruns", LOGS_FOLDER, STATUS_FILE)
"""Folders of trackers, which keep their files elsewhere themselves, and what the processes of a machine say of
themselves."""
_log = logging.getLogger(__name__)


class Mirror:
    """Keeps the store at `url` up with a local copy; `folder` is where that is."""

    def __init__(self, url: str, config: StoreConfig):
        self.folder = cache_folder(url, config.cache or None)
        self._config = config
        self._store = Store(url)
        self._lease: Lease | None = None
        self._copy: LocalCopy | None = None
        self._busy = threading.Lock()
        self._stopped, self._thread = threading.Event(), None
        self._pieces = 0
        self._reachable = True

    # -- a run's life --------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Takes the lease and fetches the config. The caller holds the local folder's lock.

        Raises:
            NLRLError: somebody else writes this run; the store cannot be reached.
        """
        self._lease = Lease.take(self._store, self._config.lease_seconds)
        self._copy = LocalCopy(self._store, self.folder)
        self._copy.identify(create=True)
        self._copy.bring_config()

    def resume(self) -> None:
        """Fetches what the store has, finishes what a killed driver left here and there, and begins to follow."""
        lease, copy = self._opened()
        self._store.remove(copy.bring(last_term=lease.previous))
        copy.terms = [*copy.terms, lease.term]
        copy.save()
        manifests = self.folder.glob(f"iterations/*/*/{MANIFEST_FILE}")
        for manifest in sorted(manifests, key=lambda path: path.stat().st_mtime_ns):
            if self._name(manifest.parent) not in copy.committed:
                self.commit(manifest.parent)
        self._thread = threading.Thread(target=self._follow, name="nlrl-mirror", daemon=True)
        self._thread.start()

    def commit(self, stage: Path) -> None:
        """Commits a stage in the store, once it is committed in its folder.

        Raises:
            NLRLError: the store cannot be reached, or another driver has committed other bytes.
        """
        lease, copy = self._opened()
        try:
            with self._busy:
                lease.check()
                self._put_stage(stage)
                copy.committed.add(self._name(stage))
                copy.uploaded.pop(self._name(stage), None)
                self._put_others()
                copy.save()
        except NLRLError as error:
            self._reachable = False
            raise NLRLError(
                f"{error}. Nothing is lost: the stage is complete in {stage}; rerun the same command"
            ) from error

    def close(self) -> None:
        """Puts what is left and gives the lease back; a second call does nothing.

        Raises:
            NLRLError: something could not be put, and nothing worse is on its way already.
        """
        if self._lease is None or self._stopped.is_set():
            return
        self._stopped.set()
        try:
            if self._thread is not None:
                self._thread.join()
                self._put_rest(self._lease)
        finally:
            self._lease.release()

    # -- stages --------------------------------------------------------------------------------------------------------
    def _put_stage(self, stage: Path) -> None:
        lease, _ = self._opened()
        within = self._name(stage)
        files = {f"{within}/{path.relative_to(stage).as_posix()}": path for path in _stage_files(stage)}
        for name, path in files.items():
            if not self._store.put_new(path, name):  # a torn try of ours, or of a driver that died
                lease.check()
                self._store.put(path, name)
        found = self._store.sizes(within)
        for name, path in files.items():
            if found.get(name) != (size := path.stat().st_size):
                raise NLRLError(f"{self._store.url}/{name}: {found.get(name)} bytes arrived of {size}")
        if not self._store.create(f"{within}/{MANIFEST_FILE}", (stage / MANIFEST_FILE).read_bytes()):
            raise NLRLError(f"{self._store.url}/{within}: another driver has committed this stage with other bytes")
        self._store.remove(name for name in found if name.startswith(f"{within}/{SHARDS_FOLDER}/"))

    def _put_pieces(self) -> None:
        """New records of the stages in progress."""
        for shards in sorted(self.folder.glob(f"iterations/*/*/{SHARDS_FOLDER}/")):
            if not (shards.parent / MANIFEST_FILE).is_file():
                while self._put_piece(shards):
                    pass

    def _put_piece(self, shards: Path) -> bool:
        """One piece of a stage; whether there was anything to put."""
        lease, copy = self._opened()
        stage = self._name(shards.parent)
        known = copy.uploaded.setdefault(stage, {})
        paths = [*_own_shards(shards), shards / LEDGER_FILE]  # costs are read last, and so never behind a record
        new = {path.name: _lines_after(path, known.get(path.name, 0)) for path in paths}
        costs, records = new[LEDGER_FILE][0], b"".join(data for name, (data, _) in new.items() if name != LEDGER_FILE)
        for data, ending in ((costs, "ledger"), (records, "jsonl")):
            if data:
                self._store.write(f"{stage}/{SHARDS_FOLDER}/{lease.term:06d}-{self._pieces:06d}.{ending}", data)
        self._pieces += 1
        known.update({name: end for name, (_, end) in new.items()})
        return bool(costs or records)

    # -- everything else -----------------------------------------------------------------------------------------------
    def _put_others(self) -> None:
        """Files beside the stages that have changed. A run in which nothing was begun leaves nothing: its config may
        still be mended."""
        _, copy = self._opened()
        if not any(self.folder.glob("iterations/*/*/")):
            return
        for path in self._others():
            stat = path.stat()
            name, now = self._name(path), [stat.st_size, stat.st_mtime_ns]
            if copy.sent.get(name) != now:
                self._store.put(path, name)
                copy.sent[name] = now

    def _others(self) -> Iterator[Path]:
        """Files beside the stages, the config first: what has one is a run."""
        if (config := self.folder / CONFIG_FILE).is_file():
            yield config
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            plain = parts[0] not in ("iterations", CONFIG_FILE, *STAYS)
            if plain and path.is_file() and not any(part.startswith(".") for part in parts):
                yield path

    def _put_new(self) -> None:
        _, copy = self._opened()
        with self._busy:
            self._put_others()
            self._put_pieces()
            copy.save()

    def _follow(self) -> None:
        """What fails here is tried again in a moment, and reported by whoever commits next."""
        while not self._stopped.wait(self._config.every_seconds):
            try:
                self._put_new()
            except (NLRLError, OSError) as error:
                _log.warning("%s: records wait for the store: %s", self._store.url, error)

    def _put_rest(self, lease: Lease) -> None:
        broken = sys.exc_info()[0] is not None
        if broken or not self._reachable:
            self._store.pauses = ()  # there is an error to be told already
        try:
            lease.check()
            self._put_new()
        except (NLRLError, OSError) as error:
            if not broken and self._reachable:
                raise NLRLError(f"{error}. Nothing is lost: it is in {self.folder}; rerun the same command") from error
            _log.warning("%s: %s; what it lacks is in %s", self._store.url, error, self.folder)

    def _opened(self) -> tuple[Lease, LocalCopy]:
        assert self._lease is not None, "not opened yet"
        assert self._copy is not None
        return self._lease, self._copy

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _stage_files(stage: Path) -> list[Path]:
    """A committed stage's files but the manifest, the records first."""
    found = []
    for path in sorted(stage.rglob("*")):
        parts = path.relative_to(stage).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not hidden and parts[0] not in (SHARDS_FOLDER, MANIFEST_FILE):
            found.append(path)
    return found


def _own_shards(shards: Path) -> list[Path]:
    return [path for path in sorted(shards.glob("*.jsonl")) if path.stem != STORED]


def _lines_after(path: Path, start: int) -> tuple[bytes, int]:
    """The whole lines of a file from a byte on, at most a piece of them, and where they end. A file that is gone has
    none: its stage has just been committed. One that a power cut has made shorter is read anew."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start - 1, 0))
            if start and file.read(1) != b"\n":
                start = file.seek(0)
            data = file.read(PIECE)
    except FileNotFoundError:
        return b"", start
    whole = data[: data.rfind(b"\n") + 1]
    return whole, start + len(whole)
