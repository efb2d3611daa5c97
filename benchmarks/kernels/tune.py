"""Finds the launch configurations of an op that are the fastest on this GPU.

    python -m nlrl.benchmarks.kernels.tune --op diff_attention_v2 [--shapes paper] [--out found.json] [--record]

1. An op takes part if its Triton module has `CANDIDATES` and asks for its launches with `nlrl.kernels.launches.choose`.
2. The op is called once at every size that `nlrl bench kernels` times. Which launches a call asks for says what they
   are tuned by: the first size and mode (forward, or else backward) that asks; of the sizes that are replayed in a
   graph, the largest, as the others come and go with the launch alone.
3. All candidates of all ops are compiled at once, by processes that share Triton's cache. Then, one after the other,
   each is held to the eager implementation and timed, by replay where `nlrl bench kernels` replays: launched one by
   one, short calls would all take as long as the host. The other launches of the call keep their defaults.
4. The fastest of each key are printed, and written to a file of their own (`--out`) or the device's table (`--record`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nlrl import kernels
from nlrl.benchmarks.kernels import table
from nlrl.benchmarks.kernels.cases import CASES, Draw
from nlrl.benchmarks.kernels.clock import Clock, CudaClock, sets_wanted
from nlrl.benchmarks.kernels.compare import agrees, copies, leaves_of, results
from nlrl.benchmarks.kernels.shapes import SHAPES
from nlrl.kernels import devices, launches
from nlrl.kernels.costs import cost
from nlrl.kernels.dispatch import OURS, Op

ROUNDS, ROUND_MS, WARMUP_MS = 2, 15, 5
PROCESSES = 16


class Trial(NamedTuple):
    """A launch configuration in its place."""

    op: str
    key: str
    numbers: tuple[int, ...]
    shape: dict[str, Any]
    dtype: str
    mode: str
    """"forward" or "backward"."""
    graph: bool = False
    """Timed by replay."""


class Outcome(NamedTuple):
    """Of a trial."""

    trial: Trial
    microseconds: float
    """Infinite if it did not run or was wrong."""
    why: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing is tuned.")
        return 1
    begin = time.perf_counter()
    with ProcessPoolExecutor(_workers(), multiprocessing.get_context("spawn")) as pool:
        asked = list(pool.map(partial(trials_of, shapes=args.shapes), args.op))
        failures = iter(list(pool.map(_compiled, [trial for trials in asked for trial in trials])))
    print(f"compiled {sum(map(len, asked))} candidates in {time.perf_counter() - begin:.0f} s", flush=True)
    for name, trials in zip(args.op, asked, strict=True):
        begin, ready = time.perf_counter(), [next(failures) for _ in trials]
        outcomes = sweep(trials, ready, measured)
        show(outcomes)
        launch = fastest(outcomes)
        print(f"{name}: {len(outcomes)} candidates in {time.perf_counter() - begin:.0f} s", flush=True)
        if args.out:
            _add(args.out, name, launch)
        if args.record:
            gpu = devices.current()
            before = devices.launch(name, {})
            print(f"  recorded in {devices.write(gpu, table.versions(), {name: {'launch': before | launch}})}")
    return 0


def _workers() -> int:
    return min(PROCESSES, os.cpu_count() or 1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", required=True, choices=sorted(SHAPES), help="these ops")
    parser.add_argument("--shapes", choices=("small", "paper"), default="paper", help="sizes of which models")
    parser.add_argument("--out", type=Path, help="a JSON file that gets the fastest")
    parser.add_argument("--record", action="store_true", help="write them into the device's table")
    return parser.parse_args(argv)


def candidates_of(op: Op) -> dict[str, list[tuple[int, ...]]]:
    """What the op's Triton module offers, by key; empty if nothing."""
    module = importlib.import_module(op.provider(OURS).__module__)
    return getattr(module, "CANDIDATES", {})


def trials_of(name: str, shapes: str) -> list[Trial]:
    """Every candidate of every key that some size asks for."""
    op, found = kernels.ops()[name], {}
    offered = candidates_of(op)
    for line in SHAPES[name][shapes]:
        for mode in ("forward", "backward"):
            if mode == "backward" and not CASES[name].leaves:
                continue
            trial = Trial(name, "", (), line.shape, line.dtype, mode, line.graph)
            with launches.asked() as keys:
                for call in _calls(trial):
                    call()
            for key in sorted(keys):
                if key not in found or (trial.graph and found[key].graph and _bytes(trial) > _bytes(found[key])):
                    found[key] = trial
    return [found[key]._replace(key=key, numbers=numbers) for key in found for numbers in offered.get(key, [])]


def _bytes(trial: Trial) -> float:
    """That a call moves."""
    size = getattr(torch, trial.dtype).itemsize
    return cost(trial.op, trial.mode, size, **trial.shape).bytes  # pyright: ignore[reportArgumentType]


