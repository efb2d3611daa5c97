"""What the server needs of an engine. `Engine` fits; so does a scripted one in tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from nlrl.backbones.language_model import Completion, Request

TopLogprobs = tuple[tuple[int, float], ...]
"""Tokens and their natural log-probabilities, likeliest first."""


class Delta(Protocol):
    """What was drawn since the last one."""

    @property
    def text(self) -> str: ...

    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def logprobs(self) -> tuple[float, ...]: ...


class TokenScore(Protocol):
    """A given token's natural log-probability, and the likeliest tokens in its place."""

    @property
    def logprob(self) -> float: ...

    @property
    def top_logprobs(self) -> TopLogprobs: ...


class ServedEngine(Protocol):
    """Answers requests on a thread of its own."""

    name: str
    tokenizer: Any
    """A `PreTrainedTokenizerFast` or a `PlainTokenizer`."""
    context: int | None
    """Tokens that a prompt and its answer may have together; None: no limit."""

    def submit(
        self,
        request: Request,
        *,
        weights: str = "default",
        client: str = "",
        on_tokens: Callable[[Delta], None] | None = None,
    ) -> Future[Completion]:
        """The answer to come; cancelling it frees what it holds. `on_tokens` is called on the engine's thread.

        Raises:
            QueueFull: too many requests wait.
            NLRLError: the request cannot be obeyed.
        """
        ...

    def score_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        top_logprobs: int = 0,
        weights: str = "default",
    ) -> Sequence[Sequence[TokenScore]]:
        """One score for every token of each continuation."""
        ...

    def metrics(self) -> dict[str, float]: ...

    def weight_versions(self) -> dict[str, str]: ...
