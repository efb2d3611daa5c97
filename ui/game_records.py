"""Finds one game's record, and what the records of its run say about its positions.

Files are searched as bytes and only lines that matter are parsed: a stage may hold a hundred thousand records. A torn
last line, like any line that is no record, is passed over; nothing is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import orjson

from nlrl.envs import make, make_from_spec
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig, load_config
from nlrl.orchestration.records import GAME_KINDS, Record, is_record, record_files
from nlrl.orchestration.run_folder import CONFIG_FILE, RunFolder

LOOK_AHEADS = "lookaheads"
"""The stage of iteration 0 that holds them."""
_STAGE = re.compile(r"(?P<iteration>\d{1,9})/(?P<name>[a-z0-9_-]+)")
_STATE = re.compile(rb'"state": ?("(?:[^"\\]|\\.)*")')
_KEY = re.compile(rb'"key": ?"([^"\\]{1,200})"')
_IS_GAME = re.compile(f'"kind": ?"(?:{"|".join(GAME_KINDS)})"'.encode())


# -- folders -----------------------------------------------------------------------------------------------------------
def find_run(folder: Path, name: str) -> Path | None:
    """The run of that name in the folder of runs; None where there is none, or where the name leads out of it (links
    that somebody put there may)."""
    try:
        run = Path(os.path.normpath(folder / name))
        inside = run.is_relative_to(os.path.normpath(folder))
        return run if name and inside and (run / CONFIG_FILE).is_file() else None
    except (OSError, ValueError):  # names may hold anything, such as a zero byte
        return None


def stage_folder(run: Path, stage: str) -> Path | None:
    """The folder of a stage that is named as in links, `003/rollout`; None where there is none."""
    match = _STAGE.fullmatch(stage)
    if match is None:
        return None
    folder = RunFolder(run).stage(int(match["iteration"]), match["name"]).dir
    return folder if folder.is_dir() else None


def iteration_of(stage: str) -> int:
    """The iteration of a stage that is named as in links."""
    return int(stage.partition("/")[0])


def game_stages(run: Path) -> list[str]:
    """The stages that hold a game."""
    found = [(f"{stage.iteration:03d}/{stage.name}", stage.dir) for stage in RunFolder(run).stages()]
    return [name for name, folder in found if next(_lines(folder, _IS_GAME.search), None)]


def game_keys(folder: Path, most: int) -> list[str]:
    """The keys of a stage's first games."""
    keys: dict[str, None] = {}
    for line in _lines(folder, _IS_GAME.search):
        if match := _KEY.search(line):
            keys[match[1].decode(errors="replace")] = None
        if len(keys) >= most:
            break
    return list(keys)


def find_game(folder: Path, key: str) -> Record | None:
    """The record of one game of a stage."""
    wanted = key.encode(errors="surrogatepass")
    for line in _lines(folder, lambda line: wanted in line):
        record = _record(line)
        if record and record["key"] == key and record["kind"] in GAME_KINDS:
            return record
    return None


def records_about(run: Path, iteration: int, states: Collection[str]) -> dict[str, list[Record]]:
    """What the stages of an iteration hold about positions, by position: targets, choices, policies, values; and the
    look-aheads that labels of all iterations share.

    Args:
        states: as `Game.to_text` writes them.
    """
    wanted = {orjson.dumps(state): state for state in states}
    found: dict[str, list[Record]] = {}

    def matters(line: bytes) -> bool:
        match = _STATE.search(line)
        return match is not None and match[1] in wanted

    shared = [run / "iterations" / "000" / LOOK_AHEADS] if iteration else []
    for folder in [*sorted((run / "iterations" / f"{iteration:03d}").glob("*/")), *shared]:
        keys: set[str] = set()
        for record in filter(None, map(_record, _lines(folder, matters))):
            if record["key"] not in keys and record.get("state") in states:
                keys.add(record["key"])
                found.setdefault(record["state"], []).append(record)
    return found


def _lines(folder: Path, matters: Callable[[bytes], Any]) -> Iterator[bytes]:
    for path in record_files(folder):
        try:
            with open(path, "rb") as file:
                yield from (line for line in file if matters(line))
        except OSError:
            continue  # removed since it was listed: the stage has just been committed


def _record(line: bytes) -> Record | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if is_record(value) else None


# -- what a run says of itself -----------------------------------------------------------------------------------------
def run_config(run: Path) -> RunConfig | None:
    """The run's config; None where it is not one of a run of this version (a league's, a damaged one)."""
    try:
        return load_config(run / CONFIG_FILE)
    except NLRLError:
        return None


def game_of(run: Path, record: Record) -> Game[Any]:
    """The game that the record names, else the run's.

    Raises:
        NLRLError: neither says, or there is no such game.
    """
    if isinstance(record.get("game"), str):
        return make_from_spec(record["game"])
    config = run_config(run)
    if config is None:
        raise NLRLError(f"{run}: neither the record nor the run's config says which game this is")
    return make(config.game.name, **config.game.params)