def sweep(trials: list[Trial], failures: list[str], measured: Callable[[Trial], Outcome]) -> list[Outcome]:
    """Measures those that could be compiled, one after the other.

    Args:
        failures: why each of them could not be compiled, or "".
    """
    found = []
    for trial, failure in zip(trials, failures, strict=True):
        found.append(Outcome(trial, float("inf"), failure) if failure else measured(trial))
    return found


def fastest(outcomes: list[Outcome]) -> dict[str, list[int]]:
    """By key; keys of which none is right are left out."""
    best: dict[str, Outcome] = {}
    for outcome in outcomes:
        key = outcome.trial.key
        if outcome.microseconds < best.get(key, Outcome(outcome.trial, float("inf"))).microseconds:
            best[key] = outcome
    return {key: list(outcome.trial.numbers) for key, outcome in best.items()}


def show(outcomes: list[Outcome]) -> None:
    best = fastest(outcomes)
    for trial, microseconds, why in outcomes:
        chosen = "<-" if best.get(trial.key) == list(trial.numbers) else ""
        print(f"  {trial.key:24} {trial.numbers!s:20} {microseconds:10.1f} us {trial.mode:8} {chosen or why}")


def _compiled(trial: Trial) -> str:
    """Runs it once, which leaves the programs in Triton's cache on disk. Returns why it failed, or ""."""
    try:
        with launches.trying(trial.op, trial.key, trial.numbers):
            for call in _calls(trial):
                call()
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    return ""


def measured(trial: Trial) -> Outcome:
    """Held to the eager implementation, then timed."""
    op, case = kernels.ops()[trial.op], CASES[trial.op]
    dtype, backward = getattr(torch, trial.dtype), trial.mode == "backward"
    inputs = case.make(Draw(dtype, _device()), **trial.shape)
    try:
        with launches.trying(trial.op, trial.key, trial.numbers):
            found = results(case, op.provider(OURS), inputs, backward)
            verdict = agrees(found, _expected(trial._replace(key="", numbers=())), dtype)
            del found
            if not verdict.right:
                return Outcome(trial, float("inf"), f"WRONG: {verdict.worst}")
            return timed(trial, CudaClock())
    except Exception as error:
        return Outcome(trial, float("inf"), type(error).__name__)


def timed(trial: Trial, clock: Clock) -> Outcome:
    """By replay, with inputs that take turns, if that is how its size is measured and it can be captured."""
    failed = ""
    if trial.graph:
        try:
            calls = [call for seed in range(sets_wanted(_bytes(trial), _cache())) for call in _calls(trial, seed)]
            return Outcome(trial, clock.replayed(calls).p50)
        except Exception as error:
            failed = f"not in a graph: {type(error).__name__}"
    *_, call = _calls(trial)
    return Outcome(trial, min(_microseconds(call) for _ in range(ROUNDS)), failed)


def _cache() -> int:
    """Bytes of the last cache before memory."""
    return torch.cuda.get_device_properties(_device()).L2_cache_size if _device() == "cuda" else 0


_kept: dict[str, Any] = {}


def _expected(trial: Trial) -> dict[str, torch.Tensor]:
    """Of the eager implementation; the last one is kept, as neighbours in the sweep share it."""
    if _kept.get("trial") != trial:
        op, case = kernels.ops()[trial.op], CASES[trial.op]
        inputs = case.make(Draw(getattr(torch, trial.dtype), _device()), **trial.shape)
        _kept.clear()
        _kept.update(trial=trial, results=results(case, op.eager, inputs, trial.mode == "backward"))
    return _kept["results"]


def _calls(trial: Trial, seed: int = 0) -> Iterator[Callable[[], object]]:
    """Our forward pass or, where that is the mode, the backward pass after it."""
    op, case = kernels.ops()[trial.op], CASES[trial.op]
    inputs = case.make(Draw(getattr(torch, trial.dtype), _device(), seed), **trial.shape)
    function = op.provider(OURS)
    if trial.mode == "forward":
        yield lambda: _without_gradients(function, inputs)
        return
    leaves = leaves_of(case, inputs)
    inputs = copies(inputs, leaves)
    y = case.outputs(function(**inputs), inputs)
    first = next(value for value in y.values() if value.requires_grad)
    dy = torch.randn_like(first)
    wanted = [inputs[name] for name in leaves]
    yield lambda: torch.autograd.grad(first, wanted, dy, retain_graph=True, allow_unused=True)


def _without_gradients(function: Callable, inputs: dict[str, Any]) -> object:
    with torch.no_grad():
        return function(**inputs)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _microseconds(call: Callable[[], object]) -> float:
    """The median of some milliseconds of calls. In front of each a cache is emptied, which takes longer than the host
    needs for the launch: of calls one by one, the short ones would all take as long as the host."""
    from triton.testing import do_bench

    return 1e3 * do_bench(call, warmup=WARMUP_MS, rep=ROUND_MS, return_mode="median")  # pyright: ignore[reportOperatorIssue]


def _add(file: Path, op: str, launch: dict[str, list[int]]) -> None:
    """Into a file of op -> key -> numbers."""
    found = json.loads(file.read_text()) if file.exists() else {}
    found[op] = found.get(op, {}) | launch
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
