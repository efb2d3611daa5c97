"""Files of solved positions.

A file is one line of JSON, padded with spaces to `_HEADER` bytes, and the solver's table as it is in memory. The line
says which board and format the table is for and has a checksum of the whole table. Loading maps the file: it costs no
copy, processes on one machine share its pages, and what a search adds stays in its own process.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.breakthrough.solver import SLOTS, words_per_slot
from nlrl.errors import NLRLError

Words = NDArray[np.uint64]
_HEADER = 512
_FORMAT = "nlrl breakthrough table, version 1"
"""A change of the table's layout, its hash or the meaning of its scores is a new version."""
_MOST_SLOTS = 22


def default_path(rows: int, columns: int) -> Path:
    """Where the table of this board is kept: in `$NLRL_CACHE`, else in `~/.cache/nlrl`."""
    folder = os.environ.get("NLRL_CACHE") or Path.home() / ".cache" / "nlrl"
    return Path(folder) / f"breakthrough-{rows}x{columns}.table"


def new_table(rows: int, columns: int) -> Words:
    """An empty table; 32 MB for 5x5, of which the system hands out what is used."""
    slots = 1 << min(_MOST_SLOTS, max(10, rows * columns))
    return np.zeros((slots, words_per_slot(rows, columns)), np.uint64)


def save_table(path: Path, table: Words, rows: int, columns: int) -> None:
    """Writes the file whole or not at all.

    Raises:
        NLRLError: the disk refused; an old file is untouched.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(json.dumps(_description(table, rows, columns)).encode().ljust(_HEADER - 1) + b"\n")
            file.write(table.data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise NLRLError(f"{path}: the table cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_table(path: Path, rows: int, columns: int) -> Words:
    """The table of a file, mapped copy-on-write.

    Raises:
        NLRLError: there is no such file, or it is damaged, of another format or for another board.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(path, file.read(_HEADER))
        _check_board(path, header, rows, columns)
        shape: Any = (header.get("slots"), words_per_slot(rows, columns))
        _check_size(path, shape)
        table = np.asarray(np.memmap(path, np.uint64, mode="c", offset=_HEADER, shape=shape))
    except OSError as error:
        raise NLRLError(f"{path}: the table cannot be read: {error}") from error
    if _description(table, rows, columns) != header:
        raise NLRLError(f"{path}: the table is damaged (its checksum is wrong); delete it and save it again")
    return table


def _description(table: Words, rows: int, columns: int) -> dict[str, Any]:
    checksum = zlib.crc32(table.data.cast("B"))
    about = {"format": _FORMAT, "rows": rows, "columns": columns, "byte_order": sys.byteorder}
    return {**about, "slots": len(table), "crc32": checksum}


def _read_header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise NLRLError(f"{path}: not a file of the format '{_FORMAT}'; delete it or name another")
    return header


def _check_board(path: Path, header: dict[str, Any], rows: int, columns: int) -> None:
    for field, needed in {"rows": rows, "columns": columns, "byte_order": sys.byteorder}.items():
        if header.get(field) != needed:
            raise NLRLError(f"{path}: the table is for another board: {field} is {header.get(field)!r}, not {needed!r}")


def _check_size(path: Path, shape: tuple[Any, int]) -> None:
    slots, words = shape
    if not isinstance(slots, int) or slots < SLOTS or slots & (slots - 1):
        raise NLRLError(f"{path}: the table is damaged: it cannot have {slots!r} slots; delete it and save it again")
    expected, there = _HEADER + 8 * slots * words, path.stat().st_size
    if there != expected:
        raise NLRLError(f"{path}: the table is damaged: {there} bytes, not {expected}; delete it and save it again")
