"""Many rollout actors against one engine: `nlrl bench load`.

    nlrl bench load                                          one actor alone; then 64 of 256 games for 10 minutes
    nlrl bench load -- --actors 8 --games 64 --seconds 60    a laptop's form
    nlrl bench load -- --actors 0                            the one actor alone

Each actor plays jobs of whole games with a policy that is new in each job, as in each iteration of a run, and the
driver writes records and ledger. Measured from the moment when every actor has its first job, after a warm-up:

1. The *overhead* is the share of wall time in which the engine computes nothing although actors have something to ask:
   1 - (seconds in which the engine's thread computed) / (seconds). Some of the requests are then put straight into a
   new engine in a process of its own, all at once: tokens for each second of its processor, there and here.
2. *Latency* is the time of a call in the server, every request of it counted, and in the actor for jobs that ended.
3. The *queue* is what waits in the engine, every `--every` seconds; it cannot exceed one request for each game.
4. *Memory* is what the processes hold. Slopes are least squares through ten means, with a 95% interval.

The server is told to remember `--remembered` tokens of answers only, and the engine to keep `--engine-memory` bytes of
states, so that both are full early in the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nlrl.backbones.language_model import Completion, Request
from nlrl.benchmarks.figures import machine
from nlrl.benchmarks.load_actor import measure_actor, show_actor
from nlrl.benchmarks.processes import Watch, parent, slope
from nlrl.envs import make_from_spec
from nlrl.orchestration.budget import Meter
from nlrl.orchestration.cluster import Cluster, Future, Handle, first_done
from nlrl.orchestration.config import ModelConfig, RolloutConfig
from nlrl.orchestration.records import RecordWriter
from nlrl.orchestration.router import CONCURRENCY, Router, ServedModel
from nlrl.orchestration.server import ModelServer
from nlrl.orchestration.worker import PlayJob, RolloutWorker, game_tasks

WARM_UP = 0.2
"""Share of the measurement that is left out of slopes."""
MEGABYTE = 1 << 20


class LoadServer(ModelServer):
    """A model server that takes down how long its calls take, and what its engine says of itself.

    Args:
        every: seconds between two looks at the engine.
        remembered: tokens of answers that it keeps.
    """

    def __init__(self, config: ModelConfig, threads: int, every: float, remembered: int):
        super().__init__(config, threads)
        self.remembers = remembered
        self._calls: list[tuple[float, float, int]] = []
        self._looks: list[dict[str, float]] = []
        self._keep, self._kept = 0, list[Request]()
        threading.Thread(target=self._look, args=(every,), daemon=True).start()

    def pid(self) -> int:
        return os.getpid()

    def keep(self, requests: int) -> None:
        """Keeps copies of the next requests that it is asked."""
        self._keep = requests

    def generate(self, weights: str, requests: Sequence[Request], version: str = "") -> list[Completion]:
        if len(self._kept) < self._keep:
            self._kept += requests
        began = time.time()
        answers = super().generate(weights, requests, version)
        self._calls.append((began, time.time() - began, len(requests)))
        return answers

    def seen(self) -> tuple[list[tuple[float, float, int]], list[dict[str, float]], list[Request]]:
        """(start, seconds, requests) of each call, what the engine said and when, and the requests that were kept."""
        return self._calls, self._looks, list(dict.fromkeys(self._kept))[: self._keep]

    def _look(self, every: float) -> None:
        while True:
            self._looks.append({"time": time.time(), "cpu": time.process_time()} | self.metrics())
            time.sleep(every)


class LoadWorker(RolloutWorker):
    """A rollout worker that takes down how long it waits for answers."""

    def __init__(self, spec: str, model: ServedModel, max_tokens: int):
        super().__init__(spec, model, "plain", max_tokens, RolloutConfig(), 0)
        self._answering, self._waits = model.generate, list[tuple[float, int]]()
        model.generate = self._timed  # type: ignore[method-assign]

    def pid(self) -> int:
        return os.getpid()

    def loaded(self, job: PlayJob) -> tuple[list[dict[str, Any]], list[Any], list[tuple[float, int]]]:
        """Records, costs, and (seconds, requests) of each wait."""
        self._waits = []
        done = self.metered(("play", job, {}))
        return done.result, done.spent, self._waits

    def _timed(self, requests: Sequence[Request]) -> list[Completion]:
        began = time.perf_counter()
        answers = self._answering(requests)
        self._waits.append((time.perf_counter() - began, len(requests)))
        return answers


class Straight:
    """An engine that is given requests without a platform around it."""

    def __init__(self, config: ModelConfig, threads: int):
        from nlrl.orchestration.models import open_model

        self._model = open_model(config, threads)

    def answer(self, requests: Sequence[Request]) -> tuple[float, float, int]:
        """(seconds, processor seconds, tokens generated) for all at once; the same with other seeds before warm it
        up."""
        self._model.generate([request.with_seed(request.seed ^ 1) for request in requests])
        wall, cpu = time.perf_counter(), time.process_time()
        answers = self._model.generate(requests)
        took = time.perf_counter() - wall, time.process_time() - cpu
        return *took, sum(len(answer.tokens) for answer in answers)


@dataclass
class Load:
    """What a measurement has gathered."""

    began: float = 0.0
    ended: float = 0.0
    games: int = 0
    turns: int = 0
    calls: list[tuple[float, float, int]] = field(default_factory=list)
    looks: list[dict[str, float]] = field(default_factory=list)
    waits: list[tuple[float, int]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    straight: tuple[float, float, int] | None = None


# -- running -----------------------------------------------------------------------------------------------------------
def run_load(options: argparse.Namespace, folder: Path) -> Load:
    """Starts everything, keeps it busy for the time, and asks what happened."""
    load = Load()
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of jobs that are under way at the end
    engine = {"memory_bytes": options.engine_memory} if options.kind == "native" else {}
    model = ModelConfig(
        kind=options.kind, name=options.model, device="cpu", max_tokens=options.max_tokens, options=engine
    )
    with Cluster(options.cluster) as cluster:
        threads = {"num_cpus": 0, "threads": options.threads}
        given = (model, options.threads, options.every, options.remembered)
        server = cluster.spawn(LoadServer, *given, name="engine", concurrency=CONCURRENCY, **threads)
        served = ServedModel(Router([server]))
        actors = [
            cluster.spawn(LoadWorker, options.game, served, options.max_tokens, num_cpus=0, name=f"rollout-{i}")
            for i in range(options.actors)
        ]
        with ExitStack() as held:
            watch = held.enter_context(_watch(server, actors, options))
            _keep_busy(options, load, server, actors, folder)
        load.memory = {"seconds": watch.seconds, "bytes": watch.bytes}
        load.calls, load.looks, kept = server.call("seen").result()
        for handle in (*actors, server):
            handle.close()
        if kept:
            load.straight = cluster.spawn(Straight, model, options.threads, **threads).call("answer", kept).result()
    return load


def _watch(server: Handle, actors: Sequence[Handle], options: argparse.Namespace) -> Watch:
    pids = [actor.call("pid").result() for actor in actors]
    engine = server.call("pid").result()
    groups = {"driver": [os.getpid()], "engine": [engine], "actors": pids}
    return Watch(groups | ({"raylet": [parent(engine)]} if options.cluster == "ray" else {}), options.every)


def _keep_busy(options: argparse.Namespace, load: Load, server: Handle, actors: Sequence[Handle], folder: Path) -> None:
    """Gives every actor its next job until the time is over; what is under way then is left."""
    jobs, meter, running = _jobs(options), Meter(), dict[Future, Handle]()
    meter.open(folder)
    with RecordWriter(folder / "games.jsonl") as writer:
        for actor in actors:
            running[actor.call("loaded", next(jobs))] = actor
        load.began = time.time()
        half = load.began + options.seconds / 2
        while (now := time.time()) < load.began + options.seconds:
            if half and now > half:
                half = 0.0
                server.call("keep", options.straight)
            for future in first_done(list(running), block=False):
                actor = running.pop(future)
                _write(future.result(), load, meter, writer)
                running[actor.call("loaded", next(jobs))] = actor
            time.sleep(0.01)
        load.ended = time.time()
    meter.close()


def _write(result: Any, load: Load, meter: Meter, writer: RecordWriter) -> None:
    records, spent, waits = result
    meter.note(spent)
    writer.write_many(records)
    writer.flush()
    load.games += len(records)
    load.turns += sum(len(record["turns"]) for record in records)
    load.waits += waits


def _jobs(options: argparse.Namespace) -> Iterator[PlayJob]:
    seats = make_from_spec(options.game).num_players
    opponents = ["random" if seats > 1 else "none"]
    for number in count():
        tasks = game_tasks("load", 0, number, "rollout", options.games, opponents, seats=seats)
        yield PlayJob(f"load@{number}", 1.0, tasks)


# -- figures -----------------------------------------------------------------------------------------------------------
def figures(options: argparse.Namespace, load: Load) -> dict[str, Any]:
    """The numbers of a measurement."""
    seconds = load.ended - load.began
    found: dict[str, Any] = {
        "seconds": seconds,
        "games_finished": load.games,
        "turns_finished": load.turns,
        "latency_server_ms": _latency([(s, n) for began, s, n in load.calls if began >= load.began]),
        "latency_actor_ms": _latency(load.waits),
        "memory": _memory(load),
    }
    looks = [look for look in load.looks if load.began + WARM_UP * seconds <= look["time"] <= load.ended]
    if len(looks) > 1 and "busy_seconds_total" in looks[0]:
        found |= _engine(options, load, looks)
    return found


def _engine(options: argparse.Namespace, load: Load, looks: list[dict[str, float]]) -> dict[str, Any]:
    first, last = looks[0], looks[-1]
    took = {name: last[name] - first[name] for name in first}
    wall, times = took["time"], [look["time"] - first["time"] for look in looks]
    waiting = [look["requests_waiting"] for look in looks]
    rate = took["generated_tokens_total"] / wall
    found = {
        "measured_seconds": wall,
        "requests_per_second": took["requests_completed_total"] / wall,
        "tokens_per_second": rate,
        "tokens_per_cpu_second": took["generated_tokens_total"] / took["cpu"],
        "prefix_bytes": [first["prefix_bytes"], last["prefix_bytes"]],
        "engine_busy": took["busy_seconds_total"] / wall,
        "overhead": 1 - took["busy_seconds_total"] / wall,
        "queue": {
            "most": max(waiting),
            "mean": float(np.mean(waiting)),
            "bound": options.actors * options.games,
            "slope_per_minute": slope(times, waiting),
        },
    }
    if load.straight:
        seconds, cpu, tokens = load.straight
        found["straight"] = {"tokens_per_second": tokens / seconds, "tokens_per_cpu_second": tokens / cpu}
    return found


def _latency(waits: Sequence[tuple[float, int]]) -> dict[str, float] | None:
    """Milliseconds, each request counted."""
    if not waits:
        return None
    each = np.repeat([seconds for seconds, _ in waits], [requests for _, requests in waits]) * 1e3
    return {f"p{q}": float(np.percentile(each, q)) for q in (50, 99)} | {"requests": len(each)}


def _memory(load: Load) -> dict[str, Any]:
    seconds = load.memory["seconds"]
    late = [at for at, second in enumerate(seconds) if second >= WARM_UP * seconds[-1]]
    times = [seconds[at] for at in late]
    found = {}
    for name, held in load.memory["bytes"].items():
        megabytes = [held[at] / MEGABYTE for at in late]
        found[name] = {"first": megabytes[0], "last": megabytes[-1], "slope_per_minute": slope(times, megabytes)}
    return found


# -- printing ----------------------------------------------------------------------------------------------------------
def show(options: argparse.Namespace, found: dict[str, Any]) -> None:
    print(
        f"{options.actors} actors x {options.games} games of {options.game}, {options.model}, {found['seconds']:.0f} s"
    )
    print(f"  {found['games_finished']:,} games finished and written, {found['turns_finished']:,} turns of the policy")
    for where in ("server", "actor"):
        if latency := found[f"latency_{where}_ms"]:
            print(
                f"  latency in the {where}: p50 {latency['p50']:,.0f} ms, p99 {latency['p99']:,.0f} ms "
                f"({latency['requests']:,} requests)"
            )
    if "overhead" in found:
        _show_engine(found)
    for name, held in found["memory"].items():
        grows = _shown(held["slope_per_minute"], "MB/min")
        print(f"  memory of {name:7} {held['first']:8,.0f} -> {held['last']:8,.0f} MB, {grows}")


def _show_engine(found: dict[str, Any]) -> None:
    print(
        f"  engine: {found['requests_per_second']:,.0f} requests/s, {found['tokens_per_second']:,.0f} tokens/s, busy "
        f"{found['engine_busy']:.2%} of the time: overhead {found['overhead']:.2%} (target: under 2%)"
    )
    if "straight" in found:
        there, here = found["straight"]["tokens_per_cpu_second"], found["tokens_per_cpu_second"]
        print(
            f"  tokens for each second of the engine's processor: {here:,.0f}; straight into an engine: {there:,.0f}, "
            f"{there / here:.3f} times as many"
        )
    queue = found["queue"]
    print(
        f"  queue: {queue['mean']:,.0f} wait, at most {queue['most']:,.0f} of the {queue['bound']:,} there can be; "
        f"{_shown(queue['slope_per_minute'], 'a minute')}"
    )


def _shown(found: Any, unit: str) -> str:
    if found is None:
        return "too short for a slope"
    return f"{found[0]:+.2f} {unit} ({found[1]:+.2f} to {found[2]:+.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    report: dict[str, Any] = {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
    }
    print(f"{machine()}, {report['cores']} of them for this process, load average {os.getloadavg()[0]:.1f}")
    if options.rounds:
        report["actor"] = measure_actor(options.actor_game, options.games, options.rounds)
        show_actor(report["actor"])
    if options.actors:
        with TemporaryDirectory() as folder:
            report["load"] = figures(options, run_load(options, Path(folder)))
        show(options, report["load"])
    report["options"] = {name: value for name, value in vars(options).items() if name != "json"}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Its options."""
    parser = argparse.ArgumentParser(
        "nlrl bench load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actors", type=int, default=64, help="rollout actors; 0 measures one alone")
    parser.add_argument("--games", type=int, default=256, help="that each plays at a time")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the measurement")
    parser.add_argument("--game", default="tictactoe", help="of the load, as a spec")
    parser.add_argument("--kind", default="native", help="of the model")
    parser.add_argument("--model", default="transformer-base", help="that the engine serves")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the engine")
    parser.add_argument("--engine-memory", type=int, default=1 << 27, help="bytes for states of prompts and answers")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--remembered", type=int, default=1 << 17, help="tokens of answers that the server keeps")
    parser.add_argument("--straight", type=int, default=4000, help="requests that are repeated without the platform")
    parser.add_argument("--cluster", choices=("ray", "inline"), default="ray")
    parser.add_argument("--rounds", type=int, default=20, help="of the one actor alone; 0 leaves it out")
    parser.add_argument("--actor-game", default="breakthrough(columns=5,rows=5)", help="of the one actor alone")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
