"""What stages that make texts take beside the model: their rates with one that answers at once, by number of rollout
workers.

    nlrl bench stages                                     Breakthrough 5x5, targets of TD(lambda), 1 and 3 workers
    nlrl bench stages -- --stages targets improvement     and the arguments of I
    nlrl bench stages -- --inline                         everything in one process, without Ray

A run is started anew for each figure: games are played, which starts all processes, and then the stage is timed.
Rounds go in turns; the figures of a line are its median, and the least and the most.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from nlrl.benchmarks.figures import machine
from nlrl.orchestration.config import RunConfig, to_toml, validated
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.session import Session, open_session
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.targets import run_targets

STAGES = {"targets": run_targets, "improvement": run_improvement}
BASE: dict[str, Any] = {
    "name": "stages",
    "iterations": 1,
    "trackers": [],
    "game": {"name": "breakthrough", "params": {"rows": 5, "columns": 5}},
    "model": {"kind": "scripted", "name": "nlrl.testing.instant"},
    "rollout": {"samples_per_state": 4, "samples_at_start": 16},
    "targets": {"kind": "lambda", "trace": 0.7, "lookahead": 2, "continuations": 4, "texts_min": 1, "texts_max": 2},
}


class Rate(NamedTuple):
    """What a stage did in how many seconds."""

    records: int
    requests: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    print(f"{machine()}, {len(os.sched_getaffinity(0))} of them for this process")
    found: dict[tuple[str, int], list[Rate]] = {}
    for _ in range(arguments.rounds):
        for workers in arguments.workers:
            with tempfile.TemporaryDirectory() as folder:
                rates = measure(_config(arguments, workers, Path(folder) / "run"), arguments.stages)
            for stage, rate in rates.items():
                found.setdefault((stage, workers), []).append(rate)
    for (stage, workers), rates in sorted(found.items()):
        print(f"{stage:12} {workers:2} worker(s)  {_shown(rates)}")
    return 0


def measure(config: RunConfig, stages: Sequence[str]) -> dict[str, Rate]:
    """Starts a run and times stages of its first iteration."""
    folder = RunFolder.open(config.out, config.model_dump(mode="json", exclude_none=True), to_toml(config))
    session = open_session(config, folder)
    try:
        run_rollout(session, 1)
        return {stage: _timed(session, stage) for stage in stages}
    finally:
        session.close()


def _timed(session: Session, stage: str) -> Rate:
    session.student.router.take_stats()
    start = time.perf_counter()
    with session.spending(1, stage):
        STAGES[stage](session, 1)
    seconds = time.perf_counter() - start
    records = sum(1 for _ in session.folder.stage(1, stage).records())
    return Rate(records, session.student.router.take_stats().requests, seconds)


def _shown(rates: Sequence[Rate]) -> str:
    records, requests = rates[0].records, rates[0].requests
    texts = sorted(rate.requests / rate.seconds for rate in rates)
    each = median(rate.records / rate.seconds for rate in rates)
    return (
        f"{records} records, {requests} texts asked for: {median(texts):,.0f} texts/s "
        f"({texts[0]:,.0f} to {texts[-1]:,.0f}), {each:,.0f} records/s"
    )


def _config(arguments: argparse.Namespace, workers: int, out: Path) -> RunConfig:
    states = {"states": arguments.states}
    return validated(
        RunConfig,
        BASE
        | {
            "out": str(out),
            "rollout": BASE["rollout"] | {"games": arguments.games, "workers": workers},
            "targets": BASE["targets"] | states,
            "improvement": states,
            "cluster": {"kind": "inline" if arguments.inline else "ray", "threads": 1, "servers": arguments.servers},
        },
        "benchmark",
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "stages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["targets"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--servers", type=int, default=1, help="processes that answer")
    parser.add_argument("--games", type=int, default=200, help="games whose states are asked about")
    parser.add_argument("--states", type=int, default=300, help="states of them that get targets (and choices)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inline", action="store_true", help="without Ray: one process")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
