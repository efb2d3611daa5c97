"""What runs there are: their configs and where these differ, how far they are, their last figures.

Reading only: whether a run is being written is told from what its folder says, never by taking its lock.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.errors import NLRLError
from nlrl.orchestration.last_figures import FIGURES, last_figures
from nlrl.orchestration.run_folder import CONFIG_FILE, LOCK_FILE, RunFolder
from nlrl.orchestration.run_lock import is_held
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics
from nlrl.ui.reading import Stamp, find_runs, stamp

__all__ = ["FIGURES", "last_figures"]
AGENT_FOLDER = "agent"
"""What a method exports when it is done."""
UNINTERESTING = ("name", "out", "trackers", "watch")
"""Fields of a config that differ between runs without making them different."""
MISSING = "-"


class Progress(NamedTuple):
    """How far a run is."""

    state: str
    """"finished", "running", "stopped" or "empty"."""
    iteration: int | None
    """The last one that is complete."""
    iterations: int | None
    """How many its config asks for."""
    stage: str = ""
    """The stage that is being written, as `003/rollout`."""

    @property
    def words(self) -> str:
        done = MISSING if self.iteration is None else str(self.iteration)
        return f"{done} of {self.iterations}" if self.iterations is not None else done


class Run(NamedTuple):
    """One run, as the table of runs shows it."""

    name: str
    """Its folder, relative to the folder of runs."""
    path: Path
    config: dict[str, Any]
    """Dotted field -> value; empty where the config cannot be read."""
    metrics: list[dict[str, Any]]
    """What `read_metrics` gives."""
    progress: Progress
    changed: float
    """When its folder last changed, seconds since 1970."""
    problem: str = ""
    """What could not be read, and why."""

    @property
    def figures(self) -> dict[str, float]:
        """The last figures, by column; see `FIGURES`."""
        return last_figures(self.metrics)


# -- runs --------------------------------------------------------------------------------------------------------------
def named_runs(folder: Path) -> dict[str, Path]:
    """Name -> folder of every run; `.` is `folder` itself."""
    return {run.relative_to(folder).as_posix(): run for run in find_runs(folder)}


def run_stamp(run: Path) -> Stamp:
    """Changes whenever a run's figures or its progress may have."""
    watched = [run / CONFIG_FILE, run / METRICS_FILE, run / LOCK_FILE]
    newest = run / "iterations"
    return (*stamp(watched), (str(newest), int(_changed(run)), len(os.listdir(newest)) if newest.is_dir() else 0))


def read_run(name: str, path: Path, now: float | None = None) -> Run:
    """A run, as far as it can be read."""
    config, problem = read_config(path), ""
    try:
        metrics = read_metrics(path / METRICS_FILE)
    except (NLRLError, OSError) as error:
        metrics, problem = [], str(error)
    changed = _changed(path)
    return Run(name, path, config, metrics, progress_of(path, config, metrics, changed, now), changed, problem)


def read_config(run: Path) -> dict[str, Any]:
    """Dotted field -> value of a run's config; empty where it is no TOML."""
    try:
        return flat(tomllib.loads((run / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables under dotted names; an empty table is one value."""
    out: dict[str, Any] = {}
    for name, value in tables.items():
        inner = isinstance(value, Mapping) and value
        out |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return out


def differences(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """The config fields in which runs differ: field -> run -> value."""
    fields = dict.fromkeys(field for run in runs for field in run.config)
    told = {
        field: {run.name: str(run.config[field]) if field in run.config else MISSING for run in runs}
        for field in fields
        if field.partition(".")[0] not in UNINTERESTING
    }
    return {field: values for field, values in told.items() if len(set(values.values())) > 1}


# -- progress ----------------------------------------------------------------------------------------------------------
def progress_of(
    run: Path, config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], changed: float, now: float | None = None
) -> Progress:
    """How far a run is; a run whose driver cannot be asked (another machine's) counts as running while it grows."""
    wanted = config.get("iterations")
    last = metrics[-1]["step"] if metrics else None
    growing = [stage for stage in RunFolder(run).stages() if not stage.is_committed()]
    if last is None and not any(RunFolder(run).stages()):
        return Progress("running" if is_held(run, changed, now) else "empty", None, wanted)
    if (run / AGENT_FOLDER).is_dir() or (wanted is not None and last is not None and last >= wanted):
        return Progress("finished", last, wanted)
    stage = f"{growing[-1].iteration:03d}/{growing[-1].name}" if growing else ""
    return Progress("running" if is_held(run, changed, now) else "stopped", last, wanted, stage)


def _changed(run: Path) -> float:
    """The newest change of what grows while a run goes on."""
    paths = [run / METRICS_FILE, run / CONFIG_FILE]
    iterations = sorted((p for p in run.glob("iterations/*") if p.name.isdigit()), key=lambda p: int(p.name))
    if iterations:
        paths += [p for stage in iterations[-1].iterdir() for p in (stage, *stage.glob("shards/*"))]
    return max((_modified(path) for path in paths), default=0.0)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
