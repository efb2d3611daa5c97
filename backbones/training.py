"""Supervised fine-tuning of a `Backbone` on token examples: the plain loop that critic and actor are trained with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nlrl.backbones.optimizer_state import FitCheckpoint, KeptMoments
from nlrl.backbones.packing import TokenBatch, pack, pad_rows, rows_needed, shuffled_batches
from nlrl.backbones.padding import passes
from nlrl.backbones.ranks import ALONE, Ranks
from nlrl.backbones.train_step import Loss, TrainStep, make_optimizer, set_learning_rate, target_loss
from nlrl.errors import NLRLError


@dataclass(frozen=True)
class TrainMetrics:
    """What one call of `Trainer.fit` did."""

    loss: float
    """Weighted mean cross-entropy of a target, nats, averaged over the steps of the last epoch."""
    tokens: int
    """Tokens read, prompts included, padding not; every epoch counts."""
    steps: int
    examples: int
    seconds: float


_PASS_TOKENS = {"cpu": 2048, "cuda": 32_768}
"""On a CPU what stays in a core's caches, elsewhere what surely fits; for batches that are padded."""


class Trainer:
    """AdamW on one model. The optimizer's state survives between calls of `fit`; batches depend on the seed alone."""

    def __init__(
        self,
        model,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.05,
        clip: float = 1.0,
        device: str | torch.device | None = None,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        compile: bool = False,
        graphs: bool = True,
        loss: Loss = target_loss,
        collate: Callable[[list[Any]], Any] | None = None,
        ranks: Ranks = ALONE,
        kept: KeptMoments | None = None,
    ):
        """
        Args:
            model: a `Backbone` with float32 weights; moved to `device`, by default its own. Its attribute
                `no_weight_decay` switches decay off.
            clip: largest gradient norm.
            precision: "bf16" computes under autocast; "auto" does so on CUDA.
            compile: `torch.compile` the loss. Pays for itself in minutes, not in seconds.
            graphs: False never uses CUDA graphs.
            loss, collate: for examples of another kind: a loss, and what makes a batch for it of a list of examples.
                Examples have a `len` in tokens, batches have `weights` and `to(device)`; such batches are padded rather
                than packed, and use no graphs.
        """
        if precision not in ("auto", "fp32", "bf16"):
            raise NLRLError(f"precision is {precision!r}; it must be auto, fp32 or bf16")
        self.model = model.to(device) if device is not None else model
        self.device = next(model.parameters()).device
        self.learning_rate = learning_rate
        self.optimizer = make_optimizer(model, learning_rate, betas, weight_decay, self.device)
        bf16 = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")
        self._packs = self.device.type == "cuda" and collate is None
        self._collate = collate or (lambda examples: TokenBatch.of(pad_rows(examples)))
        self._ranks = ranks
        self._step = TrainStep(model, self.optimizer, clip, bf16, compile, graphs and collate is None, loss, ranks)
        if kept is not None:
            kept.attach(self)

    def fit(
        self,
        examples: Sequence[Any],
        epochs: int = 1,
        batch_size: int = 256,
        seed: int = 0,
        learning_rate: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        checkpoint: FitCheckpoint | None = None,
    ) -> TrainMetrics:
        """Trains on every example once an epoch, in an order drawn from `seed`.

        Args:
            examples: of `TokenExample`, or of what `collate` takes.
            batch_size: examples a step at most; an epoch's steps are of equal size, give or take one.
            learning_rate: for this call; by default the trainer's.
            progress: called after each step with (steps done, steps in all).
            checkpoint: where the round is saved from time to time, and goes on from if it was.
        Raises:
            NLRLError: there are no examples, the loss stopped being a number, or processes that trained together ended
                apart.
        """
        if not examples or epochs < 1 or batch_size < 1:
            given = f"{len(examples)} examples, epochs {epochs}, batch_size {batch_size}"
            raise NLRLError(f"Trainer.fit: {given}; each must be at least 1")
        began = time.monotonic()
        set_learning_rate(self.optimizer, self.learning_rate if learning_rate is None else learning_rate)
        was_training = self.model.training
        self.model.train()
        batches = [
            chunk for epoch in range(epochs) for chunk in shuffled_batches(examples, batch_size, f"{seed}/{epoch}")
        ]
        per_epoch = len(batches) // epochs
        begun = 0 if checkpoint is None else checkpoint.resume(self)
        for done, step in enumerate(self._prepared(batches, begun), begun + 1):
            if done == len(batches) - per_epoch + 1:
                self._step.loss_sum.zero_()
            self._step(step, masked=self._packs)
            if progress is not None:
                progress(done, len(batches))
            if checkpoint is not None and done < len(batches):
                checkpoint.note(self, done)
        self.model.train(was_training)
        loss = float(self._step.loss_sum) / per_epoch
        if not math.isfinite(loss):
            raise NLRLError("training diverged: the loss is not a number. Lower the learning rate")
        self._ranks.check_equal(self.model)
        tokens = epochs * sum(map(len, examples))
        return TrainMetrics(loss, tokens, len(batches), epochs * len(examples), time.monotonic() - began)

    @property
    def ranks(self) -> Ranks:
        return self._ranks

    @property
    def loss_sum(self) -> torch.Tensor:
        """Of the steps since the last epoch began, `()`."""
        return self._step.loss_sum

    def state_dict(self) -> dict:
        """The optimizer's state (the model's weights are the model's to save)."""
        return {"state": self.optimizer.state_dict()["state"]}

    def load_state_dict(self, state: Mapping) -> None:
        """Restores what `state_dict` gave, from any device. Settings stay those of this trainer.

        Raises:
            NLRLError: the state belongs to a model of another shape.
        """
        shapes = [p.shape for group in self.optimizer.param_groups for p in group["params"]]
        for i, entry in state["state"].items():
            if i >= len(shapes) or entry["exp_avg"].shape != shapes[i]:
                shape = tuple(entry["exp_avg"].shape)
                raise NLRLError(f"optimizer state {i} has shape {shape}: it belongs to another model")
        groups = self.optimizer.state_dict()["param_groups"]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._step.forget_graphs()

    def _prepared(self, batches: list[list[Any]], begun: int = 0):
        """Each step's batch for `TrainStep`, of several processes this one's share: padded passes, or on CUDA one
        packed block of equal shape.

        Args:
            begun: steps that are done already.
        """
        if not self._packs:
            for batch in batches[begun:]:
                batch = sorted(self._ranks.share(batch), key=len)
                most = _PASS_TOKENS.get(self.device.type, _PASS_TOKENS["cuda"])
                cuts = passes([len(example) for example in batch], most)
                yield [self._collate(batch[cut]) for cut in cuts]
            return
        batches = [self._ranks.share(batch) for batch in batches]
        longest = max((len(example) for batch in batches for example in batch), default=1)
        row_length = max(256, _round_up(longest, 64))
        rows = _round_up(max(rows_needed(batch, row_length) for batch in batches), 16)
        for batch in batches[begun:]:  # packed one by one, while the device works on the one before
            yield [TokenBatch.of(pack(batch, row_length, rows)).pinned()] if batch else []


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
