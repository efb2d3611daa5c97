"""Pretraining from scratch on an endless stream of generated examples.

Worker processes draw examples and pack them into blocks of one fixed shape, so that every step on CUDA is the same
graph and the generators (thousands of examples a second and core) never make the device wait. Where the examples come
from is the caller's affair.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nlrl.backbones.bimamba.distillation import check_teacher, distilled_from
from nlrl.backbones.packing import TokenBatch, TokenExample, pack
from nlrl.backbones.ranks import ALONE, Ranks
from nlrl.backbones.train_step import TrainStep, make_optimizer, set_learning_rate, target_loss
from nlrl.errors import NLRLError

StreamFactory = Callable[[int, int, int], Iterator[TokenExample]]
"""(worker, workers, seed) -> that worker's examples; different workers must draw different ones."""
_STEPS_AHEAD = 8
_CPU_PASS_TOKENS = 2048


@dataclass(frozen=True)
class PretrainSettings:
    """How to pretrain."""

    steps: int = 2000
    """Optimizer steps at most; 0 with `max_seconds`: as many as fit."""
    rows: int = 192
    """Packed rows a step."""
    row_length: int = 512
    """Tokens a row; no example may be longer."""
    peak_lr: float = 2e-3
    warmup: int = 150
    """Steps of linear warm-up; 0 for models that need none."""
    final_fraction: float = 0.02
    """The cosine ends at this share of `peak_lr`."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 0
    workers: int = 0
    """Processes that generate and pack; 0 does it in this one."""
    log_every: int = 50
    max_seconds: float | None = None
    """Stop after this time, everything included; the cosine then follows the clock instead of the steps."""
    compile: bool = True
    """`torch.compile` on CUDA (some 40 s at the start)."""

    def __post_init__(self):
        if self.max_seconds is None and self.steps < 1:
            raise NLRLError("PretrainSettings: give `steps` (at least 1) or `max_seconds`")
        if min(self.rows, self.row_length, self.log_every) < 1:
            raise NLRLError("PretrainSettings: rows, row_length and log_every must be at least 1")

    def learning_rate(self, step: int, seconds: float) -> float:
        """Linear warm-up by steps, then a cosine by the share of the run that is over."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress(step, seconds)))
        return self.peak_lr * warm * (self.final_fraction + (1 - self.final_fraction) * cosine)

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is over after `step` steps and `seconds`; 1 means stop."""
        if self.steps and step >= self.steps:
            return 1.0
        return min(1.0, seconds / self.max_seconds) if self.max_seconds else step / self.steps


class Block(NamedTuple):
    """One step's data and what is in it."""

    batch: TokenBatch
    examples: int
    tokens: int
    """Without padding."""


class BlockStream(IterableDataset):
    """Packs the examples of one worker into blocks; what does not fit waits for the next block. Of several processes,
    each has workers of its own."""

    def __init__(self, stream_factory: StreamFactory, settings: PretrainSettings, small: bool, ranks: Ranks = ALONE):
        self.stream_factory, self.settings, self.small, self.ranks = stream_factory, settings, small, ranks

    def __iter__(self) -> Iterator[Block]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        number, workers = self.ranks.rank * workers + number, self.ranks.size * workers
        examples = self.stream_factory(number, workers, self.settings.seed)
        wanted = 1.02 * self.settings.rows * self.settings.row_length  # a little choice makes the rows full
        pool: list[TokenExample] = []
        while True:
            missing = wanted - sum(map(len, pool))
            while missing > 0 and (example := next(examples, None)) is not None:
                pool.append(example)
                missing -= len(example)
            if not pool:
                return
            packed = pack(pool, self.settings.row_length, self.settings.rows)
            pool = packed.leftover
            batch = TokenBatch.of(packed)
            yield Block(batch.small() if self.small else batch, packed.examples, int((packed.documents > 0).sum()))


