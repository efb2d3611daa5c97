"""Policy gradients on sampled answers: the clipped losses of PPO and GRPO.

An action is a whole answer. Its probability ratio is clipped token by token, every token carries the answer's
advantage, and an answer's loss is the sum over its tokens (divided by one length for all, so that long answers weigh as
what they are). Values, where there is a head, belong to the prompt's last token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlrl.backbones.advantages import explained_variance
from nlrl.backbones.completions import CompletionRows
from nlrl.backbones.ranks import ALONE, Ranks
from nlrl.backbones.training import Trainer
from nlrl.backbones.value_head import same_shape
from nlrl.errors import NLRLError


@dataclass(frozen=True, slots=True)
class PolicyExample:
    """A sampled answer and how it turned out."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    """As it was sampled, its end token included."""
    logprobs: tuple[float, ...]
    """Of each token, under the policy that sampled it."""
    advantage: float
    weight: float = 1.0
    reference: tuple[float, ...] = ()
    """Log-probabilities under the policy that the KL term holds on to."""
    return_: float = 0.0
    """What a value head learns of the prompt."""
    value: float = 0.0
    """What it said when the answer was sampled."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The loss: policy + value * (value loss) - entropy * (entropy) + kl * (KL to the reference)."""

    clip: float = 0.2
    """Ratios beyond 1 +/- clip earn no more."""
    entropy: float = 0.0
    kl: float = 0.0
    value: float = 0.5
    value_clip: float = 0.2
    """The value moves no further than this from what it was."""
    max_kl: float = math.inf
    """No further epoch once an epoch's mean KL from the sampling policy, per token, is above this."""


class PolicyBatch(NamedTuple):
    """Answers, flat over their targets."""

    rows: CompletionRows
    weights: Tensor
    """`(rows,)` float32, like the next three."""
    advantages: Tensor
    returns: Tensor
    values: Tensor
    logprobs: Tensor
    """`(targets,)` float32, under the sampling policy."""
    reference: Tensor
    """`(targets,)` float32, or `(0,)` where there is none."""

    @classmethod
    def of(cls, examples: Sequence[PolicyExample]) -> PolicyBatch:
        """
        Raises:
            NLRLError: an example has not one log-probability a token.
        """
        for example in examples:
            for given in (example.logprobs, example.reference or example.logprobs):
                if len(given) != len(example.completion):
                    tokens = f"{len(given)} log-probabilities for {len(example.completion)} tokens"
                    raise NLRLError(f"a sampled answer has {tokens}; each token needs the one it was sampled with")
        return cls(
            CompletionRows.of([(example.prompt, example.completion) for example in examples]),
            torch.tensor([example.weight for example in examples]),
            torch.tensor([example.advantage for example in examples]),
            torch.tensor([example.return_ for example in examples]),
            torch.tensor([example.value for example in examples]),
            torch.tensor(list(chain.from_iterable(example.logprobs for example in examples))),
            torch.tensor(list(chain.from_iterable(example.reference for example in examples))),
        )

    def to(self, device) -> PolicyBatch:
        rows, *tensors = self
        return PolicyBatch(rows.to(device), *(tensor.to(device) for tensor in tensors))


def clipped_policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A) of each token (Schulman et al. 2017, eq. 7); all `(targets,)`."""
    ratio = same_shape(logprobs, old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the larger squared error of the value and of the value held within `clip` of the old one; all `(rows,)`."""
    held = old + same_shape(values, old).clamp(-clip, clip)
    return 0.5 * torch.maximum(same_shape(values, returns) ** 2, same_shape(held, returns) ** 2)


def kl_to_reference(logprobs: Tensor, reference: Tensor) -> Tensor:
    """KL from a reference, estimated from each sampled token: p/q - log(p/q) - 1 with p the reference (GRPO, eq. 4);
    never negative, unbiased on the policy's own samples; all `(targets,)`."""
    log_ratio = same_shape(reference, logprobs)
    return log_ratio.exp() - log_ratio - 1


