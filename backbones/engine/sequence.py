"""One request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from nlrl.backbones.engine.prefix import Key, key_of
from nlrl.backbones.language_model import Completion, Sampling, Timing


@dataclass(frozen=True)
class Delta:
    """New text of an answer that is still being written."""

    text: str
    """Ends neither inside a character nor inside what may become a stop string."""
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


OnTokens = Callable[[Delta], None]


class Ticket(Future):
    """A `concurrent.futures.Future` of a `Completion`. `cancel` works while the answer is being written, too: its row
    is free at the engine's next step."""

    def __init__(self, withdraw: Callable[[Ticket], None]):
        super().__init__()
        self._withdraw = withdraw

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._withdraw(self)
        return cancelled

    def finish(self, completion: Completion) -> None:
        """For the engine. A cancelled ticket stays cancelled."""
        if self.set_running_or_notify_cancel():
            self.set_result(completion)

    def fail(self, error: BaseException) -> None:
        """For the engine."""
        if not self.done() and self.set_running_or_notify_cancel():
            self.set_exception(error)


@dataclass(eq=False)
class Sequence:
    """A prompt, what has been drawn after it, and where its state lies."""

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    ticket: Ticket
    client: str = ""
    marks: tuple[int, ...] = ()
    on_tokens: OnTokens | None = None
    matcher: object = None
    """Of its constraint."""
    told: int = 0
    """Characters of the answer that `on_tokens` has had."""
    told_tokens: int = 0
    over: bool = False
    """It has been answered, refused or withdrawn."""
    row: int = -1
    last_row: int = -1
    """The row it had before it had to give way."""
    pages: list[int] = field(default_factory=list)
    read: int = 0
    """Tokens whose state the row holds."""
    drawn: list[int] = field(default_factory=list)
    """Tokens drawn before it lost its row, read again when it gets another."""
    logprobs: list[float] = field(default_factory=list)
    top: list = field(default_factory=list)
    expectation: float = float("nan")
    arrived: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.tokens = np.array(self.prompt, np.int32)
        """What has to be read before the next token can be drawn."""
        self.key = self.tokens.tobytes()
        """Equal for requests with equal prompts."""

    @property
    def slots(self) -> int:
        """Tokens that its state may have to hold; the last token drawn is never read."""
        return len(self.prompt) + self.sampling.max_tokens - 1

    @property
    def watched(self) -> bool:
        """Somebody must look at its text, or at its tokens one by one, while it is written."""
        return bool(self.sampling.stop) or self.on_tokens is not None

    @property
    def timing(self) -> Timing:
        """Of an answer that is whole now."""
        seconds = time.monotonic() - self.arrived
        return Timing(time.time() - seconds, seconds)

    def key_at(self, mark: int) -> Key:
        return key_of(self.tokens, mark)

    def again(self, drawn: list[int], logprobs: list[float]) -> None:
        """Gives up its state: everything will be read anew, and the drawing goes on where it stopped."""
        self.drawn, self.logprobs = drawn, logprobs
        self.tokens = np.array((*self.prompt, *drawn), np.int32)
        self.row, self.pages, self.read = -1, [], 0
