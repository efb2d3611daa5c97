"""What can be trained on: examples in words, and the settings of a round of training on them.

The type of the settings says which kind of training it is. `TrainerActor.fit` puts the words into tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nlrl.backbones.language_model import Message


@dataclass(frozen=True, slots=True)
class TextExample:
    """A prompt, the answer to learn, and how much it counts."""

    messages: tuple[Message, ...]
    completion: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class AnswerExample:
    """A prompt, an answer as it was sampled, and how it turned out."""

    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float
    weight: float = 1.0
    return_: float = 0.0
    """What a value head learns of the prompt."""
    value: float = 0.0
    """What it said before."""


@dataclass(frozen=True, slots=True)
class PairExample:
    """A prompt and two answers, one of them better."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ReturnExample:
    """A prompt and the mean return that was observed after it."""

    messages: tuple[Message, ...]
    target: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class FitSettings:
    """One round of supervised fine-tuning, on `TextExample`s."""

    learning_rate: float
    batch_size: int
    epochs: int
    seed: int
    keep_optimizer: bool = field(default=False, kw_only=True)
    """Go on from what the network's optimizer remembers, and remember it for the next round."""
    save_every: int = field(default=0, kw_only=True)
    """Steps after which the round is saved, if it is told where; 0: never."""


@dataclass(frozen=True, slots=True)
class PolicyFit(FitSettings):
    """Clipped policy gradients, on `AnswerExample`s."""

    loss: Mapping[str, float] = field(default_factory=dict)
    """Fields of `nlrl.backbones.policy_gradient.PolicySettings`. Where `kl` is not 0, the base is the reference."""
    head: bool = False
    """Train the network's value head, too."""


@dataclass(frozen=True, slots=True)
class PreferenceFit(FitSettings):
    """Direct preference optimisation from the network as it is, on `PairExample`s."""

    beta: float = 0.1
    likelihood: float = 0.0


@dataclass(frozen=True, slots=True)
class ValueFit(FitSettings):
    """Regression of the network's value head and the network under it, on `ReturnExample`s."""
