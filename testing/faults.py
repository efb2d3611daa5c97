"""A language model that is wrong in chosen ways, for tests of whatever has to survive it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal, get_args

from nlrl.backbones.language_model import Completion, LanguageModel, LanguageModelError, Request
from nlrl.envs.random import Rng
from nlrl.testing.transcripts import request_key
from nlrl.testing.words import WordTokenizer

Fault = Literal["illegal", "ambiguous", "truncated", "empty", "error", "slow", "failing"]
"""illegal: a move that no game has, a verdict out of range. ambiguous: two different answers in one. truncated: cut in
the middle by the token limit. empty: nothing. error: this request failed after its retries. slow: late but right.
failing: the model is down, the whole call raises."""

_ENDING = re.compile(
    r"""(?P<key>best_move|final_evaluation)(?P<dress>["']?\s*[:=]\s*["']?)(?P<value>[^\s"',}]*[^\s"',}.])"""
)


class FaultyModel:
    """Answers like `inner`, except where a fault is due.

    Args:
        faults: number of a request (counted from 0 over all calls) -> its fault; or fault -> the share of requests that
            have it. In the second form the draw depends on `seed` and the request alone, not on order or batches: the
            same request fails again, a retry with another seed may not.
        delay: seconds that a "slow" answer takes.
        other_move: the second move of an "ambiguous" answer, where moves are not numbers.

    Raises:
        ValueError: an unknown fault, or shares that are negative or sum to more than 1.
    """

    def __init__(
        self,
        inner: LanguageModel,
        faults: Mapping[int, Fault] | Mapping[Fault, float],
        *,
        seed: int = 0,
        delay: float = 0.05,
        other_move: str = "",
    ):
        self._by_number: dict[int, Any] = {key: fault for key, fault in faults.items() if isinstance(key, int)}
        self._shares: dict[Any, Any] = {key: share for key, share in faults.items() if not isinstance(key, int)}
        _check([*self._by_number.values(), *self._shares], self._shares.values())
        self._inner, self._seed, self._delay, self._other_move = inner, seed, delay, other_move
        self._numbers = count()
        self._tokenizer = WordTokenizer()
        self.name = f"faulty {inner.name}"
        self.reads_expectations = inner.reads_expectations

    @property
    def weight_version(self) -> str:
        return self._inner.weight_version

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The answers of `inner`, spoiled where a fault is due.

        Raises:
            LanguageModelError: one of the requests has the fault "failing".
        """
        due = [self._fault(next(self._numbers), request) for request in requests]
        if "failing" in due:
            raise LanguageModelError(f"{self.name}: scripted failure of request {due.index('failing')} of this call")
        time.sleep(self._delay * due.count("slow"))
        completions = self._inner.generate(requests)
        return [self._spoil(*pair) for pair in zip(completions, due, strict=True)]

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _fault(self, number: int, request: Request) -> str | None:
        if not self._shares:
            return self._by_number.get(number)
        faults, shares = list(self._shares), list(self._shares.values())
        drawn = Rng("fault", self._seed, request_key(request)).weighted([*shares, max(0.0, 1 - sum(shares))])
        return faults[drawn] if drawn < len(faults) else None

    def _spoil(self, completion: Completion, fault: str | None) -> Completion:
        if fault == "truncated":
            words = self._tokenizer.encode(completion.text)
            return self._say(completion, self._tokenizer.decode(words[: len(words) // 2]), finish_reason="length")
        if fault == "error":
            return self._say(completion, "", finish_reason="error", error="scripted error")
        if fault == "empty":
            return self._say(completion, "")
        if fault == "illegal":
            return self._say(completion, _change_ending(completion.text, _impossible))
        if fault == "ambiguous":
            return self._say(completion, _change_ending(completion.text, self._two))
        return completion

    def _say(self, completion: Completion, text: str, **changes: Any) -> Completion:
        """`completion` with other words, tokenized anew."""
        tokens = self._tokenizer.encode(text)
        logprobs = tuple(map(self._tokenizer.logprob, tokens))
        return replace(completion, text=text, tokens=tokens, logprobs=logprobs, expectation=None, **changes)

    def _two(self, key: str, value: str) -> str:
        if key == "final_evaluation":
            return f"{value} or {'-' if float(value) >= 0 else '+'}{abs(float(value)) or 0.5:.2f}"
        other = self._other_move or (str(int(value) % 9 + 1) if value.isdigit() else "")
        if not other or other == value:
            raise ValueError(f"'ambiguous' needs other_move, a move beside {value!r}; got {self._other_move!r}")
        return f"{value} or {other}"


def _check(faults: Sequence[Any], shares: Any) -> None:
    unknown = [fault for fault in faults if fault not in get_args(Fault)]
    if unknown:
        raise ValueError(f"unknown fault {unknown[0]!r}; known: {', '.join(get_args(Fault))}")
    if any(share < 0 for share in shares) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"shares of faults must not be negative and sum to at most 1, got {list(shares)}")


def _impossible(key: str, value: str) -> str:
    return "7.00" if key == "final_evaluation" else "999"


def _change_ending(text: str, change: Callable[[str, str], str]) -> str:
    """`text` with the value of its last machine-readable answer changed; a text without one gets one."""
    endings = list(_ENDING.finditer(text)) or list(_ENDING.finditer(text := f"{text}\nbest_move: 1"))
    last = endings[-1]
    return text[: last.start("value")] + change(last["key"], last["value"]) + text[last.end("value") :]
