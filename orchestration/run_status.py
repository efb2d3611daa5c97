"""How a run is, told from its folder alone: what `nlrl status RUN` shows.

1. Three sources, in this order: the lock says whether a driver lives, manifests say what is committed, and the driver's
   heartbeat (`status.json`) says what it is doing. Any of them may be missing, torn or old; what cannot be read is left
   out, and `problems` says so.
2. Nothing is written and no lock is taken. Records are not read: a manifest tells how many a stage has, the heartbeat
   how far the open stage is, and without a heartbeat the lines of its shards are counted, or estimated where they are
   large.
"""

from __future__ import annotations

import os
import shlex
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from nlrl.errors import NLRLError
from nlrl.orchestration.last_figures import last_figures
from nlrl.orchestration.records import SHARDS_FOLDER
from nlrl.orchestration.run_folder import CONFIG_FILE, RunFolder
from nlrl.orchestration.run_lock import holder_of, is_held
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics
from nlrl.orchestration.watch import STATUS_FILE

STALLED = 60.0
"""Seconds without a heartbeat after which a living driver counts as stalled."""
COUNTED_BYTES = 1 << 25
"""Shards up to that size are counted line by line."""
AGENT_FOLDER = "agent"


class Status(NamedTuple):
    """A run at one moment. Times are in seconds; None and empty where nothing is known."""

    run: str
    """Its folder."""
    state: str
    """running, stalled, finished, failed, stopped (by a person or a kill), empty, or "no run"."""
    name: str = ""
    method: str = ""
    game: str = ""
    model: str = ""
    process: int | None = None
    host: str = ""
    started: float | None = None
    """Seconds since 1970."""
    heartbeat: float | None = None
    """Seconds since the last one."""
    iteration: int | None = None
    iterations: int | None = None
    stage: str = ""
    """That is open."""
    part: str = ""
    """What it is doing; `done` and `wanted` are about that."""
    stage_seconds: float | None = None
    done: int | None = None
    wanted: int | None = None
    exact: bool = True
    """Whether `done` is counted; otherwise it is estimated from the size of shards."""
    per_second: float | None = None
    seconds_left: float | None = None
    """Of the open stage, at its pace, or as long as it took in the iteration before."""
    run_seconds_left: float | None = None
    """Of the run, if further iterations take as long as the last one."""
    tokens_per_second: float | None = None
    models: Mapping[str, float] = {}
    """What model servers have done since the driver was started."""
    failures_per_turn: float | None = None
    """Of the newest games: answers that could not be read."""
    figures: Mapping[str, float] = {}
    seconds: Mapping[str, float] = {}
    """By stage, of the last iteration that is complete."""
    committed: Sequence[str] = ()
    """Stages of the newest iteration that has any, as `003/rollout`."""
    records: int = 0
    """In all committed stages."""
    bytes: int = 0
    """On disk."""
    dashboard: str = ""
    job: str = ""
    metrics: Sequence[str] = ()
    """Where Prometheus finds its metrics."""
    error: str = ""
    """Why it failed."""
    resume: str = ""
    """The command that goes on with it."""
    problems: Sequence[str] = ()


def read_status(run: str | Path, now: float | None = None) -> Status:
    """How a run is.

    Args:
        now: seconds since 1970, for tests.
    """
    path, now = Path(run), time.time() if now is None else now
    if not path.is_dir():
        return Status(str(run), "no run", problems=(f"{path}: there is no such folder",))
    return _Reading(path, now).status()


