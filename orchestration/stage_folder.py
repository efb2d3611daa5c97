"""One stage of one iteration on disk; see `run_folder` for how a run is laid out and what is promised."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import orjson

from nlrl.errors import NLRLError
from nlrl.orchestration import records
from nlrl.orchestration.atomic import atomic_path, canonical_json, sync_file, write_atomic
from nlrl.orchestration.budget import read_ledger
from nlrl.orchestration.records import (
    GAME_KINDS,
    GAMES_FILE,
    MANIFEST_FILE,
    PARQUET_FILE,
    RECORDS_FILE,
    SHARDS_FOLDER,
    Record,
    RecordWriter,
    compact,
    lock_file,
    read_many,
    record_files,
    scan_lines,
)

MANIFEST_SCHEMA = 1
_RESERVED = {MANIFEST_FILE, RECORDS_FILE, PARQUET_FILE, GAMES_FILE, SHARDS_FOLDER}


class Stage:
    """One stage of one iteration: open for records until it is committed, then read-only.

    Args:
        after_commit: called with the stage's folder when it is complete there.
    """

    def __init__(self, folder: Path, iteration: int, name: str, after_commit: Callable[[Path], None] | None = None):
        self.dir = folder
        self._after_commit = after_commit
        self.iteration = iteration
        self.name = name
        self._writers: list[RecordWriter] = []

    def is_committed(self) -> bool:
        """Whether the stage is complete."""
        return (self.dir / MANIFEST_FILE).is_file()

    def writer(self, shard_name: str) -> RecordWriter:
        """A writer that adds to the shard of this name; one writer a shard, any number of shards."""
        self._refuse_if_committed()
        writer = RecordWriter(self.dir / SHARDS_FOLDER / f"{shard_name}.jsonl")
        self._writers.append(writer)
        return writer

    def file(self, name: str) -> AbstractContextManager[Path]:
        """`with stage.file("weights.safetensors") as path: save(path)`: the file appears whole when the block ends."""
        self._refuse_if_committed()
        self.dir.mkdir(parents=True, exist_ok=True)
        return atomic_path(self.dir / name)

    def records(self) -> Iterator[Record]:
        """The records so far, duplicates dropped: sorted by key once committed, in the order of the shards before."""
        return read_many(record_files(self.dir))

    def owed(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys`, in order and once each, that have no complete record yet."""
        done = {record["key"] for record in self.records()}
        return [key for key in dict.fromkeys(keys) if key not in done]

    def commit(self, metrics: Mapping[str, Any] | None = None, files: Iterable[str | Path] = ()) -> dict[str, Any]:
        """Makes the stage complete; returns its manifest.

        Args:
            metrics: a few numbers or short texts about the stage; what it spent is added as `budget`.
            files: other files (or folders of files) in `dir` that belong to the stage, such as weights.

        Raises:
            NLRLError: already committed, a shard is still being written, a named file is missing, or the disk refused.
        """
        self._refuse_if_committed()
        canonical_json(metrics)  # fails before the work if a metric is not JSON
        extra = self._extra_files(files)
        self._close_writers()
        budget = read_ledger(self.dir / SHARDS_FOLDER)
        metrics = {**(metrics or {}), **({} if budget is None else {"budget": budget._asdict()})}
        with ExitStack() as held:
            self._hold_shards(held)
            self.dir.mkdir(parents=True, exist_ok=True)
            (self.dir / PARQUET_FILE).unlink(missing_ok=True)
            count, kinds = self._merge_shards()
            if not kinds.isdisjoint(GAME_KINDS):
                self._index_games()
            write_atomic(self.dir / MANIFEST_FILE, canonical_json(self._manifest(metrics, extra, count)))
        shutil.rmtree(self.dir / SHARDS_FOLDER, ignore_errors=True)
        if self._after_commit is not None:
            self._after_commit(self.dir)
        return self.load()

    def load(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            NLRLError: not committed, damaged, or written by a newer version.
        """
        path = self.dir / MANIFEST_FILE
        if not path.is_file():
            raise NLRLError(f"{self.dir}: this stage is not complete; rerun the command that made it")
        try:
            manifest = orjson.loads(path.read_bytes())
            schema = manifest["schema"]
            if not isinstance(schema, int) or (schema <= MANIFEST_SCHEMA and not _is_manifest(manifest)):
                raise TypeError("fields of another form")
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise NLRLError(
                f"{path}: damaged. Delete it and rerun the command: the stage is committed again"
            ) from error
        if schema > MANIFEST_SCHEMA:
            raise NLRLError(f"{path}: schema {schema}, but this version reads up to {MANIFEST_SCHEMA}: update nlrl")
        return manifest

    def compact(self) -> Path:
        """Writes `records.parquet` beside the records of a committed stage, for quicker queries; returns its path."""
        self.load()
        compact(record_files(self.dir), self.dir / PARQUET_FILE)
        return self.dir / PARQUET_FILE

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _refuse_if_committed(self) -> None:
        if self.is_committed():
            raise NLRLError(
                f"{self.dir}: this stage is complete and cannot be changed. Delete the folder to make it again"
            )

    def _extra_files(self, files: Iterable[str | Path]) -> list[str]:
        """Names relative to the stage's folder, folders expanded."""
        names = []
        for path in (self.dir / file for file in files):
            name = path.relative_to(self.dir)
            if name.parts[0] in _RESERVED:
                raise NLRLError(f"{path}: this name belongs to the stage itself")
            found = sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]
            if not found or not all(child.is_file() for child in found):
                raise NLRLError(f"{path}: cannot commit a file that is not there")
            names += [child.relative_to(self.dir).as_posix() for child in found]
        return names

    def _manifest(self, metrics: Mapping[str, Any] | None, extra: list[str], count: int) -> dict[str, Any]:
        for name in extra:
            sync_file(self.dir / name)  # the manifest must not reach the disk before what it vouches for
        files = {name: describe(self.dir / name) for name in extra}
        if count:
            files[RECORDS_FILE] = describe(self.dir / RECORDS_FILE) | {"records": count}
        return {
            "schema": MANIFEST_SCHEMA,
            "iteration": self.iteration,
            "stage": self.name,
            "files": files,
            "metrics": dict(metrics or {}),
        }

    def _index_games(self) -> None:
        from nlrl.orchestration.games_table import write_games  # pyarrow: see `records.compact`

        write_games(read_many([self.dir / RECORDS_FILE]), self.dir / GAMES_FILE)

    def _close_writers(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def _hold_shards(self, held: ExitStack) -> None:
        """A record written to a shard that is about to be removed would be lost without a word."""
        for shard in sorted((self.dir / SHARDS_FOLDER).glob("*.jsonl")):
            descriptor = os.open(shard, os.O_RDONLY)
            held.callback(os.close, descriptor)
            message = f"{shard}: still open for writing; close its writer before the stage is committed"
            lock_file(descriptor, message, records.PATIENCE)

    def _merge_shards(self) -> tuple[int, set[str]]:
        """Rewrites everything into one file sorted by key, so that the order of arrival leaves no trace; returns how
        many records there are, and of which kinds."""
        places: dict[str, tuple[Path, int, int]] = {}
        kinds: set[str] = set()
        for path in record_files(self.dir):
            for record, start, end in scan_lines(path):
                kinds.add(record["kind"])
                places.setdefault(record["key"], (path, start, end))
        if places:
            with atomic_path(self.dir / RECORDS_FILE) as temp, ExitStack() as opened, open(temp, "wb") as merged:
                handles = {
                    path: opened.enter_context(open(path, "rb")) for path in {place[0] for place in places.values()}
                }
                for key in sorted(places):
                    path, start, end = places[key]
                    handles[path].seek(start)
                    merged.write(handles[path].read(end - start))
        return len(places), kinds


def _is_manifest(value: Any) -> bool:
    """Whether its files are files of the stage's own folder: a manifest may come from anybody."""
    files = value.get("files")
    return isinstance(files, dict) and all(isinstance(said, dict) and _is_inside(name) for name, said in files.items())


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return "\0" not in name and not any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)


def describe(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its size and hash."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
