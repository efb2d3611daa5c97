"""Processes that make runs side by side, on one device or all GPUs there are: models this small leave most of one idle.

A worker answers every task before it gets the next. Tasks: `("run", claim, run, teacher's weights or None, where to
keep weights or None)` -> `Result`; `("prepare", claim, arm, context)` -> None; `("measure",)` -> `Timing` of what was
prepared last. Claims are named, as functions do not travel: see `claims`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from nlrl.benchmarks.replications.claims import Choice
from nlrl.benchmarks.replications.experiment import Run
from nlrl.errors import NLRLError


@dataclass(frozen=True)
class Setup:
    """What all tasks of a worker share."""

    corpus: Path
    device: str
    compiled: bool
    """Whether compiled steps are timed."""
    threads: int = 1
    """Of a CPU, for each worker."""


@dataclass(frozen=True)
class Failed:
    """A task that raised."""

    error: str


class Bench:
    """What a worker keeps between tasks; without a process around it, for one job."""

    def __init__(self, setup: Setup):
        import torch

        self.setup = setup
        self.device = torch.device(setup.device)
        if self.device.type == "cpu":
            torch.set_num_threads(setup.threads)
        else:
            torch.cuda.set_device(self.device)  # kernels are launched on the current one
        self._data: Any = None
        self._rows: dict[tuple, Any] = {}
        self._prepared = None

    def do(self, task: tuple) -> Any:
        return getattr(self, task[0])(*task[1:])

    def run(self, choice: Choice, run: Run, teacher: Path | None, keep: Path | None):
        import torch

        from nlrl.benchmarks.replications.train import fresh, train

        claim = choice.claim()
        rows = self._rows_of(choice, run.context, run.seed)
        taught_by = None
        if teacher is not None:
            taught_by = fresh(claim.arm(claim.arm(run.arm).teacher or ""), rows.data, 0)
            taught_by.load_state_dict(torch.load(teacher, map_location=self.device, weights_only=True))
        model, result = train(claim, run, rows, taught_by)
        if keep is not None:
            keep.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), keep)
        return result

    def prepare(self, choice: Choice, arm: str, context: int) -> None:
        from nlrl.benchmarks.replications.timings import StepTimes

        claim = choice.claim()
        timed = claim.arm(arm)
        teacher = None if timed.teacher is None else claim.arm(timed.teacher)
        rows = self._rows_of(choice, context, claim.seeds[0])
        compiled = self.setup.compiled and timed.extra.get("compiled", True)
        self._prepared = StepTimes(timed, rows, teacher, compiled)

    def measure(self):
        assert self._prepared is not None
        timing, self._prepared = self._prepared.measure(), None
        return timing

    def _rows_of(self, choice: Choice, context: int, seed: int):
        from nlrl.benchmarks.replications.corpus import load
        from nlrl.benchmarks.replications.train import Rows

        if self._data is None:
            self._data = load(self.setup.corpus, context, self.device)
        key = (choice, context, seed)
        if key not in self._rows:
            self._rows[key] = Rows(choice.claim(), replace(self._data, context=context), seed)
        return self._rows[key]


class Here:
    """No process but this one: a task is done when it is submitted. Otherwise like `Workers`."""

    def __init__(self, setup: Setup):
        self._bench = Bench(setup)
        self._answer: list[tuple[int, Any, Any]] = []

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_) -> None:
        self._answer.clear()

    @property
    def idle(self) -> list[int]:
        return [] if self._answer else [0]

    @property
    def busy(self) -> bool:
        return bool(self._answer)

    def submit(self, number: int, task: tuple, tag: Any = None) -> None:
        self._answer.append((number, tag, _done(self._bench, task)))

    def answers(self) -> Iterator[tuple[int, Any, Any]]:
        yield self._answer.pop()


class Workers:
    """A pool; `jobs` processes, each with its own device context, by turns on the GPUs where the device is "cuda". As a
    context manager it ends them."""

    def __init__(self, setup: Setup, jobs: int):
        context = multiprocessing.get_context("spawn")
        # Compilers of all workers share the cores.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, replace(setup, device=nth(setup.device, number))))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._busy: dict[int, Any] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.terminate()

    @property
    def idle(self) -> list[int]:
        return [number for number in range(len(self._pipes)) if number not in self._busy]

    @property
    def busy(self) -> bool:
        return bool(self._busy)

    def submit(self, number: int, task: tuple, tag: Any = None) -> None:
        """Gives an idle worker a task; `tag` comes back with the answer."""
        self._pipes[number].send(task)
        self._busy[number] = tag

    def answers(self) -> Iterator[tuple[int, Any, Any]]:
        """Waits for at least one worker: (worker, tag, answer), the answer maybe a `Failed`.

        Raises:
            NLRLError: a worker died.
        """
        ready = wait([self._pipes[number] for number in self._busy])
        for number in [n for n in self._busy if self._pipes[n] in ready]:
            try:
                answer = self._pipes[number].recv()
            except (EOFError, ConnectionError) as error:
                raise NLRLError(f"a worker died at {self._busy[number]}; results so far are kept") from error
            yield number, self._busy.pop(number), answer


def nth(device: str, number: int) -> str:
    """The device of a worker: "cuda" is spread over the GPUs there are, what names one is kept."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{number % torch.cuda.device_count()}"


def _serve(pipe: Connection, setup: Setup) -> None:
    bench = Bench(setup)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(_done(bench, task))


def _done(bench: Bench, task: tuple) -> Any:
    """What came of a task, or `Failed`."""
    import torch

    try:
        return bench.do(task)
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}")
    finally:
        gc.collect()  # graphs of the last run
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next task may be another worker's


Pool = Workers | Here


def prepare_and_measure(
    workers: Pool, tasks: Sequence[tuple], deadline: float = float("inf")
) -> Iterator[tuple[tuple, Any]]:
    """`(task, Timing or Failed)` of `(choice, arm, context)` tasks: as many as there are workers are prepared side by
    side, then measured in turn, while nothing else is done. None is started after the deadline (`time.monotonic`)."""
    tasks = list(tasks)
    while tasks and time.monotonic() < deadline:
        batch, tasks = tasks[: len(workers.idle)], tasks[len(workers.idle) :]
        for number, task in zip(workers.idle, batch, strict=False):
            workers.submit(number, ("prepare", *task), task)
        ready = []
        while workers.busy:
            for number, task, answer in workers.answers():
                if isinstance(answer, Failed):
                    yield task, answer
                else:
                    ready.append((number, task))
        for number, task in ready:
            workers.submit(number, ("measure",), task)
            for _, _, answer in workers.answers():
                yield task, answer
