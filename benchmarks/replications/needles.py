"""Needles in a haystack: magic numbers of cities in real text, some of which are asked for at the end.

1. An episode is text with needles ("The magic number of Oslo is 483.", a line each) and, behind it, questions: the
   same words up to the number, then its three digits. A digit is one token.
2. A training row holds episodes of equal length, from the whole context down to a sixteenth, with one to sixteen
   needles (up to more than the probes have: every answer is something to learn from), all of them asked for in any
   order. No city occurs twice in a row. Digits of answers count as targets as often as `ANSWER_WEIGHT` says, what
   cannot be known (a needle's city and number, which city is asked for) does not count.
3. A probe is one episode of the whole context: N needles, R of them asked for. The first asked needle lies at the
   given depth (0: the text's start, 1: its end), the others anywhere. A question is right if the model's first choice
   is right at all three digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nlrl.benchmarks.replications.experiment import Data
from nlrl.errors import NLRLError

CITIES = (
    "Accra", "Amman", "Athens", "Berlin", "Bern", "Bogota", "Boston", "Brest", "Cairo", "Chicago", "Dakar", "Delhi",
    "Dublin", "Geneva", "Hanoi", "Havana", "Houston", "Jakarta", "Kabul", "Kyiv", "Lagos", "Lima", "Lisbon",
    "London", "Madrid", "Manila", "Miami", "Milan", "Minsk", "Moscow", "Mumbai", "Munich", "Nairobi", "Naples",
    "Oslo", "Ottawa", "Paris", "Porto", "Prague", "Quito", "Riga", "Rome", "Santiago", "Seattle", "Seoul",
    "Shanghai", "Sofia", "Sydney", "Tallinn", "Tehran", "Tokyo", "Toronto", "Tunis", "Turin", "Venice", "Vienna",
    "Vilnius", "Warsaw", "Zagreb", "Zurich",
)  # fmt: skip
BEFORE, BETWEEN = "\nThe magic number of", " is"
DIGITS = 3
ANSWER_WEIGHT = 10.0
MOST_NEEDLES = 16
PARTS = (1, 2, 4, 8, 16)
"""Episodes of a training row."""
CELLS = ((1, 1), (2, 2), (4, 2), (6, 2))
"""Needles and questions of the probes; the paper's."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PROBE_ROWS = 64
"""Of each cell at each depth."""
PROBE_SEED = 1_783


class Episode(NamedTuple):
    tokens: np.ndarray
    """`(length,)` int64."""
    weights: np.ndarray
    """`(length,)` float32, as in `Mix`."""
    answers: np.ndarray
    """`(questions, DIGITS)`: where the digits of the answers are."""


@dataclass(frozen=True)
class Words:
    """The tokens that needles are made of."""

    before: list[int]
    cities: list[list[int]]
    between: list[int]
    first_digits: list[int]
    """With a space before them."""
    digits: list[int]

    @classmethod
    def of(cls, tokenizer) -> Words:
        """Raises: NLRLError: a digit is no token."""

        def ids(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False).ids

        digits = [[ids(f"{space}{i}") for i in range(10)] for space in (" ", "")]
        if any(len(digit) != 1 for digit in digits[0] + digits[1]):
            raise NLRLError(
                "needles want a tokenizer that has every digit as a token, with a space before it and without"
            )
        cities = [ids(f" {city}") for city in CITIES]
        return cls(ids(BEFORE), cities, ids(BETWEEN), *([digit[0] for digit in kind] for kind in digits))

    def line(self, city: int, number: np.ndarray) -> list[int]:
        """The tokens of a needle; a question with its answer is the same line."""
        digits = [self.first_digits[number[0]], *(self.digits[digit] for digit in number[1:])]
        return [*self.before, *self.cities[city], *self.between, *digits]

    @property
    def longest(self) -> int:
        return len(self.before) + max(map(len, self.cities)) + len(self.between) + DIGITS


# -- rows --------------------------------------------------------------------------------------------------------------
def episode(rng: np.random.Generator, words: Words, text: np.ndarray, cities, depths, asked: int) -> Episode:
    """One episode.

    Args:
        text: `(length,)` tokens to cut the haystack from; the episode is as long.
        cities: one for each needle.
        depths: of each needle, shares of the haystack.
        asked: how many of the first needles are asked for, in this order.
    """
    numbers = rng.integers(10, size=(len(cities), DIGITS))
    needles = [words.line(city, number) for city, number in zip(cities, numbers, strict=True)]
    questions = needles[:asked]
    hay = len(text) - sum(map(len, needles + questions))
    parts, start = [], 0
    for depth, needle in sorted(zip((round(d * hay) for d in depths), needles, strict=True), key=lambda item: item[0]):
        parts += [(text[start:depth], 1.0), (np.array(needle), 0.0)]
        start = depth
    parts.append((text[start:hay], 1.0))
    before, answers = hay + sum(map(len, needles)), []
    for question in questions:
        parts += [(np.array(question[:-DIGITS]), 0.0), (np.array(question[-DIGITS:]), ANSWER_WEIGHT)]
        before += len(question)
        answers.append(np.arange(before - DIGITS, before))
    weights = np.concatenate([np.full(len(part), weight, np.float32) for part, weight in parts])
    return Episode(np.concatenate([part for part, _ in parts]), weights, np.array(answers))


