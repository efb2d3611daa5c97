"""`nlrl verify RUN`: is a run whole? In a folder, or in a store, from where each byte is read once and none is kept.

1. The config is TOML.
2. Every manifest is one that this program wrote for that stage. Every file it names is there with the bytes and the
   sha256 it says.
3. Records parse, are sorted by key, and no key is there twice. Those of a stage in progress parse, but for a torn last
   line.
4. What a committed stage was made from is committed, too: all stages before it, in the order of the run's method.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson

from nlrl.orchestration.atomic import TEMP_PREFIX, canonical_json
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.records import MANIFEST_FILE, RECORDS_FILE, SHARDS_FOLDER, is_record
from nlrl.orchestration.run_folder import CONFIG_FILE
from nlrl.orchestration.stage_folder import MANIFEST_SCHEMA
from nlrl.orchestration.store import CHUNK, Store, is_url

_STAGE = re.compile(r"iterations/(\d+)/([a-z0-9_-]+)/(.+)")
Stages = dict[tuple[int, str], set[str]]
"""(iteration, stage) -> names of its files, relative to its folder."""


@dataclass
class Checked:
    """What was checked, and what is wrong with it."""

    place: str
    stages: int = 0
    """Committed ones."""
    open_stages: int = 0
    """Stages in progress."""
    files: int = 0
    bytes: int = 0
    records: int = 0
    problems: list[str] = field(default_factory=list)
    """One line each."""
    is_run: bool = False
    """Whether there is anything of a run at all."""
    in_order: bool = False
    """Whether the order of stages could be checked: the config is one of this version's runs."""

    def __str__(self) -> str:
        order = "" if self.in_order else " (order of stages not checked: the config is not a run's of this version)"
        return (
            f"{self.place}: {self.stages} committed stages, {self.open_stages} in progress; {self.files} files, "
            f"{self.bytes:,} bytes, {self.records:,} records{order}"
        )


class Place(Protocol):
    """Named bytes: a folder or a store."""

    def sizes(self) -> Mapping[str, int]: ...

    def stream(self, name: str) -> Iterator[bytes]: ...


class Folder:
    """A folder as a place."""

    def __init__(self, path: Path):
        self._path = path

    def sizes(self) -> dict[str, int]:
        paths = [path for path in self._path.rglob("*") if path.is_file() and not path.name.startswith(TEMP_PREFIX)]
        return {path.relative_to(self._path).as_posix(): path.stat().st_size for path in paths}

    def stream(self, name: str) -> Iterator[bytes]:
        with open(self._path / name, "rb") as file:
            while piece := file.read(CHUNK):
                yield piece


def verify_run(place: str | Path) -> Checked:
    """Checks a run, at a path or a URL.

    Raises:
        NLRLError: the store cannot be reached.
    """
    there: Place = Store(str(place)) if is_url(place) else Folder(Path(place))
    return _Verifier(there, str(place).rstrip("/")).checked()


class _Verifier:
    def __init__(self, place: Place, shown: str):
        self._place, self._sizes = place, place.sizes()
        self._found = Checked(shown)

    def checked(self) -> Checked:
        """Checks everything there is."""
        found, stages = self._found, self._stages()
        found.is_run = bool(stages) or CONFIG_FILE in self._sizes
        config = self._config()
        for stage, names in sorted(stages.items()):
            if MANIFEST_FILE in names:
                found.stages += 1
                self._committed(stage)
            else:
                found.open_stages += 1
                self._in_progress(stage, names)
        done = {stage for stage, names in stages.items() if MANIFEST_FILE in names}
        if config is not None:
            found.in_order = True
            found.problems += [f"{found.place}/{line}" for line in out_of_order(config, done)]
        return found

    # -- parts ---------------------------------------------------------------------------------------------------------
    def _stages(self) -> Stages:
        stages: Stages = {}
        for name in self._sizes:
            if match := _STAGE.fullmatch(name):
                stages.setdefault((int(match[1]), match[2]), set()).add(match[3])
        return stages

    def _config(self) -> RunConfig | None:
        """The run's config; None where it is no config of a run (a league's, or another version's)."""
        if CONFIG_FILE not in self._sizes:
            return self._problem(CONFIG_FILE, "missing")
        try:
            values = tomllib.loads(self._read(CONFIG_FILE).decode())
            return RunConfig.model_validate(values) if "method" in values else None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            return self._problem(CONFIG_FILE, f"not valid TOML: {error}")
        except ValueError:
            return None

    def _committed(self, stage: tuple[int, str]) -> None:
        within = _folder(stage)
        try:
            files = _manifest(self._read(f"{within}/{MANIFEST_FILE}"), stage)
        except ValueError as error:
            return self._problem(f"{within}/{MANIFEST_FILE}", str(error))
        self._found.files += 1
        for name, expected in sorted(files.items()):
            self._file(f"{within}/{name}", expected, name == RECORDS_FILE)
        if RECORDS_FILE not in files and f"{within}/{RECORDS_FILE}" in self._sizes:
            self._problem(f"{within}/{RECORDS_FILE}", "is there, but the manifest does not name it")

    def _file(self, name: str, expected: Mapping[str, Any], is_records: bool) -> None:
        if name not in self._sizes:
            return self._problem(name, "missing")
        lines = _Lines(self._problem_of(name), ordered=True) if is_records else None
        found = self._hashed(name, lines)
        if lines is not None:
            lines.end()
            found["records"] = lines.count
            self._found.records += lines.count
        for what in sorted(expected):
            if found.get(what) != expected[what]:
                self._problem(name, f"{what} is {found.get(what)}, the manifest says {expected[what]}")

    def _hashed(self, name: str, lines: _Lines | None) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        for piece in self._place.stream(name):
            digest.update(piece)
            size += len(piece)
            if lines is not None:
                lines.add(piece)
        self._found.files += 1
        self._found.bytes += size
        return {"bytes": size, "sha256": digest.hexdigest()}

    def _in_progress(self, stage: tuple[int, str], names: Iterable[str]) -> None:
        for name in sorted(names):
            if name.startswith(f"{SHARDS_FOLDER}/") and name.endswith(".jsonl"):
                full = f"{_folder(stage)}/{name}"
                lines = _Lines(self._problem_of(full), ordered=False)
                try:
                    self._hashed(full, lines)
                except FileNotFoundError:
                    continue  # the stage has been committed meanwhile
                lines.end(may_be_torn=True)
                self._found.records += lines.count

    def _read(self, name: str) -> bytes:
        data = b"".join(self._place.stream(name))
        self._found.bytes += len(data)
        return data

    def _problem(self, name: str, what: str) -> None:
        self._found.problems.append(f"{self._found.place}/{name}: {what}")

    def _problem_of(self, name: str) -> Callable[[str], None]:
        return lambda what: self._problem(name, what)


