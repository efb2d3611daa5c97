"""Finds references to evidence that the prompts of critic and actor do not hold, and cuts them out.

G1, G2 and I see games, outlooks and candidates; critic and actor learn to write the same texts from the board alone. A
target that says "O won 5 of the 8 games" teaches them to invent evidence. A *leak* is a phrase that needs the evidence.

1. Names of evidence are leaks wherever they stand: rollouts, simulations, playouts, trajectories, look-ahead; sampled,
   given or numbered games, variations, continuations and outlooks; game records; given or provided evaluations.
2. Counts are leaks as reports: "won 5 of 8", "in 8 games", "6 won, 0 drawn, 2 lost". A rate in a sentence that
   forecasts ("should win 7 of 10 games") is not; "in 8 games" is a report in any mood.
3. Results of games in the past tense are leaks ("won most of the games"); wisdom in the present and the future is not
   ("the centre wins most games", "should win most games"), nor is thinking ahead ("if we look ahead", "a likely
   continuation"), nor an evaluation of one's own ("my evaluation", "the outlook for O is good").
4. Numbers are no leaks by themselves: "I put X at +0.50", "ahead of 6 at +0.40".

The phrases are data: `leaks.toml`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nlrl.agents.endings import Answer, last_answer, start_of_ending, without_ending
from nlrl.agents.metrics.pattern_table import load_patterns

LeakKind = Literal["rollout", "variation", "game_record", "count", "evaluation", "evidence"]
_FORECAST = re.compile(
    r"\b(?:will|would|should|may|might|expect(?:s|ed|ing)?|likely|probably|forecast|predict\w*|anticipate)\b|'ll\b",
    re.IGNORECASE,
)
_BREAK = re.compile(r"(?<=[.!?])(?<!\n\d\.)[\"')\]*]*\s+|\s*\n\s*")


@dataclass(frozen=True, slots=True)
class Leak:
    """One phrase: its place in the text (start, end), its words, and what it refers to."""

    span: tuple[int, int]
    phrase: str
    kind: LeakKind


class _Row(NamedTuple):
    kind: LeakKind
    pattern: re.Pattern[str]
    forecast_is_fine: bool
    """In a sentence that forecasts, this phrase is no leak."""


@cache
def _rows() -> tuple[_Row, ...]:
    table = load_patterns(Path(__file__).with_suffix(".toml"), "leaks")
    return tuple(_Row(group["kind"], pattern, group.get("forecast_is_fine", False)) for group, pattern in table)


@cache
def _any_row() -> re.Pattern[str]:
    """All rows at once: tells four times faster that a text has no leak, which is the common case."""
    return re.compile("|".join(row.pattern.pattern for row in _rows()), re.IGNORECASE)


@lru_cache(maxsize=64)
def _forecasts(sentence: str) -> bool:
    """Asked once for each of a sentence's leaks."""
    return _FORECAST.search(sentence) is not None


_DIGIT = re.compile(r"\d")


@lru_cache(maxsize=1 << 16)
def _has_leak(text: str) -> bool:
    """Whether anything leaks. No pattern tells one number from another, so texts that differ in numbers alone are one
    text here: a trained model's answers are few by that measure, and there are a great many of them."""
    return _any_row().search(text) is not None


def find_leaks(text: str) -> list[Leak]:
    """The leaks of a text, in order; they do not overlap."""
    if not _has_leak(_DIGIT.sub("5", text)):
        return []
    taken: list[tuple[int, int]] = []
    leaks = []
    for kind, pattern, forecast_is_fine in _rows():
        for match in pattern.finditer(text):
            start, end = match.span()
            if any(start < other_end and other_start < end for other_start, other_end in taken):
                continue
            taken.append((start, end))
            if not (forecast_is_fine and _forecasts(_sentence_around(text, start))):
                leaks.append(Leak((start, end), match.group(), kind))
    return sorted(leaks, key=lambda leak: leak.span)


def strip_leaks(text: str) -> str | None:
    """`text` without the sentences that leak; a JSON answer keeps its form.

    Returns:
        None if nothing is left to learn from: the machine-readable ending went with its sentence or was never there, or
        sentences were dropped and no other is left beside the ending.
    """
    kept = _kept(_DIGIT.sub("5", text))
    if kept == _NOT_PROSE:
        return _strip(text)
    if kept is None:
        return None
    return _tidy("".join(text[start:end] for start, end in kept)) if kept != ((0, len(text)),) else text


_NOT_PROSE = ((-1, -1),)


@lru_cache(maxsize=1 << 16)
def _kept(text: str) -> tuple[tuple[int, int], ...] | None:
    """The pieces that `strip_leaks` keeps of a text with every digit made equal; None for nothing, `_NOT_PROSE` if its
    answer is JSON."""
    answer = last_answer(text)
    if answer is None:
        return None
    if not find_leaks(text):
        return ((0, len(text)),)
    if answer.strings is not None:
        return _NOT_PROSE
    start = start_of_ending(text, answer)
    if find_leaks(text[start : answer.end]):
        return None
    pieces = (*_prose_kept(text, 0, start), (start, answer.end), *_prose_kept(text, answer.end, len(text)))
    stripped = _tidy("".join(text[start:end] for start, end in pieces))
    return pieces if without_ending(stripped) and not find_leaks(stripped) else None


def _prose_kept(text: str, start: int, end: int) -> list[tuple[int, int]]:
    part = text[start:end]
    spans = [leak.span for leak in find_leaks(part)]
    return [
        (start + first, start + last)
        for first, last in _sentences(part)
        if not any(first < leak_end and leak_start < last for leak_start, leak_end in spans)
    ]


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _strip(text: str) -> str | None:
    """`strip_leaks` of an answer in JSON."""
    answer = last_answer(text)
    assert answer is not None
    ending = _strip_ending(text[answer.start : answer.end], answer)
    if ending is None:
        return None
    stripped = _tidy(_strip_prose(text[: answer.start]) + ending + _strip_prose(text[answer.end :]))
    return stripped if without_ending(stripped) and not find_leaks(stripped) else None


def _strip_ending(ending: str, answer: Answer) -> str | None:
    if not find_leaks(ending):
        return ending
    if answer.strings is None:
        return None
    try:
        return json.dumps(_strip_json(json.loads(ending, strict=False)), ensure_ascii=False)
    except ValueError:  # an integer of thousands of digits
        return None


def _strip_json(value: Any) -> Any:
    """A JSON value without leaking sentences; items that leak in their key or lose all their words go."""
    if isinstance(value, str):
        return _strip_prose(value).strip()
    if isinstance(value, list):
        items = [(item, _strip_json(item)) for item in value]
        return [new for old, new in items if new or not old]
    if isinstance(value, dict):
        fields = {key: (item, _strip_json(item)) for key, item in value.items() if not find_leaks(key)}
        return {key: new for key, (old, new) in fields.items() if new or not old}
    return value


def _strip_prose(text: str) -> str:
    return "".join(text[start:end] for start, end in _prose_kept(text, 0, len(text)))


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each sentence with the white space behind it; together they are the text."""
    start = 0
    for gap in _BREAK.finditer(text):
        yield start, gap.end()
        start = gap.end()
    if start < len(text):
        yield start, len(text)


def _sentence_around(text: str, position: int) -> str:
    return next((text[start:end] for start, end in _sentences(text) if start <= position < end), text)
