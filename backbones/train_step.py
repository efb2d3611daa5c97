"""One optimizer step: forward, backward, clipping, AdamW, and the model's own `after_step`.

On CUDA the whole step becomes one graph per batch shape: at a few million parameters the launches cost more than the
arithmetic. The first steps of a shape run eagerly, on real data, on the stream that is captured afterwards; they create
the optimizer's state, which a graph must not do. Capturing executes nothing, so no step is lost or done twice. Whatever
fails (capture, compilation) is logged once and done without.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl import kernels
from nlrl.backbones.ngpt.optimizer import NormalisedAdam
from nlrl.backbones.packing import TokenBatch, block_mask
from nlrl.backbones.ranks import ALONE, Ranks

log = logging.getLogger(__name__)
LARGE_VOCABULARY = 8192
"""Tokens. Logits of fewer take little memory beside what a model's layers keep."""
EAGER_STEPS = 3
"""Steps of a shape before its capture."""
Loss = Callable[..., tuple[Tensor, Tensor]]
"""(model, batch, masked, static) -> sum of the losses of the targets, sum of their weights; see `target_loss`."""


def target_loss(model, batch: TokenBatch, masked: bool = True, static: bool = False) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the targets in nats, summed, and the sum of their weights; both `()`.

    Args:
        masked: rows hold several documents. False: one each, padded on the right.
        static: logits at every place, so that no shape depends on the data; otherwise only where there is a target.
    """
    targets = targets_of(batch, static)
    hidden = target_hidden(model, batch, masked, targets)
    if keeps_no_logits(model, hidden):
        loss = kernels.linear_cross_entropy(hidden, model.vocabulary(), targets.tokens, targets.weights)
    else:
        losses = F.cross_entropy(wide_logits(model, hidden), targets.tokens, reduction="none")
        loss = (losses * targets.weights).sum()
    return loss, targets.weights.sum()


class Targets(NamedTuple):
    """What a batch asks for, in order of rows and places."""

    tokens: Tensor
    """`(targets,)` long."""
    weights: Tensor
    """`(targets,)` float32."""
    places: Tensor | None
    """Where each is predicted, in the flattened batch; None: at every place."""


def targets_of(batch: TokenBatch, static: bool) -> Targets:
    """Args: static: as in `target_loss`."""
    # The first token of a row is nobody's target, so its weight, 0, may stand for the last place.
    tokens, weights = batch.tokens.long().roll(-1, 1).flatten(), batch.weights.float().roll(-1, 1).flatten()
    if static:
        return Targets(tokens, weights, None)
    places = weights.nonzero()[:, 0]
    return Targets(tokens[places], weights[places], places)


def target_hidden(model, batch: TokenBatch, masked: bool, targets: Targets) -> Tensor:
    """Final hidden states from which the targets are predicted, `(targets, width)`."""
    mask = block_mask(batch.documents) if masked else None
    hidden = model.hidden(batch.tokens.long(), batch.positions.long(), mask).flatten(0, 1)
    return hidden if targets.places is None else hidden[targets.places]


def wide_logits(model, hidden: Tensor) -> Tensor:
    """`(targets, vocab)`, in float32 at least."""
    logits = model.logits(hidden)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def keeps_no_logits(model, hidden: Tensor) -> bool:
    """Whether a loss is to be made some tokens at a time: on a device, where the vocabulary is large."""
    return hidden.is_cuda and model.config.vocab_size >= LARGE_VOCABULARY


def make_optimizer(model, learning_rate: float, betas: tuple[float, float], weight_decay: float, device: torch.device):
    """AdamW: decay on matrices only, none at all for models that say `no_weight_decay`; ready for graphs on CUDA, where
    models with `unit_axes` (nGPT) are normalised in the same pass."""
    decay = 0.0 if getattr(model, "no_weight_decay", False) else weight_decay
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if device.type == "cuda":
        for group in groups:
            group["lr"] = torch.tensor(
                learning_rate, device=device
            )  # a tensor, so that a graph reads the current value
        if hasattr(model, "unit_axes"):
            optimizer = NormalisedAdam(groups, model.unit_axes(), betas=betas, capturable=True)
        else:
            optimizer = torch.optim.AdamW(groups, betas=betas, fused=True, capturable=True)
        optimizer._warned_capturable_if_run_uncaptured = True  # the eager steps before a capture are meant
        return optimizer
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=device.type == "cpu")


def set_learning_rate(optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


class TrainStep:
    """Callable on the passes of one step; adds its mean loss to `loss_sum`, a device scalar the caller may zero."""

    def __init__(
        self,
        model,
        optimizer,
        clip: float,
        bf16: bool,
        compile: bool = False,
        graphs: bool = True,
        loss: Loss = target_loss,
        ranks: Ranks = ALONE,
    ):
        self.model, self.optimizer, self.clip, self.loss, self.ranks = model, optimizer, clip, loss, ranks
        self.device = next(model.parameters()).device
        self.bf16 = bf16
        self.graphs = graphs and self.device.type == "cuda" and ranks.size == 1
        self.loss_sum = torch.zeros((), device=self.device)
        self.compiled = torch.compile(loss, dynamic=False) if compile else None
        self._stream = torch.cuda.Stream(self.device) if self.graphs else None
        self._eager_steps: dict[torch.Size, int] = {}
        self._captured: dict[torch.Size, tuple[torch.cuda.CUDAGraph, TokenBatch]] = {}

    def __call__(self, passes: list[TokenBatch], masked: bool) -> None:
        """One optimizer step.

        Args:
            passes: the step's batch, in parts whose gradients are added up; on any device. Of several processes, this
                one's share, which may be empty.
            masked: as in `target_loss`.
        """
        if not (self.graphs and masked and len(passes) == 1):
            self._step([batch.to(self.device) for batch in passes], masked, static=False)
            return
        shape = passes[0].tokens.shape
        if self._eager_steps.setdefault(shape, 0) < EAGER_STEPS:
            self._eager_steps[shape] += 1
            with self._on_capture_stream():
                self._step([passes[0].to(self.device)], masked, static=True)
            return
        self._replay(passes[0])

    def forget_graphs(self) -> None:
        """To be called when the optimizer's state tensors were replaced: graphs still point to the old ones."""
        self._captured.clear()

    def _step(self, passes: list[TokenBatch], masked: bool, static: bool) -> None:
        loss = self.ranks.sum(self._gradients(passes, masked, static))
        self.ranks.sum_gradients([p for group in self.optimizer.param_groups for p in group["params"]])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if not getattr(self.optimizer, "normalises", False):
            self.model.after_step()
        self.loss_sum.add_(loss)

    def _gradients(self, passes: list[TokenBatch], masked: bool, static: bool) -> Tensor:
        if self.compiled is None:
            return self._backward(self.loss, passes, masked, static)
        try:
            return self._backward(self.compiled, passes, masked, static)
        except Exception as error:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise
            log.warning("training without torch.compile from now on: %s: %s", type(error).__name__, _first_line(error))
            self.compiled = None
            return self._backward(self.loss, passes, masked, static)

    def _backward(self, loss_function, passes: list[TokenBatch], masked: bool, static: bool) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        weights = [batch.weights.float().sum() for batch in passes] or [torch.zeros((), device=self.device)]
        weight = self.ranks.sum(torch.stack(weights).sum()).clamp_min(1e-8)
        losses = []
        for batch in passes:
            with self._autocast():
                total, _ = loss_function(self.model, batch, masked, static)
            loss = total / weight
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses or [torch.zeros((), device=self.device)]).sum()

    def _autocast(self):
        # No cache of cast weights: a graph would keep one that belongs to another step.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def _replay(self, batch: TokenBatch) -> None:
        shape = batch.tokens.shape
        if shape not in self._captured:
            try:
                self._captured[shape] = self._capture(batch)
            except Exception as error:
                log.warning(
                    "training without CUDA graphs from now on: %s: %s", type(error).__name__, _first_line(error)
                )
                self.graphs = False
                torch.cuda.synchronize()
                self._step([batch.to(self.device)], masked=True, static=True)
                return
        graph, static = self._captured[shape]
        for target, source in zip(static, batch, strict=True):
            target.copy_(source, non_blocking=True)
        graph.replay()

    def _capture(self, batch: TokenBatch) -> tuple[torch.cuda.CUDAGraph, TokenBatch]:
        static = TokenBatch(*(tensor.to(self.device, copy=True) for tensor in batch))
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # thread_local: the data loader's pinning thread uses the device meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._step([static], masked=True, static=True)
        self.optimizer.zero_grad(set_to_none=True)
        return graph, static

    @contextlib.contextmanager
    def _on_capture_stream(self) -> Iterator[None]:
        assert self._stream is not None
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
