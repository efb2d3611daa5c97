"""One run: the rows it reads, its training, its measures; and how long a step takes.

Rows are blocks of the corpus behind each other, without regard to documents: each begins with its own token, and no
mask keeps them apart, so that attention runs in its fastest form. The data lie on the device and a step cuts its rows
out of them by index. Weights are float32; on CUDA the arithmetic is bfloat16 under autocast, and a step is one graph.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nlrl.backbones.bimamba.distillation import distilled_from
from nlrl.backbones.packing import TokenBatch
from nlrl.backbones.train_step import Loss, TrainStep, make_optimizer, set_learning_rate, target_loss
from nlrl.benchmarks.replications.experiment import Arm, Claim, Data, Result, Run

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
"""Of the "adamw" arms."""
CLIP = 1.0
WARMUP = 0.1
"""Share of the steps of the "adamw" arms."""
EVALUATIONS = 20
"""Points of a curve, beside the one at the start."""
PASS_TOKENS = 1 << 15
"""Tokens a call of an evaluation."""


class Rows:
    """The batches of a claim at a context, the same for every arm of a seed."""

    def __init__(self, claim: Claim, data: Data, seed: int):
        self.data, self.device = data, data.train.device
        rows, steps = max(1, claim.batch_tokens // data.context), claim.steps
        rng = np.random.default_rng([seed, data.context])
        blocks = len(data.train) // data.context
        epochs = [rng.permutation(blocks) for _ in range(math.ceil(steps * rows / blocks))]
        self.blocks = self._on_device(np.concatenate(epochs)[: steps * rows].reshape(steps, rows))
        self.mixed = None
        if claim.mix is not None:
            chosen = rng.random((steps, rows)) < claim.mix_share
            tokens, weights = claim.mix(data, max(1, int(chosen.sum())), rng)
            self.mixed = self._on_device(np.where(chosen, chosen.cumsum().reshape(chosen.shape) - 1, -1))
            self.mixed_tokens = self._on_device(tokens.astype(np.int16))
            self.mixed_weights = self._on_device(weights.astype(np.float32))
        self._places = torch.arange(data.context, device=self.device)

    def batch(self, step: int) -> TokenBatch:
        """Each `(rows, context)`; every token of the corpus is a target of weight 1, but the first of a row."""
        tokens = self.data.train[self.blocks[step][:, None] * self.data.context + self._places].long()
        weights = torch.ones(tokens.shape, device=self.device)
        if self.mixed is not None:
            index = self.mixed[step][:, None]
            drawn = index[:, 0].clamp_min(0)
            tokens = torch.where(index < 0, tokens, self.mixed_tokens[drawn].long())
            weights = torch.where(index < 0, weights, self.mixed_weights[drawn])
        weights[:, 0] = 0
        positions = self._places.expand(tokens.shape)
        return TokenBatch(tokens, torch.ones_like(tokens[:1, :1]), positions, weights)

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@dataclass(frozen=True)
class Schedule:
    """A cosine to 0; behind a linear warm-up for arms that want one."""

    peak: float
    steps: int
    warmup: int

    @classmethod
    def of(cls, arm: Arm, lr: float, steps: int) -> Schedule:
        return cls(lr, steps, math.ceil(WARMUP * steps) if arm.optimizer == "adamw" else 0)

    def __call__(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.peak * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def train(claim: Claim, run: Run, rows: Rows, teacher=None) -> tuple[Any, Result]:
    """The trained model, in evaluation mode, and what to write down.

    Args:
        rows: of the claim, at the run's context and seed.
        teacher: a model on the data's device, if the run's arm has one.
    """
    began, data, device, arm = time.monotonic(), rows.data, rows.device, claim.arm(run.arm)
    model = fresh(arm, data, run.seed)
    step = step_for(arm, model, run.lr, teacher)
    schedule = Schedule.of(arm, run.lr, claim.steps)
    curve: list[list[float | None]] = [[0, 0, None, _number(validation_loss(model, data))]]
    marks = {round(i * claim.steps / EVALUATIONS) for i in range(1, EVALUATIONS + 1)}
    for done in range(1, claim.steps + 1):
        set_learning_rate(step.optimizer, schedule(done - 1))
        step([rows.batch(done - 1)], masked=True)
        if done in marks:
            loss = float(step.loss_sum) / (done - int(curve[-1][0] or 0))
            step.loss_sum.zero_()
            curve.append([done, done * claim.batch_tokens, _number(loss), _number(validation_loss(model, data))])
            if curve[-1][2] is None or curve[-1][3] is None:
                break
    model.eval()
    measures = {}
    if curve[-1][3] is not None:
        with torch.no_grad():
            measures = {name: measure(model, data, device) for name, measure in claim.measures.items()}
    return model, Result(run, parameters(model), curve, measures, time.monotonic() - began, device_name(device))


def fresh(arm: Arm, data: Data, seed: int):
    """An untrained model on the data's device; equal seeds give equal weights."""
    torch.manual_seed(seed)
    model: Any = arm.build(data.vocab, data.context)
    return model.to(data.train.device).train()


def parameters(model) -> int:
    return sum(weight.numel() for weight in model.parameters())


@torch.no_grad()
def validation_loss(model, data: Data) -> float:
    """Mean cross-entropy of a held-out token in nats; the first token of a row is not predicted."""
    was_training = model.training
    model.eval()
    rows, total, targets = data.validation_rows(), 0.0, 0
    for part in rows.split(max(1, PASS_TOKENS // data.context)):
        with autocast(part.device):
            logits = logits_of(model, part.long())[:, :-1]
        wanted = part[:, 1:].long().flatten()
        total += F.cross_entropy(logits.float().flatten(0, 1), wanted, reduction="sum")
        targets += len(wanted)
    model.train(was_training)
    return float(total) / targets


def logits_of(model, tokens: torch.Tensor) -> torch.Tensor:
    """`(rows, time, vocab)` for tokens `(rows, time)`, every row a text that begins at position 0."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    return model.logits(model.hidden(tokens, positions))


def autocast(device: torch.device):
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def step_for(arm: Arm, model, lr: float, teacher=None, graphs: bool = True, compile: bool = False) -> TrainStep:
    """A training step on the model's device, as the runs make it."""
    decay = WEIGHT_DECAY if arm.optimizer == "adamw" else 0.0
    optimizer = make_optimizer(model, lr, BETAS, decay, model.device)
    loss = without_mask(target_loss if teacher is None else distilled_from(teacher))
    bf16 = model.device.type == "cuda"
    return TrainStep(model, optimizer, CLIP, bf16, compile=compile and bf16, graphs=graphs, loss=loss)


def without_mask(loss: Loss) -> Loss:
    """The loss on rows that are one text each. `TrainStep` makes graphs of steps that say `masked` only."""

    def unmasked(model, batch: TokenBatch, masked: bool = True, static: bool = False):
        return loss(model, batch, False, static)

    return unmasked


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
