"""Record what a real model says once, and replay it in tests that need neither the model nor time.

A transcript is JSONL, one exchange a line: the prompt, the sampling, the seed and the completion. Its key is a hash of
the first three; when a prompt changes, the replay says so instead of answering another question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlrl.backbones.language_model import Completion, LanguageModel, Request, Sampling
from nlrl.errors import NLRLError


class RecordingModel:
    """Passes requests on to `inner` and adds each exchange to the transcript at `path`."""

    def __init__(self, inner: LanguageModel, path: str | Path):
        self._inner = inner
        self._path = Path(path)
        self.name = inner.name
        self.reads_expectations = inner.reads_expectations

    @property
    def weight_version(self) -> str:
        return self._inner.weight_version

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        completions = self._inner.generate(requests)
        lines = [json.dumps(_exchange(*pair)) + "\n" for pair in zip(requests, completions, strict=True)]
        with open(self._path, "a", encoding="utf-8") as file:
            file.writelines(lines)
        return completions


class ReplayModel:
    """Answers from a transcript. An exchange recorded twice counts as it was recorded last.

    Raises:
        NLRLError: on creation, there is no transcript, or a line of it is not an exchange.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._answers = dict(_read(self._path))
        completions = self._answers.values()
        self.name = f"replay of {self._path.name}"
        self.reads_expectations = any(completion.expectation is not None for completion in completions)
        self.weight_version = next(reversed(completions)).weight_version if completions else ""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The recorded answers.

        Raises:
            AssertionError: a request that was not recorded.
        """
        return [self._find(request) for request in requests]

    def _find(self, request: Request) -> Completion:
        key = request_key(request)
        assert key in self._answers, f"{self._path} has no answer to this; record it again:\n{_prompt(request)}"
        return self._answers[key]


def request_key(request: Request) -> str:
    """A hash of prompt, sampling and seed. Settings at their defaults are left out, so that new ones keep old keys."""
    content = json.dumps(_prompt(request), sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _prompt(request: Request) -> dict[str, Any]:
    defaults = asdict(Sampling())
    sampling = {name: value for name, value in asdict(request.sampling).items() if value != defaults[name]}
    messages = [[message.role, message.content] for message in request.messages]
    return {"messages": messages, "tokens": list(request.tokens), "sampling": sampling, "seed": request.seed}


def _exchange(request: Request, completion: Completion) -> dict[str, Any]:
    return {"key": request_key(request), **_prompt(request), "completion": asdict(completion)}


def _read(path: Path) -> Iterator[tuple[str, Completion]]:
    if not path.is_file():
        raise NLRLError(f"{path}: no such transcript; record one with nlrl.testing.RecordingModel")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            exchange = json.loads(line)
            yield exchange["key"], Completion(**_with_tuples(exchange["completion"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise NLRLError(f"{path}, line {number}: not an exchange of a transcript ({error})") from error


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """What JSON made lists of, as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
