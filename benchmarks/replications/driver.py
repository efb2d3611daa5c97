"""Makes the runs of claims with a pool of workers and keeps what came of them.

Every finished run is written at once, so a call that is killed or out of time is followed by one that makes what is
missing. What fails is said, and the rest goes on.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from nlrl.benchmarks.replications import plan
from nlrl.benchmarks.replications.claims import Choice
from nlrl.benchmarks.replications.experiment import Claim, Report, Result, Run, check_matched
from nlrl.benchmarks.replications.workers import Failed, Pool, prepare_and_measure
from nlrl.errors import NLRLError

LIBRARIES = ("torch", "triton", "transformers", "numpy")


class Book:
    """A claim, its file, and its weights that teach."""

    def __init__(self, choice: Choice, out: Path, corpus: dict[str, Any], session: dict[str, Any]):
        """Raises: NLRLError: the file there was made with other settings; arms differ in parameters."""
        self.choice, self.claim, self.out = choice, choice.claim(), out
        self.path = out / f"replications_{self.claim.name}.json"
        self.session, self.failed = session, {}
        settings = json.loads(json.dumps(_settings(self.claim) | {"corpus": corpus}))
        if self.path.exists():
            self.report = Report.read(self.path)
            if self.report.settings != settings:
                raise NLRLError(f"{self.path} was made with other settings; move it away, or give another --out")
        else:
            self.report = Report(self.claim.name, settings, [], [], [])
        self.report.sessions.append(session)

    def results(self) -> list[Result]:
        """Those that can be built on: a teacher's count only if its weights are there."""
        return [r for r in self.report.results if self.weights(r.run) is None or self.weights(r.run).exists()]  # pyright: ignore[reportOptionalMemberAccess]

    def missing(self) -> list[Run]:
        return plan.missing(self.claim, self.results())

    def weights(self, run: Run) -> Path | None:
        """Where a run's weights are kept; None if nobody learns from it."""
        if run.seed != self.claim.seeds[0] or run.arm not in {arm.teacher for arm in self.claim.arms}:
            return None
        return self.out / "weights" / f"{self.claim.name}-{run.arm}-{run.context}-{run.lr:g}.pt"

    def task(self, run: Run) -> tuple:
        teacher = self.claim.arm(run.arm).teacher
        best = plan.best(self.claim, self.results(), teacher, run.context) if teacher else None
        return ("run", self.choice, run, best and self.weights(best.run), self.weights(run))

    def add(self, result: Result) -> None:
        result.session = len(self.report.sessions) - 1
        self.report.results = [r for r in self.report.results if r.run != result.run] + [result]
        self.write()

    def untimed(self) -> list[tuple[Choice, str, int]]:
        timed = {(timing.arm, timing.context) for timing in self.report.timings}
        pairs = [(arm.name, context) for context in self.claim.contexts for arm in self.claim.arms]
        return [(self.choice, *pair) for pair in pairs if pair not in timed]

    def write(self) -> None:
        self.report.missing = self.missing()
        self.report.write(self.path)


def replicate(
    books: Sequence[Book],
    workers: Pool,
    deadline: float = float("inf"),
    say: Callable[[str], None] = print,
) -> None:
    """Makes what the books miss, then times their steps.

    Args: deadline: of `time.monotonic`; nothing is started after it. say: gets a line about everything that ends.
    """
    began = time.monotonic()
    for book, run, answer in _runs(books, workers, deadline):
        if isinstance(answer, Failed):
            book.failed[run] = answer.error
            book.session.setdefault("failed", []).append(asdict(run) | {"error": answer.error})
            say(f"FAILED {book.claim.name} {run}: {answer.error}")
        else:
            book.add(answer)
            say(line_of(book.claim, answer, time.monotonic() - began))
        book.session["seconds"] = round(time.monotonic() - began, 1)
    if time.monotonic() < deadline:
        _time_steps(books, workers, deadline, say)
    for book in books:
        book.session["seconds"] = round(time.monotonic() - began, 1)
        book.write()
        unmade = len(book.report.missing)
        say(f"{book.path}: {len(book.report.results)} runs" + (f", {unmade} known ones are missing" if unmade else ""))


def _runs(books: Sequence[Book], workers: Pool, deadline: float) -> Iterator[tuple[Book, Run, Any]]:
    """Every run that is missing, as its answer comes; what an answer makes possible is taken up."""
    flying: set[tuple[str, Run]] = set()
    while True:
        todo = [(book, run) for book in books for run in book.missing() if run not in book.failed]
        todo = [(book, run) for book, run in todo if (book.claim.name, run) not in flying]
        if time.monotonic() >= deadline:
            todo = []
        for number, (book, run) in zip(workers.idle, todo, strict=False):
            flying.add((book.claim.name, run))
            workers.submit(number, book.task(run), (book, run))
        if not workers.busy:
            return
        for _, (book, run), answer in workers.answers():
            flying.discard((book.claim.name, run))
            yield book, run, answer


def _time_steps(books: Sequence[Book], workers: Pool, deadline: float, say: Callable[[str], None]) -> None:
    tasks = {task: book for book in books for task in book.untimed()}
    for task, answer in prepare_and_measure(workers, list(tasks), deadline):
        book, name = tasks[task], " ".join(map(str, (task[0].name, *task[1:])))
        if isinstance(answer, Failed):
            say(f"FAILED to time {name}: {answer.error}")
            continue
        answer.session = len(book.report.sessions) - 1
        book.report.timings.append(answer)
        book.write()
        ways = ((way, getattr(answer, way)) for way in ("eager", "graph", "compiled"))
        say(f"{name}: " + ", ".join(f"{way} {1e3 * seconds:.2f} ms" for way, seconds in ways if seconds))


# -- what is said ------------------------------------------------------------------------------------------------------
def line_of(claim: Claim, result: Result, seconds: float) -> str:
    run = result.run
    loss = "diverged" if result.loss == float("inf") else f"loss {result.loss:.4f}"
    rate = result.curve[-1][1] / result.seconds if result.curve[-1][1] else 0
    scores = "".join(f", {name} {found['all']:.3f}" for name, found in result.measures.items() if "all" in found)
    return (
        f"[{seconds:4.0f} s] {claim.name} {run.arm} context {run.context} lr {run.lr:g} seed {run.seed}: {loss}, "
        f"{result.seconds:.1f} s, {rate:,.0f} tokens/s{scores}"
    )


def session_of(command: str, device: str, jobs: int) -> dict[str, Any]:
    """What is to be known about a call: command, device, machine, versions."""
    import torch

    from nlrl.benchmarks.figures import machine

    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {"command": command, "device": name, "machine": machine(), "versions": versions, "jobs": jobs}


def _settings(claim: Claim) -> dict[str, Any]:
    arms = [
        {"name": a.name, "label": a.label, "lrs": a.lrs, "optimizer": a.optimizer, "teacher": a.teacher}
        for a in claim.arms
    ]
    numbers = {name: getattr(claim, name) for name in ("contexts", "tokens", "batch_tokens", "seeds", "extensions")}
    mixed = claim.mix_share if claim.mix else 0.0
    return numbers | {"steps": claim.steps, "mix_share": mixed, "arms": arms}


def sizes(claim: Claim, vocab: int) -> dict[int, dict[str, int]]:
    """Parameters by context and arm. Raises: NLRLError: an arm is not matched."""
    import torch

    found = {}
    for context in claim.contexts:
        with torch.device("meta"):
            models = {arm.name: arm.build(vocab, context) for arm in claim.arms}
        found[context] = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
        check_matched(claim, context, found[context])
    return found
