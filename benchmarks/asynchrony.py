"""What overlap is worth: lock-step beside asynchronous iteration, and rollouts on one to many servers.

    nlrl bench asynchrony                                    on a CPU, a scripted model that takes its time
    nlrl bench asynchrony -- --config configs/tictactoe_gpu.toml --gpus 2 --seeds 0 1 --set iterations=4
    nlrl bench asynchrony -- --rollouts 1 2 4 --config configs/tictactoe_gpu.toml --on-gpus
    nlrl bench asynchrony -- --read FILE...                  prints what was measured before, seeds together

Arms: `lock-step` is staleness 0, `ahead` staleness 1 with all on all GPUs, `separate` staleness 1 with a GPU for the
trainer alone. All runs of a seed follow each other, each in a process of its own; seconds are those between the ends of
iteration 0 and the last. `overlapped` is how many times faster than this lock-step run one would be whose halves took
as long and overlapped perfectly. (In an asynchronous run the base gathers twice, and servers remember what it said.)
The exact win rate against the random player is that of the final greedy actor, with Student's interval over
seeds.

`--rollouts`: games in proportion to the servers (or GPUs), every round sampled anew; the rate counts answers that the
model gave, the efficiency is the rate over so many times that of one server.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from nlrl.benchmarks.figures import machine, versions
from nlrl.benchmarks.tictactoe import iteration_ends
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig, load_config, to_toml, validated
from nlrl.orchestration.pipeline import halves
from nlrl.orchestration.report import evaluations
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.session import ACTOR, Session, open_session
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.statistics import mean_interval
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics

ARMS: dict[str, dict[str, Any]] = {
    "lock-step": {"staleness": 0, "placement": "colocated"},
    "ahead": {"staleness": 1, "placement": "colocated"},
    "separate": {"staleness": 1, "placement": "separate"},
}
SCRIPTED: dict[str, Any] = {
    "name": "asynchrony",
    "iterations": 5,
    "model": {"kind": "scripted", "name": "nlrl.testing.delayed"},
    "rollout": {"games": 64, "samples_per_state": 1, "samples_at_start": 32},
    "targets": {"texts_min": 1, "texts_max": 1, "continuations": 9, "states": 40},
    "improvement": {"states": 40},
    "evaluation": {"games": 0, "opponents": ["random"], "value_states": 1},
    "cluster": {"kind": "inline", "threads": 1},
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = read_arguments(argv)
    if arguments.read:
        for result in combined([json.loads(path.read_text()) for path in arguments.read]):
            print(shown(result))
        return 0
    about = {"machine": machine(), "gpus": _gpu_names(), "versions": versions(), "command": _command(argv)}
    result = about
    with tempfile.TemporaryDirectory(prefix="nlrl-") as scratch:
        # Written after every run: what was measured outlives a later failure.
        for found in (scaling if arguments.rollouts else overlap)(arguments, Path(scratch)):
            result = about | found
            if arguments.out:
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(shown(result))
    return 0


# -- lock-step and asynchronous runs -----------------------------------------------------------------------------------
def overlap(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Every arm with every seed; what is known after each run."""
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for arm in arguments.arms:
            config = configured(arguments, arm, seed, scratch / f"{arm}-{seed}")
            runs.append({"arm": arm, "seed": seed} | measured(config, scratch))
            print(_line(runs[-1]), flush=True)
            yield {"mode": "overlap", "gpus_used": arguments.gpus, "runs": runs}


def configured(arguments: argparse.Namespace, arm: str, seed: int, out: Path) -> RunConfig:
    """The config of one run."""
    values = load_config(arguments.config).model_dump(exclude_none=True) if arguments.config else SCRIPTED
    cluster = dict(values.get("cluster", {}))
    if arguments.gpus:
        cluster |= {"gpus": arguments.gpus, "placement": ARMS[arm]["placement"], "servers": 0} | (
            {"servers": arguments.servers} if arguments.servers else {}
        )
    changes = {"out": str(out), "seed": seed, "staleness": ARMS[arm]["staleness"], "trackers": [], "cluster": cluster}
    return validated(RunConfig, _with(values | changes, arguments.set), "benchmark")


