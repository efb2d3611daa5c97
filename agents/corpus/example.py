"""One training text, and the small things that all writers share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlrl.agents.language import number
from nlrl.agents.roles import Evaluation
from nlrl.backbones.language_model import Message

FIRST_PHRASE_SHARE = 0.6
"""The first phrasing is the mode, so that greedy answers are uniform; the rest share what is left."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training text: role, prompt, answer as text, and the answer's machine-readable value (None where there is
    none)."""

    role: str
    messages: tuple[Message, ...]
    completion: str
    answer: float | int | None
    inp: Any = None
    game: str = "tictactoe"
    """Spec of the game that it is about."""


class RandomPicker:
    """Chooses a phrasing: the first one most often."""

    def __init__(self, rng: random.Random):
        self._rng = rng

    def choice(self, items: Sequence[str]) -> str:
        if len(items) == 1 or self._rng.random() < FIRST_PHRASE_SHARE:
            return items[0]
        return items[1 + int(self._rng.random() * (len(items) - 1))]


def most_common(lines: Sequence[str]) -> str | None:
    """The most frequent line; the earlier one on ties."""
    return Counter(lines).most_common(1)[0][0] if lines else None


def with_ending(evaluation: Evaluation) -> str:
    """An evaluation as a model must write it."""
    return f"{evaluation.text}\nfinal_evaluation: {number(evaluation.verdict)}"