class PolicyLoss:
    """The loss of `PolicySettings` for `TrainStep`; keeps what it saw on the way."""

    NAMES = ("tokens", "kl", "clipped", "entropy", "drift", "answers", "value")

    def __init__(self, settings: PolicySettings, mean_length: float, ranks: Ranks = ALONE, device: Any = "cpu"):
        """
        Args:
            mean_length: tokens of an answer; what sums over tokens are divided by.
            ranks: processes that train together; what was seen is of all of them.
            device: of the model.
        """
        self.settings, self.mean_length, self.ranks, self.device = settings, mean_length, ranks, torch.device(device)
        self._seen: list[Tensor] = []

    def __call__(self, model, batch: PolicyBatch, masked: bool = False, static: bool = False) -> tuple[Tensor, Tensor]:
        """Sum over the answers, and the sum of their weights; both `()`."""
        s, rows = self.settings, batch.rows
        hidden = rows.hidden(model)
        logprobs, every = rows.logprobs(model, hidden)
        loss = clipped_policy_loss(logprobs, batch.logprobs, batch.advantages[rows.rows], s.clip)
        entropy = -(every.exp() * every).sum(-1)
        loss = loss - s.entropy * entropy
        if s.kl:
            loss = loss + s.kl * kl_to_reference(logprobs, batch.reference)
        total = (loss * batch.weights[rows.rows]).sum() / self.mean_length
        value_loss = torch.zeros_like(batch.weights)
        if hasattr(model, "values"):
            values = model.values(rows, hidden)
            value_loss = clipped_value_loss(values, batch.values, batch.returns, s.value_clip)
            total = total + s.value * (value_loss * batch.weights).sum()
        self._note(logprobs.detach(), batch, entropy.detach(), value_loss.detach())
        return total, batch.weights.sum()

    def take(self) -> dict[str, float]:
        """Means since the last call, by name: over tokens `kl`, `clipped` and `entropy`, over answers `value`; `drift`
        is the mean distance of log-probabilities from those that were sampled with, in the first pass alone."""
        total, first = self._sums()
        tokens, answers = max(total["tokens"], 1.0), max(total["answers"], 1.0)
        means = {name: total[name] / tokens for name in ("kl", "clipped", "entropy")}
        return means | {"value": total["value"] / answers, "drift": first["drift"] / max(first["tokens"], 1.0)}

    def _sums(self) -> tuple[dict[str, float], dict[str, float]]:
        """Over everything seen, and over the first pass, of all processes; it is forgotten."""
        mine = torch.stack(self._seen or [torch.zeros(len(self.NAMES), device=self.device)]).double()
        self._seen.clear()
        both = self.ranks.sum(torch.stack([mine.sum(0), mine[0]])).tolist()
        names: tuple[str, ...] = self.NAMES
        return dict(zip(names, both[0], strict=True)), dict(zip(names, both[1], strict=True))

    def _note(self, logprobs: Tensor, batch: PolicyBatch, entropy: Tensor, value_loss: Tensor) -> None:
        log_ratio = logprobs - batch.logprobs
        kl = 0.5 * (log_ratio**2).sum()  # unlike exp(log_ratio), no single token of it can outweigh all others
        clipped = ((log_ratio.exp() - 1).abs() > self.settings.clip).sum()
        tokens, answers = (torch.full_like(kl, float(n)) for n in (len(logprobs), len(value_loss)))
        drift = log_ratio.abs().sum()
        self._seen.append(torch.stack([tokens, kl, clipped.to(kl), entropy.sum(), drift, answers, value_loss.sum()]))


@dataclass(frozen=True)
class PolicyMetrics:
    """What one call of `fit_policy` did."""

    loss: float
    kl: float
    """From the sampling policy, nats a token, mean over the last epoch: half the mean squared change of a token's
    log-probability."""
    clipped: float
    """Share of the tokens whose ratio was beyond the clip in the last epoch."""
    entropy: float
    """Nats a token, in the last epoch."""
    drift: float
    """Mean distance of a token's log-probability in training from that in sampling, before the first step: how far the
    two computations are apart."""
    value_loss: float
    explained_variance: float | None
    """Of the returns by the values at sampling; None where there is no variance or no head."""
    epochs: int
    tokens: int
    """Tokens read, prompts included; every epoch counts."""
    steps: int
    examples: int
    seconds: float


def fit_policy(
    model,
    examples: Sequence[PolicyExample],
    settings: PolicySettings,
    epochs: int,
    batch_size: int,
    seed: int,
    **trainer: Any,
) -> PolicyMetrics:
    """Epochs of clipped policy-gradient steps on one set of sampled answers.

    Args:
        model: a `Backbone`, or a `WithValueHead` to train its head, too.
        batch_size: answers a step.
        trainer: settings of `Trainer` (`learning_rate`, `weight_decay`, ...).
    Raises:
        NLRLError: there are no examples, one lacks log-probabilities, or the loss stopped being a number.
    """
    began = time.monotonic()
    weight = sum(example.weight for example in examples)
    if not examples or weight <= 0:
        raise NLRLError(f"fit_policy: {len(examples)} examples of weight {weight:g}; there must be some")
    if settings.kl and not all(example.reference for example in examples):
        raise NLRLError("fit_policy: settings.kl is set, but an example has no reference log-probabilities")
    length = sum(example.weight * len(example.completion) for example in examples) / weight
    device = next(model.parameters()).device
    loss = PolicyLoss(settings, max(length, 1.0), trainer.get("ranks", ALONE), device)
    fitting = Trainer(model, loss=loss, collate=PolicyBatch.of, **trainer)
    seen, steps, done, drift = {}, 0, 0, 0.0
    while done < epochs and (not seen or seen["kl"] <= settings.max_kl):
        metrics = fitting.fit(examples, 1, batch_size, seed + done)
        seen, done, steps = loss.take(), done + 1, steps + metrics.steps
        drift = drift if done > 1 else seen["drift"]
    explained = explained_variance([e.value for e in examples], [e.return_ for e in examples])
    with_head = hasattr(model, "values") and not math.isnan(explained)
    return PolicyMetrics(
        metrics.loss, seen["kl"], seen["clipped"], seen["entropy"], drift, seen["value"],
        explained if with_head else None, done, done * sum(map(len, examples)), steps, done * len(examples),
        time.monotonic() - began,
    )  # fmt: skip
