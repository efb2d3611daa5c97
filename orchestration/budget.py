"""What a run spends, so that methods can be compared under one budget: environment steps and tokens.

1. An *environment step* is one move applied to a game, whoever made it. *Prompt* and *generated* tokens are those of
   the agent's own models (student and teacher; opponents are part of the environment), failed answers included.
   *Trained* tokens are those that fine-tuning read, every epoch.
2. An *entry* says what one thing cost: a request, a sampled answer of the policy, a game. Its key depends on nothing
   but that thing. Within a stage, equal keys are one entry: an identical request is answered once.
3. Entries are appended to the stage's ledger before whatever they paid for is recorded, so a killed run loses none, and
   one that is made twice counts once. A committed stage keeps the sum, `budget` among its metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nlrl.backbones.language_model import Completion, LanguageModel, Request
from nlrl.orchestration.records import RecordWriter, scan_lines

LEDGER_FILE = "spent.ledger"
MEASURING = ("evaluation", "policy", "league")
"""Stages that learn nothing: what they cost is not held against a method."""


class Budget(NamedTuple):
    """A sum of costs."""

    environment_steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0

    def plus(self, other: Sequence[int]) -> Budget:
        return Budget(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Entry(NamedTuple):
    """What one thing cost."""

    key: int
    """64 bits, such as `derive_seed` gives."""
    environment_steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0


class Notes(Protocol):
    """Where entries are taken down."""

    def note(self, entries: Iterable[Entry]) -> None: ...


class Meter:
    """Takes entries down for the stage that is being run; outside of stages, and of a driver's loop, for nobody."""

    def __init__(self) -> None:
        self._ledger: RecordWriter | None = None

    def open(self, shards: Path) -> None:
        """Begins (or goes on with) the ledger of a stage."""
        self._ledger = RecordWriter(shards / LEDGER_FILE, accept=_is_line)

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def note(self, entries: Iterable[Entry]) -> None:
        """Takes entries down; they are on disk when this returns."""
        if self._ledger is not None and (found := list(entries)):
            self._ledger.write({"spent": [tuple(entry) for entry in found]})


def spent_by(stages: Iterable[Any], until: int | None = None, measuring: bool = False) -> Budget:
    """What committed stages cost, those of `MEASURING` left out.

    Args:
        stages: of a run's folder.
        until: the last iteration that counts.
        measuring: what those cost, instead.
    """
    total = Budget()
    for stage in stages:
        counts = (stage.name in MEASURING) == measuring and (until is None or stage.iteration <= until)
        if counts and stage.is_committed():
            total = total.plus(Budget(**stage.load()["metrics"].get("budget", {})))
    return total


def read_ledger(shards: Path) -> Budget | None:
    """The sum of a stage's ledgers (one a machine that worked on it); None if it has none."""
    paths = sorted(shards.glob("*.ledger"))
    if not paths:
        return None
    lines = (line for path in paths for line, _, _ in scan_lines(path, _is_line))
    entries = {entry[0]: entry[1:] for line in lines for entry in line["spent"]}
    return Budget(*map(sum, zip(*entries.values(), strict=True))) if entries else Budget()


def _is_line(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("spent"), list)


class Metered:
    """A `LanguageModel` whose answers are entered into a meter."""

    def __init__(self, inner: LanguageModel, meter: Notes):
        self.inner, self._meter = inner, meter
        self.name = inner.name

    @property
    def reads_expectations(self) -> bool:
        return self.inner.reads_expectations

    @property
    def weight_version(self) -> str:
        return self.inner.weight_version

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """As `LanguageModel.generate`."""
        completions = self.inner.generate(requests)
        self._meter.note(self._entry(r, c) for r, c in zip(requests, completions, strict=True))
        return completions

    def _entry(self, request: Request, completion: Completion) -> Entry:
        prompt = [message.content for message in request.messages] or [repr(request.tokens)]
        parts = (self.name, completion.weight_version, repr(request.sampling), str(request.seed), *prompt)
        digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
        return Entry(int.from_bytes(digest, "little"), 0, completion.prompt_tokens, len(completion.tokens))
