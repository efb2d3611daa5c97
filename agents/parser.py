"""Reads the machine-readable ending of an answer: a move, a verdict or a choice. A failure is data, never a guess.

1. `agents/endings.py` finds the answers: the keys `best_move` and `final_evaluation` in any dress. Prose without the
   key is "missing", however clear it is, and so is a key whose value is empty or null.
2. The last answer wins. Nothing before the last `</think>` is an answer, nor is a placeholder (`best_move: N`, `...`,
   `<move>`).
3. An answer starts with its value; words may follow. A move is what `Game.parse_action` says it is: "12" is never 1. A
   second, different move that is joined to the first by nothing but separators and joining words ("5 or 6", `[5, 6]`,
   "5/6", "5 6") makes the answer "ambiguous".
4. A verdict is a decimal number in [-1, 1]; a typographic minus and a decimal comma ("-0,5") are read as such. Words,
   percentages, fractions and NaN are "malformed", numbers beyond the range "out_of_range". A second, different signed
   number in the answer ("-0.5 for O, +0.5 for X") makes it "ambiguous".
5. Text cut by the token limit is "truncated" if its answer may go on: "best_move: 1" may have been 12.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from nlrl.agents.endings import EVALUATION_KEY, MOVE_KEY, find_answers, fold
from nlrl.envs.game import Game

FailureReason = Literal[
    "empty", "missing", "truncated", "ambiguous", "illegal", "not_candidate", "malformed", "out_of_range", "error"
]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """Why an answer could not be used, and the words that show it."""

    reason: FailureReason
    detail: str = ""


def parse_move(text: str, game: Game, state: Any, finish_reason: str = "stop") -> int | ParseFailure:
    """The legal action that the answer names.

    Args:
        finish_reason: of the completion: "stop", "length" or "error".
    """
    plain = _plain_move(text, game, state) if finish_reason == "stop" else None
    if plain is not None:
        return plain
    return _parse(text, finish_reason, _Form(MOVE_KEY, lambda scope: _move_prefix(scope, game, state), "illegal"))


def _plain_move(text: str, game: Game, state: Any) -> int | None:
    """The legal move of an answer whose last line is just as prompts ask for it: what all other readings would find, in
    an eighth of the time. None: read on."""
    before, key, move = text.rpartition(_PLAIN_ENDING)
    if not key or len(move) > _MAX_MOVE_LENGTH or not move.removesuffix("*").isalnum():
        return None
    return game.parse_action(state, move) if text.isascii() and "{" not in before else None


def parse_choice(
    text: str, candidates: Collection[int], game: Game, state: Any, finish_reason: str = "stop"
) -> int | ParseFailure:
    """The action that an improvement answer names; a legal move that was not offered is "not_candidate"."""
    move = parse_move(text, game, state, finish_reason)
    if isinstance(move, ParseFailure) or move in candidates:
        return move
    offered = ", ".join(game.action_text(state, action) for action in candidates)
    return ParseFailure("not_candidate", f"{game.action_text(state, move)} is not one of {offered}")


def parse_evaluation(text: str, finish_reason: str = "stop") -> float | ParseFailure:
    """The verdict in [-1, 1], from the view that the prompt asked for."""
    value = _parse(text, finish_reason, _Form(EVALUATION_KEY, _number_prefix, "malformed", rivals=_SIGNED))
    if isinstance(value, ParseFailure):
        return value
    return value + 0.0 if -1 <= value <= 1 else ParseFailure("out_of_range", f"{value} is not in [-1, 1]")


_JOINING_WORDS = "or|and|then|maybe|perhaps|possibly|also|alternatively|otherwise|else|to|oder|und|ou|et|vel"
_GAP = re.compile(rf"(?:[\s,;/|&+()\[\]\"'`*\\>-]|→|\b(?:{_JOINING_WORDS})\b)*", re.IGNORECASE)
_WORD = re.compile(r"[^\s,;/|&\"'`()\[\]{}<>]+")
_MAY_GO_ON = re.compile(r"[\s,.;:/|&+(\[-]*\w*\Z")
_NO_VALUE = re.compile(r"(?:[,;)\]].*|(?:null|none|n/a)\b.*)?\Z", re.IGNORECASE | re.DOTALL)
_PLACEHOLDER = re.compile(r"(?:[Nn]|\.\.\.|…|\?+|<[^<>\n]*>|\{\w*\Z)(?![\w/])")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d+)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SIGNED = re.compile(r"(?<![\w.-])[+-]\d*[.,]?\d+", re.ASCII)
_NOT_A_VERDICT = re.compile(r"\s*(?:[%/\u2030\u2044]|percent|out of)")
_MINUS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-"))
_MAX_MOVE_LENGTH = 48
_PLAIN_ENDING = f"\n{MOVE_KEY}: "

Reader = Callable[[str], "tuple[Value, int] | None"]
"""Reads a value at the start of a string: the value and where it ends."""


@dataclass(frozen=True, slots=True)
class _Form(Generic[Value]):
    """What an answer of one kind looks like."""

    key: str
    read: Reader[Value]
    otherwise: FailureReason
    """The failure when there is something that cannot be read."""
    rivals: re.Pattern[str] | None = None
    """Anywhere in the answer, these are other values."""


def _parse(text: str, finish_reason: str, form: _Form[Value]) -> Value | ParseFailure:
    cut = finish_reason == "length"
    if finish_reason == "error":
        return ParseFailure("error", "the request failed")
    if not text.strip():
        return ParseFailure("truncated" if cut else "empty")
    spoken = fold(text).rpartition("</think>")[2]
    if cut and ("<think>" in spoken or _ends_in_key(spoken, form.key)):
        return ParseFailure("truncated", spoken[-40:])
    for answer in reversed(find_answers(spoken, form.key)):
        first = form.read(answer.scope)
        if first is not None or not _PLACEHOLDER.match(answer.scope):
            return _read_answer(answer.scope, first, cut and answer.open_end, form)
    return ParseFailure("truncated", spoken[-40:]) if cut else ParseFailure("missing", f"no {form.key}")


def _ends_in_key(text: str, key: str) -> bool:
    last_word = re.split(r"[^a-z_]", text[-len(key) :].lower())[-1]
    return len(last_word) >= 3 and key.startswith(last_word)


def _read_answer(
    scope: str, first: tuple[Value, int] | None, may_be_cut: bool, form: _Form[Value]
) -> Value | ParseFailure:
    """The value that `scope` starts with, `first`, if it is complete and the only one."""
    word = _WORD.match(scope)
    end = first[1] if first else word.end() if word else 0
    shown = scope.strip()[:80]
    if may_be_cut and _MAY_GO_ON.match(scope, end):
        return ParseFailure("truncated", shown)
    if first is None:
        empty = _NO_VALUE.match(scope)
        return ParseFailure("missing", f"{form.key} has no value") if empty else ParseFailure(form.otherwise, shown)
    return ParseFailure("ambiguous", shown) if _names_another(scope, *first, form) else first[0]


def _names_another(scope: str, value: Value, end: int, form: _Form[Value]) -> bool:
    """Whether a value other than `value`, which ends at `end`, is part of the same answer."""
    if form.rivals:
        unquoted = scope[end:].split('"')[0].translate(_MINUS)  # what follows a quote is another field of a JSON text
        rivals = (form.read(match.group()) for match in form.rivals.finditer(unquoted))
        if any(rival and rival[0] != value for rival in rivals):
            return True
    first = scope[:end]
    while True:
        end = _GAP.match(scope, end).end()  # type: ignore[union-attr]  # matches anything
        following = form.read(scope[end:])
        if following is None:
            word = _WORD.match(scope, end)
            return bool(word) and "9" in (shape := _shape(first)) and _shape(word.group().rstrip(".!?*_")) == shape
        if following[0] != value:
            return True
        end += following[1]


def _shape(token: str) -> str:
    """A move's form without its content, `a9a9*` for `b4a3*`: by it an illegal alternative still counts as one."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", token))


def _move_prefix(scope: str, game: Game, state: Any) -> tuple[int, int] | None:
    """The longest legal move that the scope starts with."""
    for end in range(min(len(scope), _MAX_MOVE_LENGTH), 0, -1):
        if scope[end - 1].isspace() or not _ends_token(scope, end):
            continue
        action = game.parse_action(state, scope[:end])
        if action is not None:
            return action, end
    return None


def _number_prefix(scope: str) -> tuple[float, int] | None:
    scope = scope.translate(_MINUS)
    match = _NUMBER.match(scope)
    if match is None or not _ends_token(scope, match.end()) or _NOT_A_VERDICT.match(scope, match.end()):
        return None
    return float(match.group().replace(",", ".")), match.end()


def _ends_token(scope: str, end: int) -> bool:
    """Whether a value may end here: not inside a number, a word or an emoji made of a digit."""
    if end == len(scope):
        return True
    follower, after = scope[end], scope[end + 1 : end + 2]
    kind = unicodedata.category(follower)
    if kind[0] in "LNM" or kind == "Cf" or follower in "%^":
        return False
    if follower in ".:":
        return not after.isdigit()
    glue = kind in ("Pd", "Pc") or follower == "\u2212"
    return not (glue and after.isalnum())
