"""How long a training step of an arm takes. Preparing (building, compiling) may go on beside other work; measuring is
for a device that does nothing else."""

from __future__ import annotations

import time
from statistics import median

import torch

from nlrl.backbones.train_step import EAGER_STEPS, TrainStep
from nlrl.benchmarks.replications.experiment import Arm, Timing
from nlrl.benchmarks.replications.train import Rows, fresh, step_for

STEPS = 25
WAYS = {"eager": (False, False), "graph": (True, False), "compiled": (True, True)}
"""Whether steps are graphs, and whether `torch.compile` was there before. A CPU has the first only."""


class StepTimes:
    """The steps of an arm on the first rows of a seed, run in so far that nothing is made or compiled any more."""

    def __init__(self, arm: Arm, rows: Rows, teacher: Arm | None = None, compiled: bool = True):
        """Args: teacher: its arm, if it has one; weights do not matter to speed. compiled: whether to compile."""
        self.arm, self.context, self.device = arm.name, rows.data.context, rows.device
        self.batch = rows.batch(0)
        on_cuda = self.device.type == "cuda"
        ways = {way: how for way, how in WAYS.items() if way == "eager" or (on_cuda and (compiled or not how[1]))}
        taught_by = None if teacher is None else fresh(teacher, rows.data, 0)
        self.steps = {}
        torch.compiler.reset()  # or what was compiled before would count towards the limit of variants
        for way, (graphs, compile) in ways.items():
            step = step_for(arm, fresh(arm, rows.data, 0), arm.lrs[0], taught_by, graphs, compile)
            for _ in range(EAGER_STEPS + 2):
                step([self.batch], masked=True)
            self._wait()
            # A step that fails to be compiled or captured goes on without, and is then none of this way.
            if (step.graphs or not graphs) and (step.compiled is not None or not compile):
                self.steps[way] = step

    def measure(self, count: int = STEPS) -> Timing:
        found = {way: self._median(step, count) for way, step in self.steps.items()}
        return Timing(self.arm, self.context, found["eager"], found.get("graph"), found.get("compiled"))

    def _median(self, step: TrainStep, count: int) -> float:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            step([self.batch], masked=True)
            self._wait()
            times.append(time.perf_counter() - start)
        return median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
