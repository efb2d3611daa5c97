"""What a turn, a record and a call cost the platform: `nlrl bench scale_costs`.

These are the service times that `nlrl bench scale_simulation` starts from and that docs/scale.md reckons with. Each is
processor time of this process on one core (calls of Ray: wall time, as other processes answer), the median of rounds.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.language_model import Request, Sampling
from nlrl.benchmarks.figures import machine
from nlrl.benchmarks.load_actor import measure_actor, show_actor
from nlrl.benchmarks.timing import cpu_seconds_of
from nlrl.envs import make_from_spec
from nlrl.orchestration.budget import Entry, Meter, read_ledger
from nlrl.orchestration.cluster import Cluster, first_done
from nlrl.orchestration.config import ModelConfig, RolloutConfig
from nlrl.orchestration.records import RecordWriter
from nlrl.orchestration.router import ServedModel, start_servers
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.worker import PlayJob, RolloutWorker, game_tasks
from nlrl.testing.instant import InstantModel

ROWS = (1, 4, 16, 64, 128)
"""Answers that are written at once."""


def job_of(spec: str, games: int, number: int = 0) -> tuple[list[dict[str, Any]], list[Entry]]:
    """Records and costs of one job of whole games."""
    seats = make_from_spec(spec).num_players
    worker = RolloutWorker(spec, InstantModel(), "plain", 64, RolloutConfig(), 0)
    tasks = game_tasks("costs", 0, number, "rollout", games, ["random" if seats > 1 else "none"], seats=seats)
    done = worker.metered(("play", PlayJob(f"costs@{number}", 1.0, tasks), {}))
    return done.result, done.spent


# -- the driver --------------------------------------------------------------------------------------------------------
def driver_costs(spec: str, games: int, rounds: int) -> dict[str, float]:
    """Seconds and bytes of what one process does for all."""
    records, spent = job_of(spec, games)
    turns = sum(len(record["turns"]) for record in records)
    packed = pickle.dumps((records, spent), protocol=5)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with TemporaryDirectory() as folder:
            for name, seconds in _one_round(Path(folder), spec, packed).items():
                found.setdefault(name, []).append(seconds)
    costs = {name: median(values) for name, values in found.items()}
    costs |= {"turns_per_game": turns / games, "result_bytes_per_turn": len(packed) / turns}
    return costs | _peaks(records, spent)


def _one_round(folder: Path, spec: str, packed: bytes) -> dict[str, float]:
    records, spent = pickle.loads(packed)
    games, stage, meter = len(records), Stage(folder / "stage", 1, "rollout"), Meter()
    keys, found = [record["key"] for record in records], {}
    opponents = ["random"] if make_from_spec(spec).num_players > 1 else ["none"]
    found["task"] = cpu_seconds_of(lambda: game_tasks("costs", 0, 1, "rollout", games, opponents)) / games
    found["unpack"] = cpu_seconds_of(lambda: pickle.loads(packed)) / games
    with stage.writer("games") as writer:
        found["write"] = cpu_seconds_of(lambda: writer.write_many(records)) / games
    meter.open(folder / "stage" / "shards")
    found["note"] = cpu_seconds_of(lambda: meter.note(spent)) / len(spent)
    meter.close()
    found["owed"] = cpu_seconds_of(lambda: stage.owed(keys)) / games
    found["read_ledger"] = cpu_seconds_of(lambda: read_ledger(folder / "stage" / "shards")) / len(spent)
    found["commit"] = cpu_seconds_of(stage.commit) / games
    return {f"{name}_s": seconds for name, seconds in found.items()}


def _peaks(records: list[dict[str, Any]], spent: list[Entry]) -> dict[str, float]:
    """Bytes of memory at the peak: of the commit for each record, of the ledger's sum for each entry."""
    with TemporaryDirectory() as folder:
        stage, meter = Stage(Path(folder), 1, "rollout"), Meter()
        with RecordWriter(Path(folder) / "shards" / "games.jsonl") as writer:
            writer.write_many(records)
        commit = _peak(stage.commit)
        meter.open(Path(folder) / "shards")
        for at in range(0, len(spent), 1000):
            meter.note(spent[at : at + 1000])
        meter.close()
        ledger = _peak(partial(read_ledger, Path(folder) / "shards"))
    return {"commit_peak_bytes": commit / len(records), "read_ledger_peak_bytes": ledger / len(spent)}


