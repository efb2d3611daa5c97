"""The one interface between the language roles and whatever answers them.

A `LanguageModel` takes a batch of requests and returns one completion each, in order. Requests hold chat messages
(rendered by the model's own template) or tokens; completions always hold tokens, so that what was sampled can be
trained on without re-tokenising. This module imports no torch: a scripted model, an endpoint client and a test need
none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from nlrl.errors import NLRLError

FinishReason = Literal["stop", "length", "error", "cancelled"]
ChatRole = Literal["system", "user", "assistant"]


class LanguageModelError(NLRLError):
    """A model cannot answer at all (down, wrong key, out of budget). A bad *answer* is never an error; it is data."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: ChatRole
    content: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer may be. Its text is one of the choices (`value`: a tuple of texts), or matches the regular
    expression as a whole, or is JSON that fits the schema (`value`: the schema as JSON text). Sampling draws from the
    model's distribution over the tokens that can still lead there, renormalised."""

    kind: Literal["choice", "regex", "json_schema"]
    value: str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw the answer. `temperature == 0` is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are left out."""
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    """Go on after an end token, to `max_tokens`: for benchmarks."""
    top_logprobs: int = 0
    """Report the likeliest tokens at each place, so many."""
    constraint: Constraint | None = None
    expected_number: bool = False
    """Decode the *first* signed two-decimal number of the answer (`+0.42`) as the expectation of the model's own
    distribution over such numbers, then go on from there: the answer's words follow the number that was written.
    Removes the sampling noise of one text and the mode bias of greedy decoding. Models that cannot do it
    (`LanguageModel.reads_expectations` is False) ignore it."""


def check_sampling(sampling: Sampling) -> None:
    """Raises NLRLError naming the first field that no sampler can obey."""
    rules = {
        "temperature": (0 <= sampling.temperature < math.inf, "a finite number of at least 0"),
        "top_k": (sampling.top_k >= 0, "at least 0 (0 keeps every token)"),
        "top_p": (0 < sampling.top_p <= 1, "in (0, 1]"),
        "min_p": (0 <= sampling.min_p <= 1, "in [0, 1]"),
        "top_logprobs": (sampling.top_logprobs >= 0, "at least 0"),
        "max_tokens": (sampling.max_tokens >= 0, "at least 0"),
        "stop": (all(sampling.stop), "without empty strings"),
    }
    for name, (holds, right) in rules.items():
        if not holds:
            raise NLRLError(f"Sampling.{name} is {getattr(sampling, name)!r}; it must be {right}")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. Exactly one of `messages` and `tokens` is given."""

    messages: tuple[Message, ...] = ()
    tokens: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """Equal (weights, prompt, sampling, seed) give equal answers, whatever else is in the batch (endpoints: where
    they support it)."""
    marks: tuple[int, ...] = ()
    """Ends of segments, as numbers of prompt tokens: models that can keep what they have read up to there, for later
    requests that begin alike."""

    def with_seed(self, seed: int) -> Request:
        return replace(self, seed=seed)


class Timing(NamedTuple):
    """When a request was taken on, and how long its answer took."""

    asked: float
    """Seconds since 1970."""
    seconds: float
    """Until the answer was whole, waiting included."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: tokens out, the log-probability of each sampled token, why it ended, and which weights spoke."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Natural log-probability of each token under the distribution it was sampled from at temperature 1 (before
    top-k/top-p)."""
    finish_reason: FinishReason = "stop"
    weight_version: str = ""
    prompt_tokens: int = 0
    expectation: float | None = None
    """With `Sampling.expected_number`: the expectation itself, in full precision."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    """With `Sampling.top_logprobs`: for each token the likeliest ones, (token, log-probability), likeliest first."""
    error: str = ""
    """Why `finish_reason` is "error" (a request that failed after its retries)."""
    timing: Timing | None = field(default=None, compare=False, repr=False)
    """Travels with the answer wherever it is kept, so that one used again still tells how long it took to make. Equal
    answers may have taken different times, so it is no part of what is compared."""


def stamp(completions: Sequence[Completion], timing: Timing) -> None:
    """Gives a time to those answers that have none: of models that keep no clock, one for the whole batch.

    In place, for a copy of each costs a zero-latency model as much as the answers; nothing that is compared changes.
    """
    for completion in completions:
        if completion.timing is None:
            object.__setattr__(completion, "timing", timing)


@runtime_checkable
class LanguageModel(Protocol):
    """Anything that answers. Implementations: native (own backbones), vLLM, OpenAI-compatible endpoint, scripted."""

    name: str

    @property
    def reads_expectations(self) -> bool:
        """Whether `Sampling.expected_number` works."""
        ...

    @property
    def weight_version(self) -> str: ...

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answers every request, in order.

        Raises:
            LanguageModelError: the model cannot answer at all; nothing was returned.
        """
        ...
