"""Does the narrative carry the verdict? A fresh reader, who sees neither the board nor the number, must recover it.

1. The machine-readable ending and every number that could be a verdict are taken out (`narrative`); moves, cells and
   lines stay. The sides are called by what they are to the player to move, because the reader is told for whom the
   verdict is.
2. The reader is a ridge regression on the n-grams of words: fresh, small, and unable to know the game. It learns from
   the texts about some states and is judged on the texts about others.
3. Its control learns from the same texts with the verdicts shuffled. What the reader gains over it, the words carry.
4. `BlindReader` asks a chat model the same question, for models that were never trained on these texts.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlrl.agents.endings import without_ending
from nlrl.agents.metrics.verdicts import EVEN
from nlrl.agents.parser import ParseFailure, parse_evaluation
from nlrl.agents.prompts import Template
from nlrl.backbones.language_model import Completion, Message
from nlrl.envs.game import Game
from nlrl.envs.random import derive_seed

Floats = NDArray[np.float64]
LONGEST_GRAM = 3
MOST_GRAMS = 1500
"""Columns of the regression: the n-grams that occur in most texts."""
LEAST_TEXTS = 2
"""A gram that fewer texts have says nothing about others."""
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
TEST_SHARE, INNER_SHARE = 0.3, 0.2
TAKEN_OUT = "_"
"""Stands where a number stood."""

_VERDICT = re.compile(
    r"(?<!\w)[+\-\u2212\u2013]\s?\d+(?:[.,]\d+)?"  # +0.50, -1; not the cells of 3-5-7
    r"|\b\d+(?:[.,]\d+)?\s?(?:%|percent\b)|\b\d+[.,]\d+\b|\b\d+\s?/\s?\d+\b|\b\d+ (?:out )?of \d+\b"
)
_WORD = re.compile(r"\w+(?:-\w+)*|[^\w\s]")


def narrative(text: str, game: Game[Any], state: Any) -> str:
    """What a text says without its ending and its numbers, with the sides called `self` and `rival`."""
    words = _VERDICT.sub(TAKEN_OUT, without_ending(text))
    if game.num_players == 1:
        return words
    mover = game.current_player(state)
    for player, name in enumerate(game.player_names):
        flags = 0 if len(name) == 1 else re.IGNORECASE
        words = re.sub(rf"\b{re.escape(name)}\b", "self" if player == mover else "rival", words, flags=flags)
    return words


# -- the reader --------------------------------------------------------------------------------------------------------
class Reader:
    """Ridge regression on word n-grams; made by `Reader.fit`."""

    def __init__(self, grams: dict[str, int], weights: Floats, centre: Floats, mean: float):
        self._grams, self._weights, self._centre, self._mean = grams, weights, centre, mean

    @classmethod
    def fit(cls, texts: Sequence[str], verdicts: Floats, groups: Sequence[Hashable], seed: int = 0) -> Reader:
        """Learns verdicts from texts; the penalty is chosen on the groups of a held-out part of them."""
        inner = in_part(groups, INNER_SHARE, derive_seed(seed, "inner"))
        penalty = PENALTIES[len(PENALTIES) // 2]
        if 0 < inner.sum() < len(inner):
            known = [text for text, held in zip(texts, inner, strict=True) if not held]
            held = [text for text, held in zip(texts, inner, strict=True) if held]
            readers = {p: cls._solve(known, verdicts[~inner], p) for p in PENALTIES}
            penalty = min(PENALTIES, key=lambda p: float(((readers[p].read(held) - verdicts[inner]) ** 2).sum()))
        return cls._solve(texts, verdicts, penalty)

    @classmethod
    def _solve(cls, texts: Sequence[str], verdicts: Floats, penalty: float) -> Reader:
        grams = _vocabulary(texts)
        features = _features(texts, grams)
        centre, mean = features.mean(axis=0), float(verdicts.mean())
        features -= centre
        square = features.T @ features + penalty * np.eye(len(grams))
        return cls(grams, np.linalg.solve(square, features.T @ (verdicts - mean)), centre, mean)

    def read(self, texts: Sequence[str]) -> Floats:
        """(texts,) verdicts in [-1, 1]."""
        found = (_features(texts, self._grams) - self._centre) @ self._weights + self._mean
        return np.clip(found, -1.0, 1.0)


def _grams_of(text: str) -> set[str]:
    words = _WORD.findall(text.lower())
    return {" ".join(words[i : i + n]) for n in range(1, LONGEST_GRAM + 1) for i in range(len(words) - n + 1)}


def _vocabulary(texts: Sequence[str]) -> dict[str, int]:
    counts = Counter(gram for text in texts for gram in _grams_of(text))
    common = sorted((gram for gram, n in counts.items() if n >= LEAST_TEXTS), key=lambda gram: (-counts[gram], gram))
    return {gram: column for column, gram in enumerate(common[:MOST_GRAMS])}


def _features(texts: Sequence[str], grams: dict[str, int]) -> Floats:
    found = np.zeros((len(texts), len(grams)))
    for row, text in enumerate(texts):
        found[row, [grams[gram] for gram in _grams_of(text) if gram in grams]] = 1.0
    return found


def in_part(groups: Sequence[Hashable], share: float, seed: int) -> NDArray[np.bool_]:
    """(n,) whether an example is in the part; a group, by its text, is in it as a whole."""
    return np.array([derive_seed(seed, str(group)) / 2**64 < share for group in groups], dtype=bool)


# -- the test ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Recovered:
    """Verdicts of the test texts, and what the reader and its control made of them: arrays of shape (test,)."""

    train: int
    groups: tuple[Hashable, ...]
    truth: Floats
    read: Floats
    shuffled: Floats


def recover(texts: Sequence[str], verdicts: Sequence[float], groups: Sequence[Hashable], seed: int = 0) -> Recovered:
    """Trains the reader and its shuffled control on some groups (states), and reads the texts of the others.

    Args:
        texts: narratives, as `narrative` makes them.

    Raises:
        ValueError: lengths differ, or the groups are too few to be divided.
    """
    if not len(texts) == len(verdicts) == len(groups):
        raise ValueError(f"{len(texts)} texts, {len(verdicts)} verdicts, {len(groups)} groups: not the same")
    test = in_part(groups, TEST_SHARE, derive_seed(seed, "test"))
    if not 0 < test.sum() < len(test):
        raise ValueError(f"{len(set(groups))} groups cannot be divided into those to learn from and those to test on")
    truth = np.asarray(verdicts, dtype=np.float64)
    known = [text for text, held in zip(texts, test, strict=True) if not held]
    unseen = [text for text, held in zip(texts, test, strict=True) if held]
    of = [group for group, held in zip(groups, test, strict=True) if not held]
    shuffled = np.random.default_rng(seed).permutation(truth[~test])
    read, control = (Reader.fit(known, targets, of, seed).read(unseen) for targets in (truth[~test], shuffled))
    tested = tuple(group for group, held in zip(groups, test, strict=True) if held)
    return Recovered(len(known), tested, truth[test], read, control)


def r_squared(read: Floats, truth: Floats) -> float:
    """Share of the variance of `truth` that is explained; below 0 where its mean would have been nearer. NaN where
    there is no variance."""
    variance = float(((truth - truth.mean()) ** 2).sum()) if len(truth) else 0.0
    return 1.0 - float(((read - truth) ** 2).sum()) / variance if variance > 0 else float("nan")


def same_sign(read: Floats, truth: Floats) -> Floats:
    """(n,) 1 where both say win, about even (within `EVEN`) or loss, else 0."""
    signs = [np.where(np.abs(values) <= EVEN, 0.0, np.sign(values)) for values in (read, truth)]
    return (signs[0] == signs[1]).astype(np.float64)


# -- a chat model as reader --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class BlindInput:
    """A narrative, and for whom the verdict is asked."""

    text: str
    player: str = "self"


class BlindReader:
    """The role of a chat model that guesses the verdict from the narrative; asked like any role."""

    name = "blind_reader"

    def messages(self, inp: BlindInput) -> tuple[Message, ...]:
        return _template().messages(text=inp.text, player=inp.player)

    def parse(self, inp: BlindInput, completion: Completion) -> float | ParseFailure:
        return parse_evaluation(completion.text, completion.finish_reason)


@cache
def _template() -> Template:
    role = tomllib.loads((Path(__file__).with_name("blind_reader.toml")).read_text(encoding="utf-8"))["blind_reader"]
    return Template(role["system"].strip(), role["user"].strip())
