"""The one record format of a run.

1. A record is a dict with `schema` (int), `kind` ("game", "target", "improvement", "evaluation", ...) and `key`: equal
   keys are the same record. A key is a hash of what the record is about (`record_key`), so a retry writes the same key
   and duplicates vanish on read.
2. Records live in JSONL shards: one line a record, one writer a shard, lines only ever added. A line is handed to the
   operating system before `write` returns, so a killed process loses at most the line it was writing.
3. A torn last line (no newline, or no JSON) is a record that is owed again: readers skip it, the next writer cuts it
   off. A bad line anywhere else is damage that nobody should silently skip, and is refused by file and line number.

Values that JSON lacks: NaN and infinities are stored as null. Parquet copies and SQL are in `tables`.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import numbers
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from nlrl.errors import NLRLError
from nlrl.orchestration.instruments import instruments

SCHEMA = 1
"""Version of the record format that this code writes."""

Record = dict[str, Any]
RECORDS_FILE = "records.jsonl"
PARQUET_FILE = "records.parquet"
GAMES_FILE = "games.parquet"
SHARDS_FOLDER = "shards"
MANIFEST_FILE = "manifest.json"
GAME_KINDS = ("game", "match")
"""Kinds of records that are whole games: an agent's, and a league's."""

PATIENCE = 15.0
"""Seconds to wait for a shard's lock: Ray takes some (2 measured) to end the workers of a driver that was killed."""

_log = logging.getLogger(__name__)
_FIELDS = {"schema": int, "kind": str, "key": str}


# -- keys --------------------------------------------------------------------------------------------------------------
def record_key(*parts: Any) -> str:
    """A stable 32-digit hexadecimal key (blake2b, 16 bytes) of typed parts: 1, 1.0, True and "1" give four different
    keys.

    Args:
        parts: None, bool, int, float, str, bytes, or tuples and lists of them (NumPy scalars count as the Python type
            they equal).

    Raises:
        TypeError: a part of another type, whose text might change between runs.
    """
    return hashlib.blake2b(_encode(parts), digest_size=16).hexdigest()


def _encode(part: Any) -> bytes:
    """Tag, length, content: no two different values share an encoding."""
    if isinstance(part, tuple | list):
        tag, content = b"t", b"".join(map(_encode, part))
    elif part is None or isinstance(part, bool):
        tag, content = b"c", str(part).encode()
    elif isinstance(part, numbers.Integral):
        tag, content = b"i", str(int(part)).encode()
    elif isinstance(part, numbers.Real):
        tag, content = b"f", float(part).hex().encode()
    elif isinstance(part, str):
        tag, content = b"s", part.encode()
    elif isinstance(part, bytes):
        tag, content = b"b", part
    else:
        raise TypeError(f"a record key cannot be made from {type(part).__name__}: {part!r}")
    return b"%s%d:%s" % (tag, len(content), content)


# -- lines -------------------------------------------------------------------------------------------------------------
def is_record(value: Any) -> bool:
    """Whether a JSON value has the required fields of a record, with their types."""
    return isinstance(value, dict) and all(isinstance(value.get(name), type_) for name, type_ in _FIELDS.items())


def scan_lines(path: str | Path, accept: Callable[[Any], bool] = is_record) -> Iterator[tuple[Any, int, int]]:
    """Yields (value, start, end) of every whole line of a JSONL file, byte offsets included; ends before a torn last
    line.

    Raises:
        NLRLError: a line before the last is not JSON, or not what `accept` accepts.
    """
    start, bad = 0, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if bad:
                raise NLRLError(
                    f"{path}, line {bad}: not a whole record, and only a last line may be torn by a crash. "
                    "Put the file back from a copy, or delete that line: its record is made again"
                )
            value = _parse(line)
            if value is None or not accept(value):
                bad = number
                continue
            yield value, start, start + len(line)
            start += len(line)


def _parse(line: bytes) -> Any:
    if not line.endswith(b"\n"):
        return None
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def read_records(path: str | Path) -> Iterator[Record]:
    """Yields the records of one JSONL file: duplicates by key dropped (the first wins), a torn last line left out.

    Raises:
        NLRLError: no such file, or damage before the last line.
    """
    return read_many([path])


def read_many(paths: Iterable[str | Path]) -> Iterator[Record]:
    """`read_records` over several files as if they were one."""
    seen: set[str] = set()
    for path in paths:
        if not Path(path).is_file():
            raise NLRLError(f"{path}: no such record file")
        for record, _, _ in scan_lines(path):
            if record["key"] not in seen:
                seen.add(record["key"])
                yield record