def _with(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The values with those of "rollout.games=256"."""
    for setting in settings:
        field, _, text = setting.partition("=")
        *tables, last = field.split(".")
        place = values = dict(values)
        for table in tables:
            place[table] = dict(place.get(table, {}))
            place = place[table]
        place[last] = json.loads(text)
    return values


def measured(config: RunConfig, scratch: Path) -> dict[str, Any]:
    """Runs a config in a process of its own; its seconds, and what the agent became."""
    path = scratch / "config.toml"
    path.write_text(to_toml(config))
    start = time.perf_counter()
    command = [sys.executable, "-m", "nlrl.orchestration.cli", "run", str(path)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise NLRLError(f"the run failed: {done.stderr[-2000:]}")
    whole = time.perf_counter() - start
    logged = {entry["step"]: entry["metrics"] for entry in read_metrics(Path(config.out) / METRICS_FILE)}
    ends = {int(step): seconds for step, seconds in iteration_ends(Path(config.out)).items()}
    each = [_halves(config, i, logged[i]) for i in range(1, config.iterations + 1)]
    final = evaluations(RunFolder(Path(config.out)))[config.iterations]
    return {
        "seconds": ends[max(ends)],
        "whole": round(whole, 1),
        "gather": [round(gather, 2) for gather, _ in each],
        "learn": [round(learn, 2) for _, learn in each],
        "stages": _stages(logged, config.iterations),
        "win": final["exact"]["against"]["random"]["win"],
    }


def _stages(logged: dict[int, dict[str, float]], iterations: int) -> dict[str, list[float]]:
    """Seconds of every stage, iteration by iteration."""
    names = [key for key in logged[iterations] if key.startswith("seconds/")]
    return {
        name.removeprefix("seconds/"): [round(logged[i].get(name, 0.0), 2) for i in range(1, iterations + 1)]
        for name in names
    }


def _halves(config: RunConfig, iteration: int, logged: dict[str, float]) -> tuple[float, float]:
    gather, learn = (
        sum(logged.get(f"seconds/{name}", 0.0) for name, _ in stages) for stages in halves(config, iteration)
    )
    return gather, learn


def overlapped(run: dict[str, Any]) -> float:
    """How many times faster a lock-step run would be whose halves overlapped perfectly at staleness 1."""
    gather, learn = run["gather"], run["learn"]
    both = sum(max(ahead, here) for (_, ahead), here in zip(pairwise(gather), learn, strict=False))
    return (sum(gather) + sum(learn)) / (gather[0] + both + learn[-1])


# -- rollouts ----------------------------------------------------------------------------------------------------------
def scaling(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Rates of rollouts by number of servers, rounds in turns; what is known after each."""
    rates: dict[int, list[float]] = {}
    for round_ in range(arguments.rounds):
        for count in arguments.rollouts:
            config = _of_size(arguments, count, scratch / f"{count}-{round_}")
            folder = RunFolder.open(config.out, config.model_dump(mode="json", exclude_none=True), to_toml(config))
            session = open_session(config, folder)
            try:
                answers_per_second(session, 1)  # starts all processes
                found = [answers_per_second(session, 2 + i) for i in range(arguments.repeats)]
            finally:
                session.close()
            rates[count] = rates.get(count, []) + found
            print(f"{count} server(s): {', '.join(f'{rate:,.0f}' for rate in rates[count])} answers/s", flush=True)
            yield {"mode": "rollouts", "unit": "GPU(s)" if arguments.on_gpus else "server(s)", "rates": rates}


def _of_size(arguments: argparse.Namespace, count: int, out: Path) -> RunConfig:
    values = load_config(arguments.config).model_dump(exclude_none=True) if arguments.config else SCRIPTED
    rollout = dict(values.get("rollout", {}))
    rollout |= {"games": arguments.games * count, "workers": arguments.workers * count}
    cluster = dict(values.get("cluster", {})) | {"kind": "ray", "servers": count * arguments.servers or count}
    cluster |= {"gpus": count} if arguments.on_gpus else {}
    changes = {"out": str(out), "trackers": [], "rollout": rollout, "cluster": cluster, "staleness": 0}
    return validated(RunConfig, _with(values | changes, arguments.set), "benchmark")


def answers_per_second(session: Session, iteration: int) -> float:
    """Plays an iteration's games, with answers that nobody remembers."""
    session.versions[ACTOR] = f"sampled@{iteration}"  # the seeds of samples come from it
    session.student.router.take_stats()
    start = time.perf_counter()
    with session.spending(iteration, "rollout"):
        run_rollout(session, iteration)
    seconds, stats = time.perf_counter() - start, session.student.router.take_stats()
    return (stats.requests - stats.cached) / seconds


def combined(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results with the runs of others that were measured on as many GPUs of the same machine added."""
    found: dict[Any, dict[str, Any]] = {}
    for result in results:
        alike = (result["mode"], result["machine"], tuple(result["gpus"]), result.get("gpus_used"))
        if result["mode"] == "overlap" and alike in found:
            found[alike] = found[alike] | {"runs": found[alike]["runs"] + result["runs"]}
        else:
            found[alike if result["mode"] == "overlap" else len(found)] = result
    return list(found.values())


# -- what is printed ---------------------------------------------------------------------------------------------------
def shown(result: dict[str, Any]) -> str:
    """A result as text."""
    where = f"{result['machine']}; GPUs: {', '.join(result['gpus']) or 'none'}"
    lines = _scaling_lines(result) if result["mode"] == "rollouts" else _overlap_lines(result)
    return "\n".join([where, *lines])


def _overlap_lines(result: dict[str, Any]) -> list[str]:
    runs = result["runs"]
    by_arm = {arm: [run for run in runs if run["arm"] == arm] for arm in dict.fromkeys(run["arm"] for run in runs)}
    lines = [f"GPUs declared: {result['gpus_used'] or 'none'}"]
    for arm, found in by_arm.items():
        low, high = mean_interval([run["win"] for run in found])
        between = f" ({low:.3f} to {high:.3f})" if len(found) > 1 else ""
        took = ", ".join(f"{run['seconds']:.1f}" for run in found)
        line = f"{arm:10} {took} s; exact win against random {mean(run['win'] for run in found):.3f}{between}"
        if arm == "lock-step":
            line += f"; overlapped {median(map(overlapped, found)):.2f}x"
        elif "lock-step" in by_arm:
            line += f"; {_compared(by_arm['lock-step'], found)}"
        lines.append(line)
    return lines


def _compared(before: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    pairs = [(one, other) for one in before for other in found if one["seed"] == other["seed"]]
    ratios = [one["seconds"] / other["seconds"] for one, other in pairs]
    text = f"{median(ratios):.2f}x as fast ({min(ratios):.2f} to {max(ratios):.2f})"
    if len(pairs) > 1:
        gains = [other["win"] - one["win"] for one, other in pairs]
        low, high = mean_interval(gains)
        text += f", win {mean(gains):+.3f} ({low:+.3f} to {high:+.3f})"
    return text


def _scaling_lines(result: dict[str, Any]) -> list[str]:
    rates = {int(count): found for count, found in result["rates"].items()}
    one = median(rates[min(rates)]) / min(rates)
    return [
        f"{count} {result['unit']}: {median(found):,.0f} answers/s ({min(found):,.0f} to {max(found):,.0f}), "
        f"efficiency {median(found) / count / one:.2f}"
        for count, found in sorted(rates.items())
    ]


def _line(run: dict[str, Any]) -> str:
    return (
        f"seed {run['seed']} {run['arm']}: {run['seconds']:.1f} s ({run['whole']:.0f} with its start), {run['win']:.3f}"
    )


def _gpu_names() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _command(argv: Sequence[str] | None) -> str:
    return " ".join(["nlrl bench asynchrony --", *(argv if argv is not None else sys.argv[1:])])


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "asynchrony", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="of a run; without it, a scripted model that sleeps")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["lock-step", "ahead"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--gpus", type=int, default=0, help="cluster.gpus of every arm")
    parser.add_argument("--servers", type=int, default=0, help="cluster.servers; with --rollouts, for each GPU")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=JSON", help="such as rollout.games=1024")
    parser.add_argument("--rollouts", nargs="+", type=int, help="measure rollouts on so many servers (GPUs)")
    parser.add_argument("--on-gpus", action="store_true", help="each of them is a GPU")
    parser.add_argument("--games", type=int, default=64, help="for each server (GPU)")
    parser.add_argument("--workers", type=int, default=2, help="for each server (GPU)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="timed rollouts in a round")
    parser.add_argument("--out", type=Path, help="keeps the figures as JSON")
    parser.add_argument("--read", nargs="+", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
