"""Direct preference optimisation: the better of two answers becomes likelier than the worse one.

The reference is the model as it is when training begins, so its log-probabilities are taken once, before the first
step, and no second model is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.backbones.completions import CompletionRows
from nlrl.backbones.ranks import ALONE, Ranks
from nlrl.backbones.scoring import score
from nlrl.backbones.training import Trainer, TrainMetrics
from nlrl.errors import NLRLError


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """Two answers to one prompt, end tokens included."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    weight: float = 1.0
    reference: tuple[float, float] = (0.0, 0.0)
    """Log-probabilities of both under the reference."""

    def __len__(self) -> int:
        return 2 * (len(self.prompt) + max(len(self.chosen), len(self.rejected)))


class PreferenceBatch(NamedTuple):
    """Pairs: the first half of the rows was chosen, the second rejected, in the same order."""

    rows: CompletionRows
    weights: Tensor
    """`(pairs,)` float32."""
    reference: Tensor
    """`(2 * pairs,)` float32."""

    @classmethod
    def of(cls, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        pairs = [(e.prompt, e.chosen) for e in examples] + [(e.prompt, e.rejected) for e in examples]
        reference = [e.reference[0] for e in examples] + [e.reference[1] for e in examples]
        return cls(CompletionRows.of(pairs), torch.tensor([e.weight for e in examples]), torch.tensor(reference))

    def to(self, device) -> PreferenceBatch:
        return PreferenceBatch(self.rows.to(device), self.weights.to(device), self.reference.to(device))


def preference_loss(chosen: Tensor, rejected: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * (how much more the chosen answer gained on the reference than the rejected one)) of each pair
    (Rafailov et al. 2023, eq. 7).

    Args:
        chosen, rejected: `(pairs,)` log-probabilities of whole answers.
        reference: `(2, pairs)` the same of the reference.
    """
    return -F.logsigmoid(beta * ((chosen - reference[0]) - (rejected - reference[1])))


class PreferenceLoss:
    """`preference_loss` plus `likelihood` times the chosen answer's cross-entropy per token, for `TrainStep`."""

    def __init__(self, beta: float, likelihood: float = 0.0, ranks: Ranks = ALONE, device: Any = "cpu"):
        """
        Args:
            beta: larger keeps the model nearer to the reference.
            likelihood: 0 is plain DPO, which may make both answers rarer as long as the rejected one suffers more.
            ranks: processes that train together; what was seen is of all of them.
            device: of the model.
        """
        self.beta, self.likelihood, self.ranks, self.device = beta, likelihood, ranks, torch.device(device)
        self._seen: list[Tensor] = []

    def __call__(
        self, model, batch: PreferenceBatch, masked: bool = False, static: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Sum over the pairs, and the sum of their weights; both `()`."""
        rows, count = batch.rows, len(batch.weights)
        logprobs, _ = rows.logprobs(model, rows.hidden(model))
        answers = logprobs.new_zeros(2 * count).index_add(0, rows.rows, logprobs)
        chosen, rejected = answers.split(count)
        reference = batch.reference.view(2, count)
        loss = preference_loss(chosen, rejected, reference, self.beta)
        if self.likelihood:
            lengths = torch.bincount(rows.rows, minlength=2 * count)[:count]
            loss = loss - self.likelihood * chosen / lengths
        margins = (chosen - reference[0]) - (rejected - reference[1])
        self._seen.append(torch.stack([margins.detach().sum(), (margins.detach() > 0).sum().to(margins)]))
        return (loss * batch.weights).sum(), batch.weights.sum()

    def take(self, pairs: int) -> tuple[float, float]:
        """Mean margin and share of pairs in the right order over the last `pairs` pairs seen."""
        total = self.ranks.sum(torch.stack(self._seen or [torch.zeros(2, device=self.device)]).sum(0)).tolist()
        self._seen.clear()
        return total[0] / pairs, total[1] / pairs


@dataclass(frozen=True)
class PreferenceMetrics(TrainMetrics):
    """What one call of `fit_preferences` did."""

    margin: float = 0.0
    """Nats that the chosen answers gained on the rejected ones, mean over the last epoch."""
    accuracy: float = 0.0
    """Share of the pairs in which they gained, in the last epoch."""


def fit_preferences(
    model,
    examples: Sequence[PreferenceExample],
    beta: float,
    epochs: int,
    batch_size: int,
    seed: int,
    likelihood: float = 0.0,
    **trainer: Any,
) -> PreferenceMetrics:
    """DPO from the model as it is; the examples' own `reference` is not looked at.

    Args:
        batch_size: pairs a step.
        trainer: settings of `Trainer` (`learning_rate`, `weight_decay`, ...).
    Raises:
        NLRLError: there are no examples, an answer is empty, or the loss stopped being a number.
    """
    if any(not (example.chosen and example.rejected) for example in examples):
        raise NLRLError("fit_preferences: an answer is empty; it needs its end token at least")
    loss = PreferenceLoss(beta, likelihood, trainer.get("ranks", ALONE), next(model.parameters()).device)
    fitting = Trainer(model, loss=loss, collate=PreferenceBatch.of, **trainer)
    referred, done = _with_reference(model, examples), None
    read = seconds = steps = 0
    for epoch in range(epochs):
        done = fitting.fit(referred, 1, batch_size, seed + epoch)
        margin, accuracy = loss.take(len(referred))
        read, seconds, steps = read + done.tokens, seconds + done.seconds, steps + done.steps
    if done is None:
        raise NLRLError(f"fit_preferences: epochs is {epochs}; it must be at least 1")
    return PreferenceMetrics(done.loss, read, steps, epochs * len(referred), seconds, margin, accuracy)


def _with_reference(model, examples: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    prompts = [example.prompt for example in examples]
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        chosen = score(model, prompts, [example.chosen for example in examples])
        rejected = score(model, prompts, [example.rejected for example in examples])
    return [
        replace(example, reference=(sum(t.logprob for t in better), sum(t.logprob for t in worse)))
        for example, better, worse in zip(examples, chosen, rejected, strict=True)
    ]