def _peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- Ray ---------------------------------------------------------------------------------------------------------------
class _Peer:
    """Answers calls, or keeps them waiting."""

    def nothing(self) -> None:
        pass

    def job(self, spec: str, games: int) -> Any:
        self._job = job_of(spec, games)

    def same_job(self) -> Any:
        return self._job

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def ray_costs(spec: str, games: int, calls: int, waiting: Sequence[int]) -> dict[str, Any]:
    """Wall seconds of the driver: a call that does nothing, one that brings a job's records, a look at many calls."""
    with Cluster("ray") as cluster:
        peer, asleep = (cluster.spawn(_Peer, num_cpus=0) for _ in range(2))
        peer.call("job", spec, games).result()
        found: dict[str, Any] = {
            "call_s": _each(lambda: cluster.gather([peer.call("nothing") for _ in range(calls)]), calls),
            "call_alone_s": _each(lambda: [peer.call("nothing").result() for _ in range(calls)], calls),
            "job_s": _each(lambda: [peer.call("same_job").result() for _ in range(20)], 20),
            "look_s": {},
        }
        asleep.call("sleep", 1e4)
        futures = []
        found["request_s"] = _request(cluster, spec)
        for count in waiting:
            futures += [asleep.call("nothing") for _ in range(count - len(futures))]
            found["look_s"][count] = _each(partial(first_done, futures, block=False), 1)
    return found


def request_costs(spec: str) -> float:
    """Wall seconds of a request to a server that answers at once."""
    with Cluster("ray") as cluster:
        return _request(cluster, spec)


def _request(cluster: Cluster, spec: str) -> float:
    """Wall seconds of a request to a server in another process that answers at once, in calls of 64."""
    model = ModelConfig(kind="scripted", name="nlrl.testing.instant")
    served = ServedModel(start_servers(cluster, model))
    role, game = Roles(make_from_spec(spec), "plain").policy, make_from_spec(spec)
    prompt = role.messages(StateInput(game.initial_states()[0]))
    batches = [[Request(prompt, (), Sampling(), 64 * at + i) for i in range(64)] for at in range(40)]
    served.generate(batches.pop())
    return _each(lambda: [served.generate(batch) for batch in batches], 64 * len(batches))


def _each(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) / count


# -- the engine --------------------------------------------------------------------------------------------------------
def engine_costs(model: str, spec: str, seconds: float) -> dict[str, Any]:
    """Answers for each second of an engine's processor, by how many are written at once."""
    from nlrl.envs.random import Rng
    from nlrl.orchestration.models import open_model

    engine, game = open_model(ModelConfig(name=model, device="cpu"), 1), make_from_spec(spec)
    role, sampling, rng, number = Roles(game, "plain").policy, Sampling(max_tokens=64), Rng("costs"), 0
    rates, tokens, answers = {}, 0, 0
    for rows in ROWS:
        asked, took = 0, 0.0
        while took < seconds:
            states = [_random_state(game, rng) for _ in range(4 * rows)]
            requests = [Request(role.messages(StateInput(s)), (), sampling, number + i) for i, s in enumerate(states)]
            number += len(requests)
            for at in range(0, len(requests), rows):
                began = time.process_time()
                found = engine.generate(requests[at : at + rows])
                took += time.process_time() - began
                tokens, answers = tokens + sum(len(one.tokens) for one in found), answers + rows
            asked += len(requests)
        rates[rows] = asked / took
    return {"model": model, "answers_per_cpu_second": rates, "tokens_per_answer": tokens / answers}


def _random_state(game: Any, rng: Any) -> Any:
    """Where a random game has come to."""
    states = [game.initial_state(rng)]
    while not game.is_terminal(states[-1]):
        states.append(game.apply(states[-1], rng.choice(game.legal_actions(states[-1])), rng).state)
    return rng.choice(states[:-1])


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    print(machine())
    found: dict[str, Any] = {"machine": machine(), "game": options.game}
    found["actor"] = measure_actor(options.game, 256, options.rounds)
    show_actor(found["actor"])
    found["driver"] = driver_costs(options.game, options.games, options.rounds)
    for name, value in found["driver"].items():
        print(f"  driver: {name:26} " + (f"{value * 1e6:10.2f} us" if name.endswith("_s") else f"{value:10.1f}"))
    if options.waiting:
        found["ray"] = ray_costs(options.game, 256, options.calls, options.waiting)
        for name in ("call_s", "call_alone_s", "job_s", "request_s"):
            print(f"  Ray: {name:29} {found['ray'][name] * 1e6:10.0f} us")
        for count, seconds in found["ray"]["look_s"].items():
            print(f"  Ray: look at {count:6} calls under way  {seconds * 1e6:10.0f} us")
    if options.engine:
        found["engine"] = engine_costs(options.engine, options.engine_game, options.seconds)
        for rows, rate in found["engine"]["answers_per_cpu_second"].items():
            print(f"  {options.engine}, {rows:4} at once: {rate:8.1f} answers a processor second")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "nlrl bench scale_costs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--game", default="breakthrough(columns=5,rows=5)", help="of records and turns, as a spec")
    parser.add_argument("--games", type=int, default=4096, help="records of a commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1000, help="of Ray, in a row")
    parser.add_argument("--waiting", type=int, nargs="*", default=[100, 1000, 10_000], help="calls under way at a look")
    parser.add_argument("--engine", default="transformer-base", help="the model whose rates are measured; '' for none")
    parser.add_argument("--engine-game", default="tictactoe", help="whose prompts it is asked")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number of answers at once")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
