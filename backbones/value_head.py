"""A scalar value read off a language model: V of a prompt, from the hidden state of its last token.

The head and the model under it are one module for an optimizer, but two files on disk: the model stays a language model
that any engine serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nlrl.backbones.completions import CompletionRows
from nlrl.backbones.optimizer_state import FitCheckpoint
from nlrl.backbones.padding import passes
from nlrl.backbones.scoring import PASS_TOKENS
from nlrl.backbones.training import Trainer, TrainMetrics
from nlrl.errors import NLRLError


class ValueHead(nn.Module):
    """Two layers with a tanh between; a new one answers 0 everywhere."""

    def __init__(self, width: int, inner: int | None = None):
        """
        Args:
            width: of the hidden states.
            inner: width of the layer between, by default the same.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width)  # models leave their last states at very different sizes
        self.inner = nn.Linear(width, inner or width)
        self.out = nn.Linear(inner or width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values `(...)` of hidden states `(..., width)`, in the head's own precision, under autocast too."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self.out.weight.dtype)
            return self.out(torch.tanh(self.inner(self.norm(hidden))))[..., 0]


class WithValueHead(nn.Module):
    """A backbone and a head on it, trained together."""

    def __init__(self, trunk, head: ValueHead):
        super().__init__()
        self.trunk, self.head = trunk, head
        self.no_weight_decay = getattr(trunk, "no_weight_decay", False)
        self.train(trunk.training)

    def hidden(self, *args, **kwargs) -> Tensor:
        """As `Backbone.hidden`."""
        return self.trunk.hidden(*args, **kwargs)

    def logits(self, hidden: Tensor) -> Tensor:
        """As `Backbone.logits`."""
        return self.trunk.logits(hidden)

    def values(self, rows: CompletionRows, hidden: Tensor) -> Tensor:
        """Values of the rows' prompts, `(rows,)`.

        Args:
            hidden: `(rows, time, width)`, of these rows.
        """
        return self.head(hidden[torch.arange(len(rows.last), device=hidden.device), rows.last])

    def after_step(self) -> None:
        self.trunk.after_step()


@dataclass(frozen=True, slots=True)
class ValueExample:
    """A prompt and the return that was observed after it."""

    prompt: tuple[int, ...]
    target: float
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt)


class ValueBatch(NamedTuple):
    """Prompts and their targets."""

    rows: CompletionRows
    weights: Tensor
    """`(rows,)` float32."""
    targets: Tensor
    """`(rows,)` float32."""

    @classmethod
    def of(cls, examples: Sequence[ValueExample]) -> ValueBatch:
        rows = CompletionRows.of([(example.prompt, ()) for example in examples])
        return cls(rows, torch.tensor([e.weight for e in examples]), torch.tensor([e.target for e in examples]))

    def to(self, device) -> ValueBatch:
        return ValueBatch(self.rows.to(device), self.weights.to(device), self.targets.to(device))


def regression_loss(model: WithValueHead, batch: ValueBatch, masked: bool, static: bool) -> tuple[Tensor, Tensor]:
    """Half the weighted squared errors, summed, and the sum of the weights; both `()`."""
    values = model.values(batch.rows, batch.rows.hidden(model))
    return 0.5 * (same_shape(values, batch.targets) ** 2 * batch.weights).sum(), batch.weights.sum()


def same_shape(values: Tensor, targets: Tensor) -> Tensor:
    """values - targets, element by element.

    Raises:
        NLRLError: their shapes differ. Broadcasting `(n, 1)` against `(n,)` would teach every value the mean.
    """
    if values.shape != targets.shape:
        raise NLRLError(f"values have shape {tuple(values.shape)} and targets {tuple(targets.shape)}; they must agree")
    return values - targets


def fit_values(
    model: WithValueHead,
    examples: Sequence[ValueExample],
    epochs: int,
    batch_size: int,
    seed: int,
    checkpoint: FitCheckpoint | None = None,
    **settings: Any,
) -> TrainMetrics:
    """Regresses the head, and the model under it, on observed returns; the loss is half the mean squared error.

    Args:
        checkpoint: as of `Trainer.fit`.
        settings: of `Trainer` (`learning_rate`, `weight_decay`, ...).
    Raises:
        NLRLError: there are no examples, or the loss stopped being a number.
    """
    trainer = Trainer(model, loss=regression_loss, collate=ValueBatch.of, **settings)
    return trainer.fit(examples, epochs, batch_size, seed, checkpoint=checkpoint)


@torch.no_grad()
def predict(model: WithValueHead, prompts: Sequence[Sequence[int]], bf16: bool | None = None) -> list[float]:
    """The value of each prompt, in order.

    Args:
        bf16: compute under autocast; by default on CUDA, as the trainer does.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = [0.0] * len(prompts)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" if bf16 is None else bf16):
        for cut in passes([len(prompts[i]) for i in order], PASS_TOKENS.get(device.type, PASS_TOKENS["cuda"])):
            rows = CompletionRows.of([(prompts[i], ()) for i in order[cut]]).to(device)
            found = model.values(rows, rows.hidden(model)).tolist()
            for i, value in zip(order[cut], found, strict=True):
                out[i] = value
    return out
