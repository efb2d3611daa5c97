"""Exactly once, proven by killing: runs are killed over and over, and must end as if nobody had touched them.

    nlrl bench kills                                             10 kills, two minutes
    nlrl bench kills -- --kills 200 --seed 1 --out kills.json    the nightly form
    nlrl bench kills -- --scenes learned --kills 20              a network, trained under Ray

A *scene* is a kind of run: `inline` (one process), `ray` (a process each for driver, rollout workers, model servers and
trainer), `learned` (the same with a bundled network that is trained), `disk` (inline, on a disk that is full). Each run
is killed at seeded moments, in process after process, and started again with the same command at once; when it has
ended, its records and manifests are held beside those of a run that nobody disturbed. A kill counts if it hit a living
process. The exit status is 1 if anything differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from nlrl.benchmarks.figures import machine
from nlrl.orchestration.config import RunConfig, to_toml, validated
from nlrl.testing.full_disk import SmallDisk, can_mount
from nlrl.testing.kills import (
    DRIVER,
    GCS,
    MODEL,
    RAYLET,
    ROLLOUT,
    SURVIVED,
    TRAINER,
    Ended,
    Life,
    Moment,
    differences,
    nlrl_command,
    stages_ahead,
    whole,
)

WRITER, DISK = "writer", "disk"
SCRIPTED: dict[str, Any] = {
    "name": "kills",
    "iterations": 2,
    "trackers": [],
    "model": {"kind": "scripted", "name": "nlrl.testing.by_rules"},
    "rollout": {"games": 16, "samples_per_state": 2, "samples_at_start": 4, "workers": 2},
    "targets": {"texts_min": 1, "texts_max": 2, "continuations": 4},
    "evaluation": {"games": 4, "opponents": ["random", "minimax"], "value_states": 5, "probes": ["1 5 9"]},
}
LEARNED: dict[str, Any] = {
    "name": "kills",
    "iterations": 1,
    "trackers": [],
    "model": {"kind": "native", "name": "transformer-base", "device": "cpu"},
    "rollout": {"games": 8, "samples_per_state": 1, "samples_at_start": 2, "workers": 2},
    "targets": {"texts_min": 1, "texts_max": 1, "continuations": 2, "actions": "visited"},
    "critic": {"first_epochs": 1},
    "actor": {"first_epochs": 1},
    "evaluation": {"games": 0, "opponents": ["random"], "value_states": 2, "probes": ["1 5 9"]},
}
INLINE = {"cluster": {"kind": "inline", "threads": 1}}
RAY = {"cluster": {"kind": "ray", "servers": 2, "threads": 2}}
EVENTS_AHEAD = {"any": 200, "write": 60, "fsync": 30, "open": 30, "os.rename": 9, "os.remove": 9, "os.mkdir": 5}
"""How many events of a kind a life sees at most before it dies in one: a fraction of a run's."""
DELAY = 0.3
"""Seconds that a process lives at most into the stage in which it is killed."""


class Scene(NamedTuple):
    """A kind of run, and what befalls it."""

    config: dict[str, Any]
    lives: tuple[tuple[str, ...], ...]
    """The roles that are killed in one life, in order; a life is one of these. All but the last are made anew."""
    kills: int
    """At a run."""
    share: int
    """Of every hundred kills."""


SCENES = {
    "inline": Scene(SCRIPTED | INLINE, ((WRITER,), (DRIVER,)), 10, 45),
    "ray": Scene(
        SCRIPTED | RAY,
        ((ROLLOUT, MODEL, TRAINER), (MODEL, ROLLOUT, DRIVER), (ROLLOUT, MODEL, ROLLOUT), (RAYLET,), (TRAINER,), (GCS,)),
        10,
        35,
    ),
    "learned": Scene(LEARNED | RAY, ((MODEL, ROLLOUT, TRAINER), (ROLLOUT, MODEL, DRIVER), (TRAINER,)), 6, 10),
    "disk": Scene(SCRIPTED | INLINE, ((DISK,),), 5, 10),
}


