"""Killing runs, to prove that nothing is lost: see docs/reliability.md.

1. A *life* is one start of the run's command. `Life.victims` says which of its processes plays which role; `Life.wait`
   waits for a moment of the run, told by what is on disk; `Life.kill` sends SIGKILL, which nobody can catch: to the
   kernel's out-of-memory killer, to a power switch and to this, a process looks the same.
2. A run has as many lives as it needs. `whole` tells what its result consists of, `keys` which records it has,
   `differences` what they lack beside those of a run that nobody disturbed.
3. The records, manifests and weights of a run are written by its driver (weights by the trainer, under a temporary name
   that the driver gave it). To die in the middle of a write is what `nlrl.testing.dying` is for;
   `nlrl.testing.full_disk` takes the room away.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.methods import method_of, stages_of
from nlrl.orchestration.run_folder import RunFolder, verify

DRIVER, ROLLOUT, MODEL, TRAINER, RAYLET, GCS = "driver", "rollout", "model", "trainer", "raylet", "gcs"
SURVIVED = (ROLLOUT, MODEL)
"""Roles whose death a run survives: they are made anew."""
_TITLES = {
    ROLLOUT: re.compile(r"ray::rollout-\d+"),
    MODEL: re.compile(r"ray::(model|teacher|agent-\d+)\b"),
    TRAINER: re.compile(r"ray::trainer\b"),
    RAYLET: re.compile(r"\S*/raylet\b"),
    GCS: re.compile(r"\S*/gcs_server\b"),
}
_RESULTS = ("iterations/*/*/manifest.json", "iterations/*/*/records.jsonl", "evaluations.md", "agent/*")


class Moment(NamedTuple):
    """When to kill: so many seconds after a stage has left its first trace on disk."""

    iteration: int
    stage: str
    delay: float = 0.0


class Ended(NamedTuple):
    """How a life ended."""

    code: int
    """Exit status; -9 of one that was killed itself."""
    errors: str
    seconds: float
    """Since it began."""


def nlrl_command(*arguments: object) -> list[str]:
    """`nlrl ...` of this Python."""
    return [sys.executable, "-m", "nlrl.orchestration.cli", *map(str, arguments)]


# -- processes ---------------------------------------------------------------------------------------------------------
def processes_below(pid: int) -> dict[int, str]:
    """Command lines of the processes that descend from one, itself left out; the dead who wait for their parents are
    not among them."""
    found: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if state not in "ZX":
            found[int(path.name)] = int(parent), title
    below, size = {pid}, 0
    while size < len(below):
        size = len(below)
        below |= {child for child, (parent, _) in found.items() if parent in below}
    return {child: found[child][1] for child in below - {pid}}


def victims(pid: int) -> dict[str, list[int]]:
    """The processes of a run by role, oldest first; those that have no role are left out.

    Args:
        pid: of its driver.
    """
    below = processes_below(pid)
    found = {role: sorted(p for p, title in below.items() if name.match(title)) for role, name in _TITLES.items()}
    return {DRIVER: [pid]} | found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# -- lives -------------------------------------------------------------------------------------------------------------
class Life:
    """One start of a run's command. A context manager: whatever happens, its driver is gone afterwards.

    Args:
        command: that runs or resumes the run.
        folder: of the run.
        environment: in addition to this process's own.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str] | None = None):
        self.folder = folder
        self._began = time.monotonic()
        self._found: dict[str, list[int]] = {}
        env = {**os.environ, **(environment or {})}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe would block when nobody reads)
        self._run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._errors, env=env)

    @property
    def pid(self) -> int:
        return self._run.pid

    def is_over(self) -> bool:
        return self._run.poll() is not None

    def victims(self) -> dict[str, list[int]]:
        return victims(self.pid)

    def wait(self, moment: Moment, patience: float = 240.0) -> bool:
        """Waits for a moment; returns whether it came, rather than the end.

        Raises:
            TimeoutError: neither came.
        """
        stage = self.folder / "iterations" / f"{moment.iteration:03d}" / moment.stage
        deadline = time.monotonic() + patience
        while not stage.exists():
            if self.is_over():
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"{stage} was never begun in {patience:g} s; said so far:\n{self.errors()}")
            time.sleep(0.001)
        time.sleep(moment.delay)
        return not self.is_over()

    def kill(self, role: str, rng: random.Random) -> int | None:
        """Kills one process of a role, as soon as there is one; returns which, or None if the run is over."""
        while not (found := self.victims())[role]:
            if self.is_over():
                return None
            time.sleep(0.02)
        if self.is_over():
            return None
        self._found = found
        victim = rng.choice(found[role])
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return None
        return victim

    def end(self, patience: float = 240.0) -> Ended:
        """Waits for the end of the driver.

        Raises:
            TimeoutError: it does not end; it is killed then.
        """
        try:
            self._run.wait(patience)
        except subprocess.TimeoutExpired:
            self._run.kill()
            raise TimeoutError(f"no end in {patience:g} s; said so far:\n{self.errors()}") from None
        return Ended(self._run.returncode, self.errors(), time.monotonic() - self._began)

    def errors(self) -> str:
        """What the run has written to its standard error so far."""
        end = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), end, 0).decode(errors="replace")

    def orphans(self) -> list[int]:
        """Processes of any role that were there at the last kill, and still are. (Ray's helpers, which have none and
        hold nothing, may stay for a minute.)"""
        return [pid for found in self._found.values() for pid in found if is_alive(pid)]

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_over():
            self._run.kill()
        self._run.wait()
        self._errors.close()