class _Lines:
    """Records as they come in pieces; the first line that is wrong is told, and no other of its kind."""

    def __init__(self, problem: Callable[[str], None], ordered: bool):
        self._problem, self._ordered = problem, ordered
        self._rest, self._last, self._bad, self._number, self.count = b"", "", 0, 0, 0
        self._unsorted = False

    def add(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._line(line)

    def end(self, may_be_torn: bool = False) -> None:
        """The file is over: a last line that is no record may have been torn, by a crash, where that is allowed."""
        is_last = self._bad == self._number and not self._rest
        if self._bad and not (may_be_torn and is_last):
            self._problem(f"line {self._bad} is not a record")
        elif self._rest and not may_be_torn:
            self._problem(f"line {self._number + 1} is not whole")

    def _line(self, line: bytes) -> None:
        self._number += 1
        key = _key(line)
        if key is None:
            self._bad = self._bad or self._number
            return
        self.count += 1
        if self._ordered and self.count > 1 and key <= self._last and not self._unsorted:
            self._unsorted = True
            wrong = "is there twice" if key == self._last else "comes after a greater one"
            self._problem(f"line {self._number}: key {key} {wrong}")
        self._last = key


def _key(line: bytes) -> str | None:
    """The key of a record; None if the line is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record["key"] if is_record(record) else None


# -- what a run must be ------------------------------------------------------------------------------------------------
def out_of_order(config: RunConfig, done: set[tuple[int, str]]) -> Iterator[str]:
    """Committed stages that lack one from before them, by the order in which the run's method makes them."""
    from nlrl.orchestration.methods import method_of, stages_of

    last = max((iteration for iteration, _ in done), default=-1)
    order = [(0, name) for name, _ in method_of(config).first]
    order += [(it, name) for it in range(1, last + 1) for name, _ in stages_of(config, it)]
    missing: tuple[int, str] | None = None
    for stage in order:
        if stage not in done:
            missing = missing or stage
        elif missing is not None:
            yield f"{_folder(stage)}: committed, but {_folder(missing)}, from before it, is not"


def _manifest(data: bytes, stage: tuple[int, str]) -> dict[str, dict[str, Any]]:
    """The files that a manifest names.

    Raises:
        ValueError: it is not a manifest of that stage; says why.
    """
    try:
        manifest = orjson.loads(data)
        files, schema = dict(manifest["files"]), manifest["schema"]
        paths = [(Path(name), dict(what)) for name, what in files.items()]
        named = (manifest["iteration"], manifest["stage"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("damaged. Delete it and rerun the command: the stage is committed again") from error
    if not isinstance(schema, int) or schema > MANIFEST_SCHEMA:
        raise ValueError(f"schema {schema}, but this version reads up to {MANIFEST_SCHEMA}: update nlrl")
    if named != stage:
        raise ValueError(f"is the manifest of {named[1]} of iteration {named[0]}")
    if canonical_json(manifest) != data:
        raise ValueError("was edited: it is not as this program writes it")
    for path, what in paths:
        if path.is_absolute() or ".." in path.parts or not {"bytes", "sha256"} <= what.keys():
            raise ValueError(f"names {path} in a way that this program does not")
    return files


def _folder(stage: tuple[int, str]) -> str:
    return f"iterations/{stage[0]:03d}/{stage[1]}"