class Campaign:
    """Kills until there are enough.

    Args:
        folder: where the runs are made; a finished run is removed.
        say: gets a line for each run.
    """

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None]):
        self.folder, self.seed, self._say = folder, seed, say
        self.hit: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.codes: dict[str, Counter[int]] = {}
        self.runs: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.orphaned: list[float] = []
        self._references: dict[str, Path] = {}

    @property
    def kills(self) -> int:
        return sum(self.hit.values())

    def go(self, kills: int, scenes: Sequence[str], minutes: float) -> None:
        """Makes runs, of whichever scene is furthest behind its share, until there were so many kills or so much time
        has passed."""
        done: Counter[str] = Counter()
        deadline = time.monotonic() + 60 * minutes
        while self.kills < kills and time.monotonic() < deadline:
            name = min(scenes, key=lambda scene: (done[scene] + 1) / SCENES[scene].share)
            before = self.kills
            self._run(name, min(SCENES[name].kills, kills - before))
            done[name] += max(self.kills - before, 1)

    def report(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "kills": self.kills,
            "kills_by_role": dict(sorted(self.hit.items())),
            "writers_died_in": dict(self.writes.most_common()),
            "too_late_to_count": dict(sorted(self.missed.items())),
            "exit_codes_by_last_role": {
                role: dict(sorted(found.items())) for role, found in sorted(self.codes.items())
            },
            "runs": len(self.runs),
            "runs_equal": sum(not run["problems"] for run in self.runs),
            "seconds_until_processes_of_a_killed_driver_were_gone": _spread(self.orphaned),
            "problems": self.problems,
            "each_run": self.runs,
        }

    # -- one run -------------------------------------------------------------------------------------------------------
    def _run(self, name: str, kills: int) -> None:
        number = len(self.runs)
        rng = random.Random(f"{self.seed} {name} {number}")
        out = self.folder / f"{number:03d}"
        config, reference = self._config(name, out / "run"), self._reference(name)
        began, told = time.monotonic(), list[str]()
        try:
            if name == "disk":
                found = self._fill(config, out, reference, rng, kills, told)
            else:
                self._kill(config, name, out, rng, kills, told)
                found = differences(Path(config.out), reference)
        except TimeoutError as error:
            found = [f"stuck after {' '.join(told)}: {error}"]
        self.problems += [f"run {number} ({name}): {problem}" for problem in found]
        seconds = round(time.monotonic() - began, 1)
        self.runs.append({"scene": name, "kills": told, "seconds": seconds, "problems": found})
        self._say(f"{self.kills:4d} kills  {name:8} {' '.join(told)}  {'DIFFERS' if found else 'equal'}, {seconds} s")

    def _kill(self, config: RunConfig, name: str, out: Path, rng: random.Random, kills: int, told: list[str]) -> None:
        command = self._command(config, out)
        before = self.kills
        while self.kills - before < kills and stages_ahead(config, Path(config.out)):
            roles = rng.choice(SCENES[name].lives)
            if roles == (WRITER,):
                self._die_writing(config, command, rng, told)
            else:
                self._live(config, command, roles[: kills - (self.kills - before)], rng, told)
        with Life(command, Path(config.out)) as life:
            self._expect(life.end().code == 0, "the undisturbed last life failed", life)

    def _live(
        self, config: RunConfig, command: list[str], roles: tuple[str, ...], rng: random.Random, told: list[str]
    ) -> None:
        """One life in which processes of these roles are killed, each some stages after the one before."""
        ahead = deque(stages_ahead(config, Path(config.out)))
        with Life(command, Path(config.out)) as life:
            for role in roles:
                stage = [ahead.popleft() for _ in range(min(len(ahead), rng.randint(1, 3)))][-1:]
                moments = [Moment(*place, rng.random() * DELAY) for place in stage]
                if not (moments and life.wait(moments[0]) and life.kill(role, rng)):
                    self.missed[role] += 1
                    break
                self.hit[role] += 1
                told.append(f"{role}@{moments[0].iteration}/{moments[0].stage}")
            ended = life.end()
            self.codes.setdefault(roles[-1], Counter())[ended.code] += 1
            if roles[-1] == DRIVER and ended.code == -9 and rng.random() < 0.5:
                self._wait_for_orphans(life, config)
            self._expect(_ended_well(roles[-1], ended), f"exit {ended.code}: {_last(ended.errors)}", life)

    def _die_writing(self, config: RunConfig, command: list[str], rng: random.Random, told: list[str]) -> None:
        kind = rng.choice(list(EVENTS_AHEAD))
        event = f"{kind}:{rng.randint(1, EVENTS_AHEAD[kind])}"
        dying = ["-m", "nlrl.testing.dying", event, str(config.out)]
        with Life([command[0], *dying, *command[3:]], Path(config.out)) as life:
            code, errors, _ = life.end()
        (self.hit if code == -9 else self.missed)[WRITER] += 1
        if code == -9:
            what, _, path = _last(errors).removeprefix("dies: ").partition(" ")
            told.append(f"{WRITER}@{what}:{re.sub('[.]tmp-[0-9]+-[0-9a-f]+-', '', path)}")
            self.writes[told[-1]] += 1

    def _wait_for_orphans(self, life: Life, config: RunConfig) -> None:
        """Half of the time the next life begins at once; the other half, what the dead driver's processes still do is
        watched: nothing that counts."""
        began, before = time.monotonic(), whole(Path(config.out))
        while life.orphans() and time.monotonic() - began < 60:
            time.sleep(0.02)
        self.orphaned.append(time.monotonic() - began)
        if whole(Path(config.out)) != before:
            self.problems.append("processes of a dead driver changed results")

    def _fill(
        self, config: RunConfig, out: Path, reference: Path, rng: random.Random, fills: int, told: list[str]
    ) -> list[str]:
        """A run on a disk that gets a little more room each time it was full."""
        needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in reference.rglob("*") if path.is_file())
        rooms = sorted(rng.uniform(0.02, 0.9) for _ in range(fills))
        with SmallDisk(Path(config.out).parent, int(rooms[0] * needed)) as disk:
            for room in rooms:
                disk.resize(max(int(room * needed), disk.used + 4096))
                with Life(self._command(config, self.folder), Path(config.out)) as life:
                    ended = life.end()
                self.codes.setdefault(DISK, Counter())[ended.code] += 1
                (self.missed if ended.code == 0 else self.hit)[DISK] += 1
                told.append(f"{DISK}@{room:.0%}")
                clear = ended.code == 2 and "No space left" in ended.errors
                self._expect(ended.code == 0 or clear, f"full disk, exit {ended.code}: {_last(ended.errors)}", life)
            disk.resize(4 * needed)
            with Life(self._command(config, self.folder), Path(config.out)) as life:
                self._expect(life.end().code == 0, "a run that has room again failed", life)
            return differences(Path(config.out), reference)

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _expect(self, fine: bool, otherwise: str, life: Life) -> None:
        if not fine:
            self.problems.append(f"{life.folder.parent.name}: {otherwise}")

    def _reference(self, name: str) -> Path:
        """A run that nobody disturbs, in one process."""
        kind = "learned" if name == "learned" else "scripted"
        if kind not in self._references:
            out = self.folder / kind
            config = self._config(name, out / "run", INLINE)
            with Life(self._command(config, out), Path(config.out)) as life:
                ended = life.end(600)
            if ended.code:
                raise RuntimeError(f"the undisturbed run failed: {ended.errors}")
            self._references[kind] = Path(config.out)
        return self._references[kind]

    def _config(self, name: str, out: Path, changes: dict[str, Any] | None = None) -> RunConfig:
        return validated(RunConfig, SCENES[name].config | (changes or {}) | {"out": str(out)}, name)

    def _command(self, config: RunConfig, folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(to_toml(config))
        return nlrl_command("run", folder / "config.toml")


def _spread(values: list[float]) -> dict[str, float]:
    return {"times": len(values), "median": round(median(values), 2), "max": round(max(values), 2)} if values else {}


def _ended_well(role: str, ended: Ended) -> bool:
    """Whether a life ended as one whose process of a role was killed: made anew, or with a message that names it."""
    if ended.code == 2 and role not in SURVIVED:
        return f"'{role}" in ended.errors and "rerun the same command" in _last(ended.errors)
    return ended.code == 0 or (ended.code == -9 and role == DRIVER)


def _last(errors: str) -> str:
    return (errors.strip().splitlines() or ["nothing was said"])[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """`nlrl bench kills`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nlrl bench kills", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=120, help="begin no run after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--out", type=Path, help="report as JSON")
    given = parser.parse_args(argv)
    scenes = [name for name in given.scenes if name != "disk" or can_mount()]
    if len(scenes) < len(given.scenes):
        print("left out: disk (needs root, to mount one)")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        campaign = Campaign(Path(folder), given.seed, lambda line: print(line, flush=True))
        campaign.go(given.kills, scenes, given.minutes)
    report = {"machine": machine(), "load": os.getloadavg()[2], "scenes": scenes}
    report |= {"seconds": round(time.monotonic() - began)} | campaign.report()
    print(json.dumps({key: value for key, value in report.items() if key != "each_run"}, indent=1))
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return bool(campaign.problems)
