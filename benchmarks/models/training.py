"""Training steps of all architectures at one size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from nlrl import kernels
from nlrl.backbones.packing import TokenBatch
from nlrl.backbones.train_step import TrainStep, make_optimizer
from nlrl.benchmarks.kernels.clock import Rates
from nlrl.benchmarks.models.clock import free, paced
from nlrl.benchmarks.models.configs import CONTROL, NGPT, Fields, random_model
from nlrl.benchmarks.models.report import Line, Report
from nlrl.benchmarks.models.roofline import PEAK, training_flops
from nlrl.kernels.dispatch import SWITCH

PART = "train"
KERNELS = ("dispatcher", "eager")
MOST_COST = 1.03
"""Time of nGPT's step beside the control's."""


@dataclass(frozen=True)
class Load:
    """A step."""

    rows: int = 16
    time: int = 2048
    budget: float = 1.5
    """Seconds of timed steps."""
    compile: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.time


def measure(models: dict[str, Fields], kinds: list[str], load: Load, device: str, rates: Rates, report: Report) -> None:
    """Every model with each kind of kernels, the control first."""
    for kind in kinds:
        control = None
        for name, fields in models.items():
            with report.attempt(PART, name, f"{kind} kernels"), chosen(kind):
                rate, flops = step_rate(fields, load, device)
                control = rate if name == CONTROL else control
                report.add(_line(name, kind, rate, flops, control, rates))
            free(device)
            if load.compile:
                torch.compiler.reset()


def _line(name: str, kind: str, rate: float, flops: float, control: float | None, rates: Rates) -> Line:
    beside = {"MFU": rate * flops / rates.matmul, "of 989 TFLOP/s": rate * flops / PEAK}
    if control is not None:
        beside["x control"] = rate / control
    if name != NGPT or kind != KERNELS[0] or control is None:
        return Line(PART, name, f"{kind} kernels", rate, beside=beside)
    target = f"at most {MOST_COST - 1:.0%} slower"
    return Line(PART, name, f"{kind} kernels", rate, "tokens/s", beside, target, control / rate <= MOST_COST)


def step_rate(fields: Fields, load: Load, device: str) -> tuple[float, float]:
    """Tokens a second of whole steps, and FLOPs of a token."""
    model = random_model(fields, device).train()
    on_cuda = device.startswith("cuda")
    optimizer = make_optimizer(model, 3e-4, (0.9, 0.95), 0.1, torch.device(device))
    step = TrainStep(model, optimizer, clip=1.0, bf16=on_cuda, compile=load.compile, graphs=False)
    batch = whole_rows(load, model.config.vocab_size, device)
    # Every row is one text, so no mask is needed, and attention of the control is flash attention.
    took = paced(lambda: step([batch], masked=False), device, load.budget)
    if not torch.isfinite(step.loss_sum):
        raise RuntimeError("the loss is not a number")
    return load.tokens / took, training_flops(model, load.time)


def whole_rows(load: Load, vocabulary: int, device: str) -> TokenBatch:
    """Rows of one text each, all of it to be learned."""
    tokens = torch.randint(vocabulary, (load.rows, load.time), device=device, dtype=torch.int32)
    positions = torch.arange(load.time, device=device, dtype=torch.int32).expand_as(tokens)
    weights = (positions > 0).float()
    return TokenBatch(tokens, torch.ones_like(tokens), positions.contiguous(), weights)


@contextmanager
def chosen(kind: str) -> Iterator[None]:
    """Ops follow the dispatcher, or are PyTorch calls, meanwhile."""
    before = os.environ.pop(SWITCH, None)
    if kind == "eager":
        os.environ[SWITCH] = "eager"
    _ask_again()
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
        os.environ.update({} if before is None else {SWITCH: before})
        _ask_again()


def _ask_again() -> None:
    for op in kernels.ops().values():
        op.forget_choice()
