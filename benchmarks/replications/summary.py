"""What the results of a claim say: figures derived from a `Report`, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy as np

from nlrl.benchmarks.replications.experiment import Report, Result, Timing


@dataclass(frozen=True)
class Spread:
    """Several values of one thing: by seed, mostly."""

    values: tuple[float, ...]

    def __format__(self, spec: str) -> str:
        """`mean (least to most)`; the mean alone where there is one value."""
        if not self.values:
            return "-"
        least, most = format(min(self.values), spec), format(max(self.values), spec)
        middle = format(mean(self.values), spec)
        return middle if len(self.values) == 1 else f"{middle} ({least} to {most})"


class Summary:
    """The runs that count: for every arm and context the best learning rate of the search, with every seed."""

    def __init__(self, report: Report):
        self.report = report
        self.labels: dict[str, str] = {arm["name"]: arm["label"] for arm in report.settings["arms"]}
        self.control = next(iter(self.labels))
        self.first_seed = report.settings["seeds"][0]
        self.contexts: list[int] = report.settings["contexts"]

    def runs(self, arm: str, context: int) -> list[Result]:
        """By seed; empty if nothing was run."""
        lr = self.best_lr(arm, context)
        found = [r for r in self._of(arm, context) if r.run.lr == lr]
        return sorted(found, key=lambda result: result.run.seed)

    def searched(self, arm: str, context: int) -> dict[float, float]:
        """Final validation loss by learning rate, ascending, on the seed of the search."""
        found = {r.run.lr: r.loss for r in self._of(arm, context) if r.run.seed == self.first_seed}
        return dict(sorted(found.items()))

    def best_lr(self, arm: str, context: int) -> float | None:
        losses = self.searched(arm, context)
        return min(losses, key=losses.__getitem__) if losses else None

    def at_edge(self, arm: str, context: int) -> bool:
        """The best learning rate is the smallest or the largest that was tried."""
        losses = list(self.searched(arm, context))
        return bool(losses) and self.best_lr(arm, context) in (losses[0], losses[-1])

    def losses(self, arm: str, context: int) -> Spread:
        return Spread(tuple(result.loss for result in self.runs(arm, context)))

    def gaps(self, arm: str, context: int) -> Spread:
        """The arm's loss less the control's, seed by seed; negative is better."""
        return Spread(tuple(ours.loss - theirs.loss for ours, theirs in self._pairs(arm, context)))

    def speed(self, arm: str, context: int) -> Spread:
        """How many times fewer steps the arm takes to equal loss, seed by seed."""
        return Spread(tuple(step_ratio(ours, theirs) for ours, theirs in self._pairs(arm, context)))

    def step_time(self, arm: str, context: int, way: str) -> float | None:
        """A step's time over the control's."""
        ours, theirs = self.timing(arm, context), self.timing(self.control, context)
        if ours is None or theirs is None or getattr(ours, way) is None or getattr(theirs, way) is None:
            return None
        return getattr(ours, way) / getattr(theirs, way)

    def timing(self, arm: str, context: int) -> Timing | None:
        found = [t for t in self.report.timings if (t.arm, t.context) == (arm, context)]
        return found[0] if found else None

    def measured(self, arm: str, context: int, name: str) -> list[dict[str, Any]]:
        """What a measure returned, by seed."""
        return [r.measures[name] for r in self.runs(arm, context) if name in r.measures]

    def _of(self, arm: str, context: int) -> list[Result]:
        return self._by_arm.get((arm, context), [])

    def _pairs(self, arm: str, context: int) -> list[tuple[Result, Result]]:
        theirs = {result.run.seed: result for result in self.runs(self.control, context)}
        return [(r, theirs[r.run.seed]) for r in self.runs(arm, context) if r.run.seed in theirs]

    @cached_property
    def _by_arm(self) -> dict[tuple[str, int], list[Result]]:
        found: dict[tuple[str, int], list[Result]] = {}
        for result in self.report.results:
            found.setdefault((result.run.arm, result.run.context), []).append(result)
        return found


def step_ratio(ours: Result, theirs: Result) -> float:
    """Their steps over the steps in which we reach their final loss; where we never do, the steps in which they reach
    ours over our steps (below 1). Between the points of a curve the loss is taken to be linear. 0: neither is reached,
    which means that a run diverged."""
    if (steps := steps_to(ours.curve, theirs.loss)) is not None:
        return _steps(theirs) / steps
    steps = steps_to(theirs.curve, ours.loss)
    return 0.0 if steps is None else steps / _steps(ours)


def steps_to(curve: Sequence[Sequence[float | None]], loss: float) -> float | None:
    """Steps until the validation loss is first as low as `loss`; None: never."""
    for before, after in pairwise(curve):
        high, low = before[3], after[3]
        if high is None or low is None:
            return None
        if low <= loss:
            share = 1.0 if high <= low else float(np.clip((high - loss) / (high - low), 0, 1))
            return float(before[0] or 0) + share * (float(after[0] or 0) - float(before[0] or 0))
    return None


def _steps(result: Result) -> float:
    return float(result.curve[-1][0] or 0)