class _Reading:
    """One look at a folder."""

    def __init__(self, path: Path, now: float):
        self.path, self.now = path, now
        self.problems: list[str] = []
        self.config = self._config()
        self.beat = self._beat()
        self.stages = self._stages()
        self.metrics = self._metrics()

    def status(self) -> Status:
        beat, config = self.beat, self.config
        if not config and not self.stages:
            self.problems.append(f"{self.path / CONFIG_FILE}: missing, so this is not a run")
        state = self._state()
        open_now = state in ("running", "stalled")
        holder = holder_of(self.path)
        where = _table(beat.get("where"))
        return Status(
            run=str(self.path),
            state=state,
            name=str(config.get("name", "")),
            method=str(config.get("method", "")),
            game=str(_table(config.get("game")).get("name", "")),
            model=str(_table(config.get("model")).get("name", "")),
            process=holder.process if holder and open_now else None,
            host=holder.host if holder and open_now else "",
            started=_number(beat.get("started")),
            heartbeat=self.now - at if (at := _number(beat.get("beat"))) is not None else None,
            iteration=self._iteration(open_now),
            iterations=_whole(config.get("iterations")),
            tokens_per_second=_number(_table(beat.get("models")).get("tokens_per_second")) if open_now else None,
            models={k: v for k, v in _table(beat.get("models")).items() if isinstance(v, int | float)},
            failures_per_turn=self._failures(),
            figures=last_figures(self.metrics),
            seconds=self._seconds(),
            committed=[f"{s.iteration:03d}/{s.name}" for s in self._newest() if s.is_committed()],
            records=sum(self._records(stage) for stage in self.stages),
            bytes=disk_used(self.path) if state != "no run" else 0,
            dashboard=str(where.get("dashboard") or ""),
            job=str(where.get("submission") or where.get("job") or ""),
            metrics=_metrics_at(where) if open_now else (),
            error=str(beat.get("error", "")) if state == "failed" else "",
            resume="" if open_now or state == "finished" or not config else self._resume(),
            **self._open_stage(open_now),
            problems=tuple(self.problems),
        )

    # -- what is there -------------------------------------------------------------------------------------------------
    def _config(self) -> dict[str, Any]:
        try:
            return tomllib.loads((self.path / CONFIG_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.problems.append(f"{self.path / CONFIG_FILE}: cannot be read: {error}")
            return {}

    def _beat(self) -> dict[str, Any]:
        try:
            return _table(orjson.loads((self.path / STATUS_FILE).read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.problems.append(f"{self.path / STATUS_FILE}: cannot be read: {error}")
            return {}

    def _stages(self) -> list[Stage]:
        try:
            return list(RunFolder(self.path).stages())
        except OSError as error:
            self.problems.append(str(error))
            return []

    def _metrics(self) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.path / METRICS_FILE)
        except (NLRLError, OSError, ValueError, TypeError) as error:
            self.problems.append(str(error))
            return []

    def _manifest(self, stage: Stage) -> dict[str, Any]:
        try:
            return _table(stage.load()) if stage.is_committed() else {}
        except (NLRLError, OSError, TypeError) as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return {}

    # -- what it means -------------------------------------------------------------------------------------------------
    def _state(self) -> str:
        beat = _number(self.beat.get("beat")) or 0.0
        if is_held(self.path, max(self._changed(), beat), self.now):
            told = self.beat.get("state") == "running" and self.beat.get("process") == _pid(self.path)
            return "stalled" if told and self.now - beat > STALLED else "running"
        if self._is_finished():
            return "finished"
        if not self.stages and not self.config:
            return "no run" if any(self.path.iterdir()) else "empty"
        if self.beat.get("state") == "failed":
            return "failed"
        return "stopped" if self.stages else "empty"

    def _is_finished(self) -> bool:
        wanted, last = _whole(self.config.get("iterations")), self.metrics[-1]["step"] if self.metrics else None
        return (self.path / AGENT_FOLDER).is_dir() or (wanted is not None and last is not None and last >= wanted)

    def _changed(self) -> float:
        paths = [self.path / METRICS_FILE, self.path / CONFIG_FILE]
        paths += [path for stage in self._newest() for path in (stage.dir, *_shards(stage))]
        return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)

    def _newest(self) -> list[Stage]:
        last = max((stage.iteration for stage in self.stages), default=None)
        return [stage for stage in self.stages if stage.iteration == last]

    def _iteration(self, open_now: bool) -> int | None:
        """That is being done, or the last that was begun."""
        told = _whole(self.beat.get("iteration")) if open_now else None
        return told if told is not None else max((stage.iteration for stage in self.stages), default=None)

    def _failures(self) -> float | None:
        for stage in reversed(self.stages):
            rate = _number(_table(self._manifest(stage).get("metrics")).get("failures_per_turn"))
            if rate is not None:
                return rate
        return None

    def _seconds(self) -> dict[str, float]:
        for entry in reversed(self.metrics):
            found = {k.removeprefix("seconds/"): v for k, v in entry["metrics"].items() if k.startswith("seconds/")}
            if found:
                return found
        return {}

    def _records(self, stage: Stage) -> int:
        files = _table(self._manifest(stage).get("files"))
        return _whole(_table(files.get("records.jsonl")).get("records")) or 0

    def _open_stage(self, open_now: bool) -> dict[str, Any]:
        growing = [stage for stage in self._newest() if not stage.is_committed()]
        name = str(self.beat.get("stage") or "") if open_now else ""
        if not name and not growing:
            return {"run_seconds_left": self._rest()} if open_now else {}
        stage = next((one for one in growing if one.name == name), growing[-1] if growing else None)
        if open_now and self.beat.get("stage"):
            return {"stage": name} | self._paced(name)
        assert stage is not None
        done, exact = count_lines(_shards(stage))
        wanted = _whole(_table(self.config.get("rollout")).get("games")) if stage.name == "rollout" else None
        return {"stage": stage.name, "done": done, "wanted": wanted, "exact": exact}

    def _paced(self, name: str) -> dict[str, Any]:
        """The open stage of a living driver, and when it will end."""
        since, before = _number(self.beat.get("since")), _number(self.beat.get("before")) or 0.0
        done, wanted = _number(self.beat.get("done")), _number(self.beat.get("wanted"))
        took = max(0.0, self.now - since) if since is not None else None
        begun = _number(self.beat.get("part_since"))
        spent = max(0.0, self.now - begun) if begun is not None else took
        pace = (done - before) / spent if done is not None and spent and done > before else None
        left = (wanted - done) / pace if pace and wanted and done is not None and done < wanted else None
        if left is None and took is not None and name in self._seconds():
            left = max(0.0, self._seconds()[name] - took)
        rest = self._rest(took or 0.0)
        found = {"stage_seconds": took, "per_second": pace, "seconds_left": left, "run_seconds_left": rest}
        return found | {"part": str(self.beat.get("part") or ""), "done": _whole(done), "wanted": _whole(wanted)}

    def _rest(self, took: float = 0.0) -> float | None:
        wanted, last = _whole(self.config.get("iterations")), self.metrics[-1]["step"] if self.metrics else None
        if wanted is None or last is None or not self._seconds():
            return None
        stages, each = {stage.name for stage in self._newest() if stage.is_committed()}, self._seconds()
        behind = sum(seconds for name, seconds in each.items() if name in stages) + took
        already = behind if self._newest() and self._newest()[0].iteration > last else 0.0
        return max(0.0, (wanted - last) * sum(each.values()) - already)

    def _resume(self) -> str:
        """The config says where it was to be; the folder may have been moved."""
        place = [] if Path(str(self.config.get("out", ""))) == self.path else ["--out", str(self.path)]
        return shlex.join(["nlrl", "run", str(self.path / CONFIG_FILE), *place])


# -- pieces ------------------------------------------------------------------------------------------------------------
def disk_used(folder: Path) -> int:
    """Bytes of all files of a folder and below; links are not followed."""
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # gone meanwhile
    return total


def count_lines(paths: Iterable[Path], most: int = COUNTED_BYTES) -> tuple[int, bool]:
    """Whole lines of files, and whether they were counted: beyond `most` bytes they are estimated from their first
    ones."""
    lines, exact, left = 0, True, most
    for path in paths:
        try:
            size, part = path.stat().st_size, min(path.stat().st_size, max(left, most // 32))
            with open(path, "rb") as file:
                found = _newlines(file, part)
        except OSError:
            continue
        left -= part
        lines += found if part == size else round(found * size / part)
        exact = exact and part == size
    return lines, exact


def _newlines(file: Any, size: int) -> int:
    count = 0
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        count, size = count + block.count(b"\n"), size - len(block)
    return count


def _shards(stage: Stage) -> list[Path]:
    return sorted((stage.dir / SHARDS_FOLDER).glob("*.jsonl"))


def _metrics_at(where: Mapping[str, Any]) -> tuple[str, ...]:
    nodes = where.get("metrics_of_nodes")
    own = (str(where["metrics"]),) if where.get("metrics") else ()
    return own + (tuple(f"http://{node}/metrics" for node in nodes) if isinstance(nodes, list) else ())


def _pid(run: Path) -> int | None:
    holder = holder_of(run)
    return holder.process if holder else None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == number and abs(number) < 1e15 else None
