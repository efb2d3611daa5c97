"""Files that exist whole or not at all.

A reader, or a rerun after `kill -9` or a power cut, sees the old file or the new one, never a half. The new bytes go to
a temporary file in the same folder, are forced to disk, and take the name by one rename; the folder is forced to disk
last, because the rename itself lives there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from nlrl.errors import NLRLError

TEMP_PREFIX = ".tmp-"


def write_atomic(path: str | Path, data: bytes) -> None:
    """Replaces the file at `path` by `data`.

    Raises:
        NLRLError: the disk refused; the old file, if any, is untouched.
    """
    with atomic_path(path) as temp:
        temp.write_bytes(data)


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Replaces the file at `path` by `value` in the one form of `canonical_json`."""
    write_atomic(path, canonical_json(value))


def canonical_json(value: Any) -> bytes:
    """JSON whose bytes depend on the value alone: sorted keys, two spaces, a final newline. NaN and infinities become
    null."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path for code that insists on writing a file itself; the file takes its real name when the block ends
    well.

    The temporary name keeps the suffix, because some writers (`numpy.savez`) add their own where they miss it.

    Raises:
        NLRLError: the disk refused. Other exceptions of the block pass through; either way the temporary file is gone.
    """
    path = Path(path)
    temp = path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temp
        sync_file(temp)
        os.replace(temp, path)
        sync_folder(path.parent)
    except OSError as error:
        raise NLRLError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Forces a file's bytes to disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Forces a folder's entries to disk; file systems that have no such operation are left to their own promises."""
    with suppress(OSError):
        _sync(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))


def remove_temporary(folder: Path) -> None:
    """Removes what killed writers left in `folder` and below. Only for the one process that owns the folder."""
    for leftover in folder.rglob(f"{TEMP_PREFIX}*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