def kill_at(moment: Moment, command: Sequence[str], folder: Path, role: str = DRIVER, seed: int = 0) -> bool:
    """One life whose process of a role is killed at a moment; returns whether it was in time."""
    with Life(command, folder) as life:
        hit = life.wait(moment) and life.kill(role, random.Random(seed)) is not None
        life.end()
    return hit


def all_stages(config: RunConfig) -> list[tuple[int, str]]:
    """Every stage of a run, in order."""
    first = [(0, name) for name, _ in method_of(config).first]
    later = [(i, name) for i in range(1, config.iterations + 1) for name, _ in stages_of(config, i)]
    return first + later


def stages_ahead(config: RunConfig, folder: Path) -> list[tuple[int, str]]:
    """Those that are not committed yet."""
    run = RunFolder(folder)
    return [(i, name) for i, name in all_stages(config) if not run.stage(i, name).is_committed()]


# -- results -----------------------------------------------------------------------------------------------------------
def whole(folder: Path) -> dict[str, bytes]:
    """Everything that a run's result consists of, by path within its folder: manifests (which hold the hash of every
    record file and weight), records, diary, agent."""
    paths = [path for pattern in _RESULTS for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths) if path.is_file()}


def keys(folder: Path) -> dict[str, Counter[str]]:
    """How often each record key occurs, by stage."""
    return {
        str(path.parent.relative_to(folder)): Counter(json.loads(line)["key"] for line in path.open("rb"))
        for path in sorted(folder.glob("iterations/*/*/records.jsonl"))
    }


def differences(folder: Path, reference: Path, bytes_too: bool = True) -> list[str]:
    """What a finished run lacks beside the one that nobody disturbed; nothing, if all is well.

    Args:
        bytes_too: whether every byte of the result must be the same, or the record keys alone.
    """
    found, wanted = keys(folder), keys(reference)
    problems = [f"{stage}: {key} is there {n} times" for stage, of in found.items() for key, n in of.items() if n > 1]
    problems += [
        f"{stage}: other records" for stage in sorted({*found, *wanted}) if found.get(stage) != wanted.get(stage)
    ]
    problems += verify(folder)
    if bytes_too:
        mine, theirs = whole(folder), whole(reference)
        problems += [f"{name}: other bytes" for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    return problems
