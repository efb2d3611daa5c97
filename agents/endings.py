"""Finds the machine-readable answers in a text; `agents/parser.py` reads their values.

1. An answer is written, `best_move: 5`, with any of the separators `:`, `:=`, `=`, `=>` and the full-width colon, and
   with any quotes, emphasis, HTML tags or list brackets around key and value; or it is a JSON object that has the key.
2. A written answer goes up to the end of its line, a closing brace or the next key; a list to its closing bracket.
3. Keys inside a JSON object that has an answer of its own are part of that answer, wherever they stand in it.
4. Full-width characters count as the ASCII ones (`fold`), one for one, so that positions stay true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MOVE_KEY, EVALUATION_KEY = "best_move", "final_evaluation"
KEYS = (MOVE_KEY, EVALUATION_KEY)

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_BLANK = r"[ \t\xa0\u2009\u202f\u3000]"
_QUOTES = r"\"'`\u201c\u201d\u2018\u2019\xab\xbb"
_TAG = r"</?(?:b|i|u|p|em|br|li|div|code|span|strong)\b[^<>\n]{0,80}>"
_DECORATION = rf"(?:{_BLANK}|[*\\_{_QUOTES}]|&quot;|{_TAG})*"
_VALUE_START = re.compile(rf"(?:{_DECORATION}(?:[(\[]\s*)?)*", re.IGNORECASE)
_OPEN_FENCE = re.compile(r"```\w*\s*\Z")
_BEFORE_KEY = re.compile(rf"[*_\\{{{_QUOTES}\s]*\Z")
_LINE_END = re.compile(r"[\n\r\v\f\x85\u2028\u2029}]")
_MAX_OBJECTS = 256


def _key_pattern(key: str) -> re.Pattern[str]:
    name = key.replace("_", r"\\?_")
    # `second_best_move` and `best_moves` are other keys; `_best_move_` is the key in italics.
    bounded = rf"(?<![a-z0-9])(?<![a-z0-9]_){name}(?!_*[a-z0-9])"
    # A JSON text that is not quite JSON may still have its value on the next line.
    next_line = r"(?:(?<=[\"'].)\s*(?=[\d\"'\[+-]))?"
    return re.compile(rf"{bounded}{_DECORATION}(?::=?|=>?){next_line}", re.IGNORECASE | re.ASCII)


_PATTERNS = {key: _key_pattern(key) for key in KEYS}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer in a text, still unread."""

    start: int
    end: int
    scope: str
    """The value and what follows it, up to the end of the answer, without quotes or brackets in front."""
    open_end: bool = False
    """Nothing closes the answer: it goes to the end of the text, so more of it may have been cut off."""
    strings: tuple[str, ...] | None = None
    """The other strings of the JSON object that is the answer; None for a written answer."""


def fold(text: str) -> str:
    """`text` with ASCII characters in place of full-width ones, the same length."""
    return text if text.isascii() else text.translate(_FULL_WIDTH)


def find_answers(text: str, key: str) -> list[Answer]:
    """All answers with `key`, in order, in a folded text."""
    if key not in text and key.replace("_", "") not in text.lower().replace("_", "").replace("\\", ""):
        return []
    objects = list(_json_answers(text, key)) if "{" in text else []
    written = [
        answer
        for answer in _written_answers(text, key)
        if not any(found.start <= answer.start < found.end for found in objects)
    ]
    return sorted(objects + written, key=lambda answer: answer.start)


def last_answer(text: str) -> Answer | None:
    """The last answer with either key, readable or not."""
    folded = fold(text)
    answers = [answer for key in KEYS for answer in find_answers(folded, key)]
    return max(answers, key=lambda answer: answer.start, default=None)


def without_ending(text: str) -> str:
    """What was said before the last answer; of a JSON answer, its other strings, if it has any."""
    answer = last_answer(text)
    if answer is None:
        return text.strip()
    if answer.strings:
        return "\n".join(answer.strings)
    start = start_of_ending(text, answer) if answer.strings is None else answer.start
    return _OPEN_FENCE.sub("", text[:start]).strip()


def start_of_ending(text: str, answer: Answer) -> int:
    """Where the quotes and emphasis before a key begin."""
    decoration = _BEFORE_KEY.search(text, 0, answer.start)
    return decoration.start() if decoration else answer.start


def _written_answers(text: str, key: str) -> Iterator[Answer]:
    matches = list(_PATTERNS[key].finditer(text, _first_place(text, key)))
    limits = [match.start() for match in matches[1:]] + [len(text)]
    for match, limit in zip(matches, limits, strict=False):
        value = _VALUE_START.match(text, match.end(), limit)
        start = value.end() if value else match.end()
        in_list = text.find("[", match.end(), start) >= 0
        closing = text.find("]", start, limit) if in_list else -1
        line_end = _LINE_END.search(text, match.end(), limit)
        end = closing + 1 if closing >= 0 else line_end.start() if line_end else limit
        # In a list a comma separates items, with or without a space; elsewhere it may be a decimal comma.
        scope = text[start:end].replace(",", ", ") if in_list else text[start:end]
        yield Answer(match.start(), end, scope, open_end=end == len(text) and closing < 0)


def _first_place(text: str, key: str) -> int:
    """Before which no key can stand: looking for its first word is much quicker than for all its dresses."""
    return max(text.lower().find(key.partition("_")[0]), 0) if text.isascii() else 0


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its duplicate keys."""


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=str, parse_float=str, parse_constant=str, strict=False)


def _json_answers(text: str, key: str) -> Iterator[Answer]:
    """The outermost JSON objects that have the key."""
    if f'"{key}"' not in text.lower():
        return
    reached = 0
    for match in list(re.finditer(r"\{", text))[-_MAX_OBJECTS:]:
        if match.start() < reached:
            continue
        try:
            pairs, end = _DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        values = [_json_text(value) for name, value in pairs if name.lower() == key]
        if values:
            reached = end
            others = tuple(_strings([value for name, value in pairs if name.lower() not in KEYS]))
            yield Answer(match.start(), end, _value_of(values), strings=others)


def _value_of(values: list[str]) -> str:
    """One scope for the values of a key that may stand in an object several times."""
    scope = " or ".join(dict.fromkeys(values))
    start = _VALUE_START.match(scope)
    return scope[start.end() :] if start else scope


def _json_text(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{}"
    if isinstance(value, list):
        return f"[{', '.join(_json_text(item) for item in value)}]"
    return value if isinstance(value, str) else json.dumps(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, _Pairs):
        for _, item in value:
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
