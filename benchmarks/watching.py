"""What it costs to be watched: the share of a stage's CPU time that goes into counters, times and the heartbeat.

    nlrl bench watching                                    the bundled model on a CPU, and a model that answers at once
    nlrl bench watching -- --models instant --rounds 15
    nlrl bench watching -- --json benchmarks/results/watching.json

One run plays games in one process, stage after stage: with everything on, with nothing on, and again with nothing on
(`control`), in turns. The share is measured inside the stages with everything on: CPU time of the thread in the
functions that count (`metrics`), note times (`times`) or write heartbeats (`beat`), over that of the process; the
median over rounds. Beside it stands what a turn takes with everything on over what it takes with nothing on, least over
least, which is as good as the control's distance from 1. `instant` is what the platform's own work costs; no run with a
model is like that.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from nlrl.benchmarks.figures import machine
from nlrl.orchestration import server
from nlrl.orchestration.config import RunConfig, to_toml, validated
from nlrl.orchestration.game_accounts import GameAccounts
from nlrl.orchestration.heartbeat import Heartbeat
from nlrl.orchestration.instruments import Instruments
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.session import Session, open_session
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.timings import Collected, Timings
from nlrl.orchestration.watch import Watcher

MODELS: dict[str, dict[str, Any]] = {
    "bundled": {"name": "transformer-base", "device": "cpu"},
    "instant": {"kind": "scripted", "name": "nlrl.testing.instant"},
}
GAMES = {"bundled": 64, "instant": 400}
PARTS: dict[str, list[tuple[Any, str]]] = {
    "metrics": [
        (GameAccounts, "note"),
        (server, "_count"),
        *((Instruments, one) for one in ("count", "set", "observe")),
    ],
    "times": [(Collected, "note"), (Timings, "note"), (server, "stamp")],
    "beat": [(Heartbeat, "_write")],
}
"""The functions that each part consists of; called once for many turns, so that timing them costs nothing."""
VARIANTS = ("everything", "nothing", "control")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    print(machine())
    found = {}
    for model in arguments.models:
        found[model] = figure = measure(model, arguments.games or GAMES[model], arguments.rounds)
        print(f"{model}: {_shown(figure)}", flush=True)
    if arguments.json:
        report = {"machine": machine(), "rounds": arguments.rounds, "figures": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(model: str, games: int, rounds: int) -> dict[str, Any]:
    """Shares of CPU time, and what a turn takes."""
    turn: dict[str, list[float]] = {name: [] for name in VARIANTS}
    shares: dict[str, list[float]] = {name: [] for name in PARTS}
    with tempfile.TemporaryDirectory() as folder:
        config = _config(model, games, Path(folder) / "run")
        values = config.model_dump(mode="json", exclude_none=True)
        session = open_session(config, RunFolder.open(config.out, values, to_toml(config)))
        try:
            _play(session, 1, "nothing")  # what is made once
            for number in range(rounds):
                for place in range(len(VARIANTS)):
                    iteration = 2 + number * len(VARIANTS) + place
                    name = VARIANTS[(number + place) % len(VARIANTS)]
                    seconds, inside = _play(session, iteration, name)
                    turn[name].append(seconds / _turns(session, iteration))
                    for part in PARTS if name == "everything" else ():
                        shares[part].append(inside[part] / seconds)
        finally:
            session.close()
    least = {name: min(found) for name, found in turn.items()}
    return {
        "share": {part: median(found) for part, found in shares.items()},
        "share_of_all": median(map(sum, zip(*shares.values(), strict=True))),
        "microseconds_a_turn": 1e6 * least["nothing"],
        "ratio": least["everything"] / least["nothing"],
        "control": least["control"] / least["nothing"],
    }


def _play(session: Session, iteration: int, variant: str) -> tuple[float, Counter[str]]:
    """CPU seconds of all threads for one stage of games, and those that each part took."""
    inside = Counter[str]()
    with ExitStack() as stack:
        stack.enter_context(_timed(inside) if variant == "everything" else _without())
        if variant == "everything":
            stack.enter_context(Watcher(session))
        gc.collect()
        inside.clear()
        began = time.process_time()
        with session.spending(iteration, "rollout"):
            run_rollout(session, iteration)
        return time.process_time() - began, Counter(inside)


@contextmanager
def _timed(inside: Counter[str]) -> Iterator[None]:
    """Clocks in every function of `PARTS`; one that is called by another is the other's."""
    depth = threading.local()

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            depth.now = getattr(depth, "now", 0) + 1
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                depth.now -= 1
                if not depth.now:
                    inside[part] += time.thread_time() - began

        return call

    with ExitStack() as stack:
        for part, place, name in _functions():
            stack.enter_context(patch.object(place, name, clocked(part, getattr(place, name))))
        yield


@contextmanager
def _without() -> Iterator[None]:
    """Takes everything away, as far as Python lets one: what is left are calls that do nothing."""
    with ExitStack() as stack:
        for _, place, name in _functions():
            stack.enter_context(patch.object(place, name, lambda *_, **__: None))
        yield


def _functions() -> Iterator[tuple[str, Any, str]]:
    return ((part, place, name) for part, functions in PARTS.items() for place, name in functions)


def _turns(session: Session, iteration: int) -> int:
    return session.folder.stage(iteration, "rollout").load()["metrics"]["turns"]


def _config(model: str, games: int, out: Path) -> RunConfig:
    given: dict[str, Any] = {
        "name": "watching", "out": str(out), "trackers": [], "model": MODELS[model],
        "rollout": {"games": games, "workers": 1}, "cluster": {"kind": "inline", "threads": 1},
        "watch": {"metrics_port": 0},
    }  # fmt: skip
    if model == "instant":
        given["game"] = {"name": "breakthrough", "params": {"rows": 5, "columns": 5}}
    return validated(RunConfig, given, "benchmark")


def _shown(figure: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {share:.2%}" for part, share in figure["share"].items())
    return (
        f"{figure['share_of_all']:.2%} of the CPU time ({parts}); "
        f"a turn takes {figure['microseconds_a_turn']:,.0f} us, "
        f"with everything on {figure['ratio']:.3f} of that (control: {figure['control']:.3f})"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "watching", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--games", type=int, default=0, help="games a stage; by default as many as take a second")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
