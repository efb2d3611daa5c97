"""Reads evaluations under four headings that end with the side that stands better, as in the paper's Breakthrough
experiment (arXiv 2411.14251, section 4.2): tactical considerations, positional evaluation, suggested moves, advantage.

1. A heading stands at the start of a line, in any dress: numbered, bulleted, emphasised, with a colon or on a line of
   its own. What follows it, up to the next heading, is its section; of a heading that comes twice the last counts.
2. The advantage is a tag with a player's name, `<white>` or `<black>`, behind the last heading "Advantage"; without
   that heading, behind the last word "Advantage" with a capital. Prose without the tag is "missing", however clear it
   is; tags of both players are "ambiguous".
3. Nothing before the last `</think>` counts.
4. As a verdict the tag is a certain win or loss. Where a text has a number, too (`final_evaluation: +0.40`), the number
   counts; a number for one side and a tag for the other make the text "ambiguous".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from nlrl.agents.endings import EVALUATION_KEY, find_answers, fold
from nlrl.agents.parser import ParseFailure, parse_evaluation
from nlrl.envs.game import Game

HEADINGS = ("Tactical Considerations", "Positional Evaluation", "Suggested Moves", "Advantage")
_NAMES = {"tactical": HEADINGS[0], "positional": HEADINGS[1], "suggested": HEADINGS[2], "advantage": HEADINGS[3]}
_DRESS = r"[*_#>\s`\"']*"
_LINE_DRESS = r"[*_#>\t `\"']*"
"""Within a line: if it went on over the next ones, a text of empty lines would be read once from each of them."""
_HEADING = re.compile(
    rf"^{_LINE_DRESS}(?:(?:\d+[.):]|[-\u2022+]){_DRESS})?"
    rf"(?:(?P<first>tactical|positional|suggested)[ _-](?:consideration|evaluation|move)s?|(?P<last>advantage))"
    rf"[*_`\"']*[ \t]*(?:[:\u2013\u2014-]|$)[*_`\"']*",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"\bA(?:dvantage|DVANTAGE)\b")


class Report(NamedTuple):
    """An evaluation, taken apart."""

    tactical: str
    positional: str
    suggested: str
    advantage: int
    """The player who stands better: an index of the names given."""


def read_sections(text: str) -> dict[str, str]:
    """The sections by the headings' names, in the order of `HEADINGS`; without those that are not there."""
    spoken = _spoken(text)
    matches = list(_HEADING.finditer(spoken))
    ends = [match.start() for match in matches[1:]] + [len(spoken)]
    found = {_name(match): spoken[match.end() : end].strip() for match, end in zip(matches, ends, strict=False)}
    return {name: found[name] for name in HEADINGS if name in found}


def parse_report(text: str, names: Sequence[str], finish_reason: str = "stop") -> Report | ParseFailure:
    """An evaluation with all four headings, none of them empty.

    Args:
        names: of the players, as tags name them.
        finish_reason: of the completion: "stop", "length" or "error".
    """
    advantage = parse_advantage(text, names, finish_reason)
    if isinstance(advantage, ParseFailure):
        return advantage
    sections = read_sections(text)
    for name in HEADINGS:
        if not sections.get(name):
            return ParseFailure("missing", f"{'no' if name not in sections else 'nothing under the'} heading {name!r}")
    tactical, positional, suggested, _ = sections.values()
    return Report(tactical, positional, suggested, advantage)


def parse_advantage(text: str, names: Sequence[str], finish_reason: str = "stop") -> int | ParseFailure:
    """The player whose tag the conclusion holds: an index of `names`."""
    if finish_reason == "error":
        return ParseFailure("error", "the request failed")
    cut = finish_reason == "length"
    spoken = _spoken(text)
    if not spoken.strip() or (cut and "<think>" in spoken):
        return ParseFailure("truncated" if cut else "empty")
    start = _start_of_conclusion(spoken)
    if start is None:
        return ParseFailure("truncated", spoken[-40:]) if cut else ParseFailure("missing", "no Advantage")
    conclusion = spoken[start:]
    tagged = [player for player, name in enumerate(names) if _tag(name).search(conclusion)]
    if len(tagged) == 1:
        return tagged[0]
    shown = conclusion.strip()[:80]
    if tagged:
        return ParseFailure("ambiguous", shown)
    return ParseFailure("truncated" if cut else "missing", shown)


def parse_verdict(text: str, game: Game[Any], state: Any, finish_reason: str = "stop") -> float | ParseFailure:
    """The verdict of an evaluation, in [-1, 1] from the view of the player to move in `state`."""
    number = parse_evaluation(text, finish_reason)
    if game.num_players != 2 or "advantage" not in text.lower():
        return number
    side = parse_advantage(text, game.player_names, finish_reason)
    if isinstance(side, ParseFailure):
        return number
    tag = 1.0 if side == game.current_player(state) else -1.0
    if isinstance(number, ParseFailure):
        return tag if number.reason == "missing" and not find_answers(fold(text), EVALUATION_KEY) else number
    if number * tag < 0:
        return ParseFailure("ambiguous", f"{number:+.2f} but <{game.player_names[side]}>")
    return number


def _start_of_conclusion(spoken: str) -> int | None:
    headings = [match.end() for match in _HEADING.finditer(spoken) if match["last"]]
    words = headings or [match.end() for match in _WORD.finditer(spoken)]
    return words[-1] if words else None


def _tag(name: str) -> re.Pattern[str]:
    return re.compile(rf"<\s*/?\s*{re.escape(name)}\s*>", re.IGNORECASE)


def _name(heading: re.Match[str]) -> str:
    return _NAMES[(heading["first"] or heading["last"]).lower()]


def _spoken(text: str) -> str:
    return fold(text).rpartition("</think>")[2]
