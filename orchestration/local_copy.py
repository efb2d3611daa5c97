"""The local copy of a run that lies in a store: what is in it, and how it catches up with the store.

    COPY/.store.json                      which run of which store this is a copy of, and how far
    COPY/.superseded/20261122-103300/     what was set aside because the store says otherwise; never deleted
    COPY/iterations/003/rollout/shards/stored.jsonl     records that another machine made for a stage in progress

1. What the store has committed is the run. Stages are fetched with their manifests last, and every file is held to the
   sha256 in its manifest before it counts.
2. A local stage that the store has committed with other bytes was made by a driver that had lost the run. It is set
   aside with all local stages that the store lacks, since they may build on it.
3. If another run, or none, is at the URL now, the whole copy is set aside.
4. Files beside the stages (metrics, diary, agent) are taken from the store unless this copy wrote them last.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_atomic, write_json_atomic
from nlrl.orchestration.records import MANIFEST_FILE, SHARDS_FOLDER
from nlrl.orchestration.run_folder import CONFIG_FILE, LOCK_FILE
from nlrl.orchestration.stage_folder import describe
from nlrl.orchestration.store import Store

Wanted = Callable[[str], bool]
STATE_FILE = ".store.json"
ID_FILE = ".nlrl/run.json"
STORED = "stored"
"""Name, without its ending, of the shard and of the ledger that hold what other machines made."""
SUPERSEDED = ".superseded"
_STAGE = re.compile(r"(iterations/\d+/[a-z0-9_-]+)/(.+)")
_SEGMENT = re.compile(rf"{SHARDS_FOLDER}/(\d+)-(\d+)\.(jsonl|ledger)")
_log = logging.getLogger(__name__)


def everything(name: str) -> bool:
    """All of a run."""
    return True


class LocalCopy:
    """The copy in `folder` of the run at a store's URL. Only for the process that holds the folder's lock."""

    def __init__(self, store: Store, folder: Path):
        self.store, self.folder = store, folder
        state = _read_json(folder / STATE_FILE)
        self.id: str = state.get("id", "")
        self.terms: list[int] = state.get("terms", [])
        """The terms (see `lease`) in which this copy was written."""
        self.committed: set[str] = set(state.get("committed", []))
        """Stages, as `iterations/003/rollout`, that are known to be the same here and in the store."""
        self.uploaded: dict[str, dict[str, int]] = state.get("uploaded", {})
        """Stage -> shard -> bytes of it that the store has."""
        self.sent: dict[str, list[int]] = state.get("sent", {})
        """Other files that were put into the store: size and time (ns) of the file then."""
        self._marks: dict[str, str] = state.get("marks", {})
        self._restored: dict[str, list[str]] = state.get("restored", {})

    def save(self) -> None:
        """Keeps how far this copy is."""
        state = {
            "url": self.store.url,
            "id": self.id,
            "terms": self.terms,
            "committed": sorted(self.committed),
            "uploaded": self.uploaded,
            "sent": self.sent,
            "marks": self._marks,
            "restored": self._restored,
        }
        write_json_atomic(self.folder / STATE_FILE, state)

    def identify(self, create: bool) -> None:
        """Makes sure that this is a copy of the run that is at the URL now; otherwise it becomes an empty one.

        Args:
            create: give the run at the URL an identity if it has none.
        """
        there = self._identity()
        if self.id and self.id != there:
            self._set_aside([path for path in self.folder.iterdir() if path.name not in (LOCK_FILE, SUPERSEDED)])
            self.__init__(self.store, self.folder)
        if not there and create:
            there = secrets.token_hex(16)
            if not self.store.create(ID_FILE, orjson.dumps({"id": there})):
                there = self._identity()
        if there != self.id:
            self.id = there
            self.save()

    def bring_config(self) -> None:
        """Fetches the run's config, if it has one."""
        try:
            config = self.store.read(CONFIG_FILE)
        except FileNotFoundError:
            return
        if not (path := self.folder / CONFIG_FILE).is_file() or path.read_bytes() != config:
            write_atomic(path, config)

    def bring(self, wanted: Wanted = everything, last_term: int = 0) -> list[str]:
        """Fetches what the store has and this copy lacks; returns what a killed driver has left there without use, the
        pieces of stages that are committed.

        Args:
            wanted: by name within the run, whether a file is needed.
            last_term: of whoever wrote the run last.

        Raises:
            NLRLError: a file in the store is not what its manifest says.
        """
        infos = self.store.infos()
        stages: dict[str, list[str]] = {}
        for name in infos:
            if match := _STAGE.fullmatch(name):
                stages.setdefault(match[1], []).append(match[2])
        done = [stage for stage, names in stages.items() if MANIFEST_FILE in names]
        self._settle_conflicts(done)
        for stage in done:
            self._bring_stage(stage, {name: infos[f"{stage}/{name}"]["size"] for name in stages[stage]}, wanted)
        for stage in stages.keys() - set(done):
            if not (self.folder / stage / MANIFEST_FILE).is_file():
                self._bring_segments(stage, stages[stage])
        if last_term not in self.terms:
            self._bring_others({name: info for name, info in infos.items() if wanted(name)})
        self.save()
        return [f"{stage}/{name}" for stage in done for name in stages[stage] if name.startswith(f"{SHARDS_FOLDER}/")]

    # -- stages --------------------------------------------------------------------------------------------------------
    def _bring_stage(self, stage: str, sizes: Mapping[str, int], wanted: Wanted) -> None:
        folder, known = self.folder / stage, stage in self.committed
        path = folder / MANIFEST_FILE
        known = known and path.is_file()
        manifest = path.read_bytes() if known else self.store.read(f"{stage}/{MANIFEST_FILE}")
        files = _files_of(manifest, f"{self.store.url}/{stage}/{MANIFEST_FILE}")
        for name, expected in files.items():
            if _is_there(folder / name, expected, known):
                continue
            (folder / name).unlink(missing_ok=True)
            if wanted(f"{stage}/{name}"):
                self._bring_file(f"{stage}/{name}", expected)
        for name in sizes.keys() - files.keys() - {MANIFEST_FILE}:
            fresh = known and (folder / name).is_file() and (folder / name).stat().st_size == sizes[name]
            plain = not name.startswith((f"{SHARDS_FOLDER}/", ".")) and "/." not in name
            if not fresh and plain and wanted(f"{stage}/{name}"):
                self.store.get(f"{stage}/{name}", folder / name)
        if not known:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, manifest)
            self.committed.add(stage)
        shutil.rmtree(folder / SHARDS_FOLDER, ignore_errors=True)

    def _bring_file(self, name: str, expected: Mapping[str, Any]) -> None:
        path = self.folder / name
        try:
            found = self.store.get(name, path)
        except FileNotFoundError:
            raise NLRLError(f"{self.store.url}/{name}: missing, but its manifest names it; {_MEND}") from None
        if found != expected["sha256"]:
            path.unlink()
            raise NLRLError(
                f"{self.store.url}/{name}: sha256 is {found}, the manifest says {expected['sha256']}; {_MEND}"
            )

    def _bring_segments(self, stage: str, names: Iterable[str]) -> None:
        """All segments of other machines become one shard and one ledger, so that thousands of them stay two files."""
        matches = [match for match in map(_SEGMENT.fullmatch, names) if match and int(match[1]) not in self.terms]
        matches.sort(key=lambda match: (int(match[1]), int(match[2])))
        found = [match[0] for match in matches]
        if not found or found == self._restored.get(stage):
            return
        shards = self.folder / stage / SHARDS_FOLDER
        shards.mkdir(parents=True, exist_ok=True)
        for ending in ("ledger", "jsonl"):  # costs first: a record must not come back without what it cost
            pieces = [self.store.read(f"{stage}/{name}") for name in found if name.endswith(ending)]
            write_atomic(shards / f"{STORED}.{ending}", b"".join(pieces))
        self._restored[stage] = found

    def _settle_conflicts(self, done: Iterable[str]) -> None:
        there = set(done)
        local = {path.parent.relative_to(self.folder).as_posix(): path for path in self._manifests()}
        clashes = [stage for stage in there - self.committed if stage in local and self._differs(stage, local[stage])]
        if clashes or self.committed & (local.keys() - there):
            stages = [p.relative_to(self.folder).as_posix() for p in self.folder.glob("iterations/*/*/")]
            lost = [stage for stage in stages if stage in clashes or stage not in there]
            self._set_aside([self.folder / stage for stage in lost])
            for stage in lost:
                self.uploaded.pop(stage, None)
                self._restored.pop(stage, None)
        self.committed &= there

    def _differs(self, stage: str, manifest: Path) -> bool:
        if self.store.read(f"{stage}/{MANIFEST_FILE}") != manifest.read_bytes():
            return True
        self.committed.add(stage)
        return False

    def _manifests(self) -> Iterable[Path]:
        return self.folder.glob(f"iterations/*/*/{MANIFEST_FILE}")

    # -- other files ---------------------------------------------------------------------------------------------------
    def _bring_others(self, infos: Mapping[str, Mapping[str, Any]]) -> None:
        for name, info in infos.items():
            path = self.folder / name
            if _STAGE.fullmatch(name) or any(part.startswith(".") for part in Path(name).parts):
                continue
            known = path.is_file() and path.stat().st_size == info["size"] and self._marks.get(name) == info["mark"]
            if not known or not info["mark"]:
                self.store.get(name, path)
                self._marks[name] = info["mark"]

    def _identity(self) -> str:
        try:
            return json.loads(self.store.read(ID_FILE))["id"]
        except FileNotFoundError:
            return ""
        except (ValueError, KeyError, TypeError) as error:
            raise NLRLError(f"{self.store.url}/{ID_FILE}: damaged. Delete it to keep the run as it is") from error

    def _set_aside(self, paths: Iterable[Path]) -> None:
        aside = self.folder / SUPERSEDED / time.strftime("%Y%m%d-%H%M%S")
        while aside.exists():
            aside = aside.with_name(aside.name + "x")
        for path in paths:
            target = aside / path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
        if aside.exists():
            _log.warning("%s says otherwise than the local copy; what differs was moved to %s", self.store.url, aside)


_MEND = "put it back from a copy, or delete the stage in the store to have it made again"


def _is_there(path: Path, expected: Mapping[str, Any], known: bool) -> bool:
    """Whether a file is what a manifest says; where the stage was compared before, its size tells."""
    if not path.is_file() or path.stat().st_size != expected["bytes"]:
        return False
    return known or describe(path)["sha256"] == expected["sha256"]


def _files_of(manifest: bytes, where: str) -> dict[str, dict[str, Any]]:
    try:
        files = orjson.loads(manifest)["files"]
        paths = [Path(name) for name in files]
    except (ValueError, KeyError, TypeError) as error:
        raise NLRLError(f"{where}: damaged; {_MEND}") from error
    if bad := [path for path in paths if path.is_absolute() or ".." in path.parts]:
        raise NLRLError(f"{where}: names {bad[0]}, which is outside of the stage; {_MEND}")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