@dataclass
class _Tally:
    """What was done since the start, and since the last log."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    loss: float = math.nan
    learning_rate: float = 0.0
    tokens_per_second: float = 0.0
    _logged: tuple[int, int, float] = field(default=(0, 0, 0.0), repr=False)

    def log(self, loss_sum: torch.Tensor) -> dict[str, Any]:
        steps, tokens, seconds = self._logged
        self.loss = float(loss_sum) / (self.steps - steps)
        loss_sum.zero_()
        self.tokens_per_second = (self.tokens - tokens) / max(self.seconds - seconds, 1e-9)
        self._logged = (self.steps, self.tokens, self.seconds)
        if not math.isfinite(self.loss):
            raise NLRLError(f"pretraining diverged by step {self.steps}: the loss is {self.loss}. Lower peak_lr")
        return self.metrics()

    @property
    def unlogged(self) -> int:
        return self.steps - self._logged[0]

    def metrics(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


def pretrain(
    model,
    tokenizer,
    stream_factory: StreamFactory,
    settings: PretrainSettings,
    on_log: Callable[[dict[str, Any]], None] = print,
    teacher=None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Trains `model` in place, on its device: float32 weights, bfloat16 arithmetic on CUDA.

    Args:
        model: a `Backbone`.
        tokenizer: the one the stream's tokens come from; its size is checked against the model's.
        on_log: gets the metrics every `log_every` steps and at the end.
        teacher: a `Backbone` on the same device whose distributions are learned in place of the completions' tokens.
        ranks: processes that train this model together; each packs its share of a step's rows.
    Returns: metrics: steps, examples, tokens (without padding), seconds, waiting (seconds spent waiting for data),
        loss (nats a target, mean since the log before), learning_rate, tokens_per_second, padded_tokens.
    Raises:
        NLRLError: the tokenizer is larger than the model's vocabulary, the teacher's vocabulary is another, an example
            is longer than a row, the loss is not a number, or the rows of a step cannot be dealt out evenly.
    """
    if settings.rows % ranks.size:
        raise NLRLError(f"rows is {settings.rows}, which {ranks.size} processes cannot share evenly")
    if len(tokenizer) > model.config.vocab_size:
        raise NLRLError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's config a vocab_size of {model.config.vocab_size}"
        )
    if teacher is not None:
        check_teacher(teacher, model)
    began = time.monotonic()
    on_cuda = model.device.type == "cuda"
    small = len(tokenizer) < 1 << 15 and settings.row_length < 1 << 15
    own = replace(settings, rows=settings.rows // ranks.size)
    blocks = _blocks(BlockStream(stream_factory, own, small, ranks), settings.workers, on_cuda)
    optimizer = make_optimizer(model, settings.peak_lr, settings.betas, settings.weight_decay, model.device)
    loss = target_loss if teacher is None else distilled_from(teacher)
    compiled = settings.compile and on_cuda
    step = TrainStep(model, optimizer, settings.clip, bf16=on_cuda, compile=compiled, loss=loss, ranks=ranks)
    model.train()
    tally = _Tally()
    for block, examples, tokens, seconds in _together(_timed(blocks, tally), began, ranks, model.device):
        tally.seconds = seconds
        if settings.progress(tally.steps, tally.seconds) >= 1:
            break
        tally.learning_rate = settings.learning_rate(tally.steps, tally.seconds)
        set_learning_rate(optimizer, tally.learning_rate)
        step(_passes(block.batch, on_cuda), masked=True)
        tally.steps += 1
        tally.examples += examples
        tally.tokens += tokens
        if on_cuda and tally.steps % _STEPS_AHEAD == 0:
            torch.cuda.synchronize()  # or the clock would run ahead of the work
        if tally.unlogged == settings.log_every:
            tally.seconds = time.monotonic() - began
            on_log(tally.log(step.loss_sum))
    if tally.unlogged:
        on_log(tally.log(step.loss_sum))
    ranks.check_equal(model)
    model.eval()
    return {**tally.metrics(), "padded_tokens": tally.steps * settings.rows * settings.row_length}


def _blocks(stream: BlockStream, workers: int, on_cuda: bool) -> Iterator[Block]:
    if not workers:
        return iter(stream)
    # Forked: the caller's factory may be a closure. Workers touch no CUDA.
    options: dict[str, Any] = {"num_workers": workers, "prefetch_factor": 2, "multiprocessing_context": "fork"}
    return iter(DataLoader(stream, batch_size=None, pin_memory=on_cuda, **options))


def _timed(blocks: Iterator[Block], tally: _Tally) -> Iterator[Block]:
    while True:
        asked = time.monotonic()
        block = next(blocks, None)
        tally.waiting += time.monotonic() - asked
        if block is None:
            return
        yield block


def _together(
    blocks: Iterator[Block], began: float, ranks: Ranks, device: torch.device
) -> Iterator[tuple[Block, int, int, float]]:
    """This process's blocks with what all processes agree on: examples and tokens of the step in all of them, and
    seconds, which are the first one's. Ends for all where it ends for one."""
    while True:
        block = next(blocks, None)
        seconds = time.monotonic() - began
        mine = [0.0, 0.0, 0.0] if block is None else [1.0, float(block.examples), float(block.tokens)]
        if ranks.size > 1:
            told = torch.tensor([*mine, 0.0 if ranks.rank else seconds], dtype=torch.float64, device=device)
            *mine, seconds = ranks.sum(told).tolist()
        if block is None or mine[0] < ranks.size:
            return
        yield block, int(mine[1]), int(mine[2]), seconds


def _passes(batch: TokenBatch, on_cuda: bool) -> list[TokenBatch]:
    """One pass on CUDA; on a CPU parts that stay in its caches."""
    if on_cuda:
        return [batch]
    rows = max(1, _CPU_PASS_TOKENS // batch.tokens.shape[1])
    return [TokenBatch(*parts) for parts in zip(*(tensor.split(rows) for tensor in batch), strict=True)]