def record_files(folder: Path) -> list[Path]:
    """The files that hold a stage's records now: the sorted one once the stage is committed, until then every shard
    too."""
    final = [folder / RECORDS_FILE] if (folder / RECORDS_FILE).is_file() else []
    if (folder / MANIFEST_FILE).is_file():
        return final
    return final + sorted((folder / SHARDS_FOLDER).glob("*.jsonl"))


# -- writing -----------------------------------------------------------------------------------------------------------
class RecordWriter:
    """Appends records to one shard. One writer a shard, held by a file lock that dies with the process.

    Raises:
        NLRLError: on opening, another process writes this shard, or it is damaged before its last line.
    """

    def __init__(self, path: str | Path, accept: Callable[[Any], bool] = is_record):
        self.path = Path(path)
        self._accept = accept
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._refused(error) from error
        try:
            lock_file(self._file, f"{self.path}: another writer is adding to this file", PATIENCE)
            self._size = self._repair() if self.path.is_file() else 0
        except BaseException:
            self.close()
            raise

    def write(self, record: Record) -> None:
        """Appends one record.

        Raises:
            NLRLError: a required field is missing, a value is not JSON, or the disk refused; nothing of this record
                stays in the file.
        """
        self.write_many([record])

    def write_many(self, records: Iterable[Record]) -> None:
        """Appends records, all or (in case of an error) none; see `write`."""
        lines = list(map(self._line, records))
        self._append(b"".join(lines))
        if self._accept is is_record:
            instruments.count("nlrl_records_written_total", len(lines))

    def flush(self, fsync: bool = True) -> None:
        """Forces what was written to disk, so that it survives the machine too, not only this process."""
        try:
            if fsync:
                os.fsync(self._open_file())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Ends writing and releases the lock; a second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None and self._file is not None:
                self.flush()
        finally:
            self.close()

    def _line(self, record: Record) -> bytes:
        if not self._accept(record):
            raise NLRLError(
                f"{self.path}: a record needs schema (int), kind (str) and key (str); got {_outline(record)}"
            )
        try:
            return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
        except orjson.JSONEncodeError as error:
            raise NLRLError(f"{self.path}: a record holds what JSON cannot: {error} in {_outline(record)}") from error

    def _append(self, data: bytes) -> None:
        file, rest = self._open_file(), memoryview(data)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError as error:
            self._roll_back()
            raise self._refused(error) from error
        self._size += len(data)

    def _roll_back(self) -> None:
        """After a half-written batch: a later line must not follow a torn one."""
        try:
            os.ftruncate(self._open_file(), self._size)
        except OSError:
            self.close()  # the next writer that opens the file cuts the tail

    def _repair(self) -> int:
        """Cuts a torn tail; returns the size of what is whole."""
        size, whole = self.path.stat().st_size, 0
        for _, _, end in scan_lines(self.path, self._accept):
            whole = end
        if whole < size:
            _log.warning("%s: cut %d bytes of a torn last line; its record is owed again", self.path, size - whole)
            os.ftruncate(self._open_file(), whole)
        return whole

    def _open_file(self) -> int:
        if self._file is None:
            raise NLRLError(f"{self.path}: this writer is closed")
        return self._file

    def _refused(self, error: OSError) -> NLRLError:
        return NLRLError(
            f"{self.path}: cannot be written: {error.strerror or error}. "
            "Records written before are safe; put it right and rerun the same command"
        )


def lock_file(descriptor: int, message: str, patience: float = 0.0) -> None:
    """Takes an exclusive lock that the operating system drops when this process ends, however it ends.

    Args:
        patience: seconds to wait for a holder that is about to end.

    Raises:
        NLRLError: with `message`, somebody else holds it. A file system without locks counts as free.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise NLRLError(message) from error
            time.sleep(0.05)
        except OSError:
            return _log.debug("no file locks on this file system")


def _outline(value: Any) -> str:
    if not isinstance(value, dict):
        return type(value).__name__
    return "{" + ", ".join(f"{name}: {type(value[name]).__name__}" for name in value) + "}"


# -- tables ------------------------------------------------------------------------------------------------------------
def compact(paths: Sequence[str | Path], parquet_path: str | Path) -> int:
    """JSONL shards to one Parquet file: see `nlrl.orchestration.tables.compact`."""
    from nlrl.orchestration import tables  # pyarrow costs 0.2 s that most processes need not pay

    return tables.compact(paths, parquet_path)


def query(sql: str, run_dir: str | Path, params: Sequence[Any] = ()) -> Any:
    """SQL over a run's records: see `nlrl.orchestration.tables.query`."""
    from nlrl.orchestration import tables

    return tables.query(sql, run_dir, params)
