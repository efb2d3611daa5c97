"""A run while it goes on, read from its folder alone, so that a job on another machine can be followed, too.

What grows are the shards of stages that are not committed; their last whole lines are the newest records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from nlrl.orchestration.records import MANIFEST_FILE, RECORDS_FILE, SHARDS_FOLDER, Record, is_record
from nlrl.orchestration.run_folder import RunFolder

TAIL = 1 << 17
"""Bytes of a shard's end that are read for its newest records."""
_TEXTS = ("text", "argument", "reply", "target")


class StageNow(NamedTuple):
    """A stage of the newest iteration."""

    stage: str
    """As `003/rollout`."""
    state: str
    """"done" or "growing"."""
    records: int
    wanted: int | None
    """How many records it will have, where the config says so."""


class Newest(NamedTuple):
    """A record that has just been written."""

    stage: str
    key: str
    kind: str
    text: str
    """What was said in it last."""


class Counter:
    """Counts the lines of growing files, reading only what is new."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int]] = {}

    def lines(self, path: Path) -> int:
        """Whole lines of a file; 0 if it is not there."""
        try:
            size = path.stat().st_size
        except OSError:
            return 0
        at, count = self._known.get(path, (0, 0))
        if size < at:
            at, count = 0, 0
        with open(path, "rb") as file:
            file.seek(at)
            while part := file.read(1 << 20):
                at, count = at + len(part), count + part.count(b"\n")
        self._known[path] = (at, count)
        return count


def stages_now(run: Path, config: Mapping[str, Any], counter: Counter) -> list[StageNow]:
    """The stages of the newest iteration, as far as they are."""
    stages = list(RunFolder(run).stages())
    last = max((stage.iteration for stage in stages), default=None)
    out = []
    for stage in stages:
        if stage.iteration == last:
            name, done = f"{stage.iteration:03d}/{stage.name}", stage.is_committed()
            wanted = config.get("rollout.games") if stage.name == "rollout" else None
            files = [stage.dir / RECORDS_FILE] if done else list(_shards(stage.dir))
            records = sum(counter.lines(file) for file in files)
            out.append(StageNow(name, "done" if done else "growing", records, wanted))
    return out


def newest(run: Path, count: int = 3) -> list[Newest]:
    """The records written last, the newest first; those of the file that changed last."""
    files = [
        (path, stage)
        for stage in RunFolder(run).stages()
        for path in ([stage.dir / RECORDS_FILE] if (stage.dir / MANIFEST_FILE).is_file() else _shards(stage.dir))
    ]
    changed = sorted(((_modified(path), path, stage) for path, stage in files), key=lambda row: (row[0], str(row[1])))
    for _, path, stage in reversed(changed):
        if found := _tail(path, count):
            name = f"{stage.iteration:03d}/{stage.name}"
            return [Newest(name, record["key"], record["kind"], _said(record)) for record in reversed(found)]
    return []


def _shards(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / SHARDS_FOLDER).glob("*.jsonl"))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _tail(path: Path, count: int) -> list[Record]:
    """The last whole records of a file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return []
    whole = [line for line in (lines[1:] if size > TAIL else lines) if line.endswith(b"\n")]
    return [record for line in whole[-count:] if (record := _record(line)) is not None]


def _record(line: bytes) -> Record | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if is_record(value) else None


def _said(record: Record) -> str:
    turns = record.get("turns")
    last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else record
    return next((str(last[name]) for name in _TEXTS if isinstance(last.get(name), str)), "")
