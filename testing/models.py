"""A language model that answers by rules: deterministic, instant, and complete (tokens, log-probabilities, limits)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from nlrl.backbones.language_model import Completion, Request
from nlrl.testing.words import WordTokenizer

Answers = Callable[[Request], str] | Mapping[str, str] | Sequence[str]
Expectation = Callable[[Request], float]

_NUMBER = re.compile(r"[+-]\d+\.\d\d(?!\d)")


class ScriptedModel:
    """Answers from a script and remembers what it was asked.

    Args:
        answers: a function of the request; or a table from a piece of the prompt to the answer (the longest piece that
            occurs counts, `""` occurs everywhere); or a list of answers in the order of the requests.
        expectation: for `Sampling.expected_number`: the expectation, which then replaces the first signed two-decimal
            number of the answer. Without it the model does not read expectations.

    Asking for an answer that the script does not have is the test's mistake, so it raises an AssertionError, which no
    code under test mistakes for a model that is down.
    """

    def __init__(
        self,
        answers: Answers,
        *,
        expectation: Expectation | None = None,
        name: str = "scripted",
        weight_version: str = "scripted-0",
    ):
        self.name = name
        self.weight_version = weight_version
        self.reads_expectations = expectation is not None
        self.requests: list[Request] = []
        """Everything it was asked, in order."""
        self.tokenizer = WordTokenizer()
        self._answers = answers
        self._expectation = expectation

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One answer per request, in order.

        Raises:
            AssertionError: the script has no answer.
        """
        return [self._complete(request) for request in requests]

    def prompt(self, request: Request) -> str:
        """The text of a prompt: its messages, one after another, or its tokens decoded."""
        if request.messages:
            return "\n".join(message.content for message in request.messages)
        return self.tokenizer.decode(request.tokens)

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _complete(self, request: Request) -> Completion:
        self.requests.append(request)
        prompt = self.prompt(request)
        text, expected = self._with_expectation(self._answer(request, prompt), request)
        text = _before_stop(text, request.sampling.stop)
        tokens = self.tokenizer.encode(text)
        kept = tokens[: request.sampling.max_tokens]
        return Completion(
            text=self.tokenizer.decode(kept),
            tokens=kept,
            logprobs=tuple(map(self.tokenizer.logprob, kept)),
            finish_reason="stop" if kept == tokens else "length",
            weight_version=self.weight_version,
            prompt_tokens=len(self.tokenizer.encode(prompt)),
            expectation=expected,
        )

    def _answer(self, request: Request, prompt: str) -> str:
        if isinstance(self._answers, Mapping):
            pieces = [piece for piece in self._answers if piece in prompt]
            assert pieces, f"{self.name}: no piece of the script occurs in this prompt:\n{prompt}"
            return self._answers[max(pieces, key=len)]
        if callable(self._answers):
            return self._answers(request)
        number = len(self.requests)
        assert number <= len(self._answers), (
            f"{self.name}: request {number}, but {len(self._answers)} answers:\n{prompt}"
        )
        return self._answers[number - 1]

    def _with_expectation(self, text: str, request: Request) -> tuple[str, float | None]:
        if self._expectation is None or not request.sampling.expected_number or not _NUMBER.search(text):
            return text, None
        value = self._expectation(request)
        assert math.isfinite(value), f"{self.name}: an expectation must be finite, not {value}"
        return _NUMBER.sub(f"{value:+.2f}", text, count=1), value


def _before_stop(text: str, stops: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
