"""An engine that says what a script tells it, as slowly as it is told, and counts what becomes of its requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from nlrl.backbones.engine import Delta, QueueFull, Ticket
from nlrl.backbones.language_model import Completion, Request
from nlrl.backbones.registry import BUNDLED
from nlrl.backbones.tokenizer import load_tokenizer


@cache
def game_tokenizer() -> Any:
    return load_tokenizer(BUNDLED / "transformer-base")


@dataclass(frozen=True)
class Score:
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]


def logprob_of(token: int) -> float:
    return -1.0 - token % 5


def alternatives(token: int, count: int) -> tuple[tuple[int, float], ...]:
    """Even tokens are the likeliest in their places, odd ones come after the token before them."""
    first = [(token, logprob_of(token))] if token % 2 == 0 else [(token - 1, -0.5), (token, logprob_of(token))]
    return tuple([*first, (1, -20.0), (2, -30.0)][:count])


def says(text: str) -> Callable[[Request], str]:
    return lambda request: text


@dataclass
class FakeEngine:
    """Each request is answered on a thread of its own, a token every `delay` seconds."""

    script: Callable[[Request], str] = lambda request: "best_move: 5"
    delay: float = 0.0
    max_queue: int = 100
    context: int | None = 1024
    fault: Callable[[Request], Exception | Completion | None] = lambda request: None
    refusal: Callable[[Request], Exception | None] = lambda request: None
    name: str = "tiny"
    versions: dict[str, str] = field(default_factory=lambda: {"default": "v1", "critic": "v7"})
    requests: list[Request] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0

    def __post_init__(self) -> None:
        self.tokenizer = game_tokenizer()
        self._lock = threading.Lock()

    def submit(self, request: Request, *, weights="default", client="", on_tokens=None) -> Ticket:
        if error := self.refusal(request):
            raise error
        with self._lock:
            if self.running >= self.max_queue:
                raise QueueFull(f"{self.max_queue} requests wait already")
            self.running += 1
            self.requests.append(request)
            self.weights.append(weights)
            self.clients.append(client)
        left = threading.Event()
        ticket = Ticket(lambda ticket: left.set())
        answer = threading.Thread(target=self._answer, args=(request, weights, on_tokens, ticket, left), daemon=True)
        answer.start()
        return ticket

    def score_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        top_logprobs: int = 0,
        weights: str = "default",
    ) -> list[list[Score]]:
        assert all(len(prompt) for prompt in prompts)
        return [[Score(logprob_of(t), alternatives(t, top_logprobs)) for t in tokens] for tokens in continuations]

    def metrics(self) -> dict[str, float]:
        return {"requests_running": float(self.running), "generated_tokens_total": 12.0}

    def weight_versions(self) -> dict[str, str]:
        return self.versions

    def _answer(self, request: Request, weights: str, on_tokens: Any, ticket: Ticket, left: threading.Event) -> None:
        tokens = self.tokenizer(self.script(request), add_special_tokens=False)["input_ids"]
        cut = len(tokens) >= request.sampling.max_tokens
        tokens = tokens[: request.sampling.max_tokens] if cut else [*tokens, self.tokenizer.eos_token_id]
        told, heard = "", 0
        for n in range(1, len(tokens) + 1):
            if left.wait(self.delay) if self.delay else left.is_set():
                break
            text = self._text(tokens[:n])
            if on_tokens and not text.endswith("\ufffd") and text != told:
                new = tuple(tokens[heard:n])
                on_tokens(Delta(text[len(told) :], new, tuple(map(logprob_of, new))))
                told, heard = text, n
            if self.fault(request) is not None:
                break
        with self._lock:
            self.running -= 1
            self.cancelled += left.is_set()
        if left.is_set():
            return
        if isinstance(fault := self.fault(request), Exception):
            ticket.fail(fault)
        else:
            ticket.finish(fault or self._completion(request, tokens, "length" if cut else "stop", weights))

    def _completion(self, request: Request, tokens: list[int], reason: Any, weights: str) -> Completion:
        count = request.sampling.top_logprobs
        return Completion(
            self._text(tokens),
            tuple(tokens),
            tuple(map(logprob_of, tokens)),
            reason,
            self.versions[weights],
            len(request.tokens),
            top_logprobs=tuple(alternatives(token, count) for token in tokens) if count else (),
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)