def mix(data: Data, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Training rows; see `experiment.Mix`."""
    words, text = Words.of(data.tokenizer), data.train.cpu().numpy()
    made = [_training_row(rng, words, text, data.context) for _ in range(rows)]
    return np.stack([tokens for tokens, _ in made]), np.stack([weights for _, weights in made])


def _training_row(rng: np.random.Generator, words: Words, text: np.ndarray, context: int):
    cities = rng.permutation(len(CITIES))
    parts: list[Episode] = []
    for length in _lengths(rng, context, 5 * words.longest // 2):
        count = int(rng.integers(1, max(1, min(MOST_NEEDLES, length // (3 * words.longest))) + 1))
        chosen, cities = cities[:count], cities[count:]
        parts.append(episode(rng, words, _cut(rng, text, length), chosen, rng.random(count), count))
    return np.concatenate([part.tokens for part in parts]), np.concatenate([part.weights for part in parts])


def _lengths(rng: np.random.Generator, context: int, least: int) -> list[int]:
    """Of the episodes of a row: the whole context, a half, a quarter and so on, none shorter than `least`.

    Raises:
        NLRLError: not even one fits.
    """
    possible = [parts for parts in PARTS if context // parts >= least]
    if not possible:
        raise NLRLError(f"a context of {context} tokens has no room for needles, which want {least}")
    parts = int(rng.choice(possible))
    return [context // parts] * (parts - 1) + [context - context // parts * (parts - 1)]


def probe(
    rng: np.random.Generator, words: Words, text: np.ndarray, context: int, needles: int, asked: int, depth: float
):
    """One row of a probe, an `Episode`."""
    depths = [depth, *rng.random(needles - 1)]
    cities = rng.permutation(len(CITIES))[:needles]
    return episode(rng, words, _cut(rng, text, context), cities, depths, asked)


def _cut(rng: np.random.Generator, text: np.ndarray, length: int) -> np.ndarray:
    start = int(rng.integers(len(text) - length))
    return text[start : start + length]


# -- measuring ---------------------------------------------------------------------------------------------------------
def retrieval(model, data: Data, device) -> dict:
    """`cells`: for each N, R and depth the share of questions that were answered rightly; `all`: their mean. The same
    probes for every model; text is held out."""
    rng, words, text = np.random.default_rng(PROBE_SEED), Words.of(data.tokenizer), data.held_out.cpu().numpy()
    cells = []
    for needles, asked in CELLS:
        for depth in DEPTHS:
            rows = [probe(rng, words, text, data.context, needles, asked, depth) for _ in range(PROBE_ROWS)]
            right = answered(model, rows, device)
            cells.append(
                {"needles": needles, "asked": asked, "depth": depth, "rows": len(rows), "accuracy": float(right.mean())}
            )
    return {"all": float(np.mean([cell["accuracy"] for cell in cells])), "cells": cells}


def answered(model, episodes: list[Episode], device) -> np.ndarray:
    """Whether each question was answered rightly, bool `(episodes, questions)`; all of equal length."""
    import torch

    from nlrl.benchmarks.replications.train import PASS_TOKENS, autocast

    right = []
    count = max(1, PASS_TOKENS // len(episodes[0].tokens))
    for start in range(0, len(episodes), count):
        part = episodes[start : start + count]
        tokens = torch.from_numpy(np.stack([e.tokens for e in part])).long().to(device)
        places = torch.from_numpy(np.stack([e.answers for e in part]).reshape(len(part), -1)).to(device)
        positions = torch.arange(tokens.shape[1], device=device).expand(tokens.shape)
        with torch.no_grad(), autocast(tokens.device):
            hidden = model.hidden(tokens, positions)
            asking = hidden.gather(1, (places - 1)[..., None].expand(-1, -1, hidden.shape[-1]))
            choices = model.logits(asking).argmax(-1)
        right.append((choices == tokens.gather(1, places)).unflatten(1, (-1, DIGITS)).all(-1).cpu().numpy())
    return np.concatenate(right)
