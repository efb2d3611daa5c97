"""Do the words of a text agree with the number it ends with?

1. A *judgement* is a phrase that says how well a side stands: "X is clearly better", "a likely draw". Each goes with an
   interval of verdicts (`consistency.toml`); phrases in which a game's own sentences word a verdict go with its band.
2. A text's judgement is its last one: prose argues for both sides before it concludes. What is said of the opponent is
   turned around. A text without a judgement is silent, and neither agrees nor disagrees.
3. A text may also write its number into the prose ("I put X at +0.50"); that must be the number it ends with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.agents.language import BANDS, band
from nlrl.agents.metrics.pattern_table import load_patterns
from nlrl.envs.game import Game

ROUNDING = 0.005 + 1e-9
"""Verdicts are written with two decimals."""
Bands = Mapping[str, Sequence[str]]
"""Band name (`nlrl.agents.language.BANDS`) -> the phrases that word it."""


class Judgement(NamedTuple):
    """A phrase and the verdicts of the player to move that it goes with."""

    text: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Consistency:
    """What a text says beside its verdict; None where it says nothing of the kind."""

    judgement: Judgement | None
    words_agree: bool | None
    number: float | None
    """The verdict that the prose states, from the view of the player to move."""
    number_agrees: bool | None


def check_consistency(
    text: str, verdict: float, game: Game[Any], state: Any, bands: Bands | None = None
) -> Consistency:
    """Compares a text's words and its stated number with its verdict.

    Args:
        text: without its machine-readable ending.
        verdict: in [-1, 1], from the view of the player to move in `state`.
        bands: how the game's own sentences word verdicts; where a text uses one, that decides.
    """
    mover = game.current_player(state)
    judgement = _last_band(text, game, mover, bands) if bands else None
    judgement = judgement or _last_judgement(text, game, mover)
    said = stated_number(text, game, state)
    agrees = None if judgement is None else judgement.low - ROUNDING <= verdict <= judgement.high + ROUNDING
    return Consistency(judgement, agrees, said, None if said is None else abs(said - verdict) <= ROUNDING)


def stated_number(text: str, game: Game[Any], state: Any) -> float | None:
    """The last verdict that the prose gives a side ("I put X at +0.50"), from the view of the player to move."""
    found = list(_stated(game.player_names).finditer(text))
    if not found:
        return None
    sign = _sign(found[-1]["side"], game, game.current_player(state))
    return sign * float(found[-1]["number"].replace(",", ".")) + 0.0


def without_judgements(text: str, game: Game[Any], bands: Bands | None = None) -> str:
    """The text without the phrases that judge: what is left are facts, lines and moves."""
    for phrases in (bands or {}).values():
        for phrase in phrases:
            text = re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)", " ", text, flags=re.IGNORECASE)
    for _, pattern in _judgements(game.player_names):
        text = pattern.sub(" ", text)
    return text


# -- judgements --------------------------------------------------------------------------------------------------------
_UNREAL = re.compile(
    r"\b(?:if|unless|whether|until)\b[^.;!?]*\Z|\b(?:would|could|might|not|never|hardly|avoids?|without)\b[^.,;!?]*\Z",
    re.IGNORECASE,
)
"""Before a judgement, in its clause: what is conditional or denied is no judgement."""
_SENTENCE = re.compile(r"[.!?](?=\s|\Z)|\n")


def _last_judgement(text: str, game: Game[Any], mover: int) -> Judgement | None:
    found: list[tuple[int, int, Judgement]] = []
    for row, pattern in _judgements(game.player_names):
        for match in pattern.finditer(text):
            start, end = match.span()
            if any(start < other_end and other_start < end for other_start, other_end, _ in found):
                continue
            if not _UNREAL.search(_clause_before(text, start)):
                sign = _sign(match.groupdict().get("side"), game, mover)
                found.append((start, end, _turned(match.group(), row["low"], row["high"], sign)))
    return max(found, key=lambda item: item[0])[2] if found else None


def _last_band(text: str, game: Game[Any], mover: int, bands: Bands) -> Judgement | None:
    """The last of the game's own phrases, about the side that its clause names last before it."""
    found: list[tuple[int, int, Judgement]] = []
    for name, low, high in _band_ranges():
        for phrase in bands.get(name, ()):
            for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE):
                sides = _names(game.player_names).findall(_clause_before(text, match.start()))
                sign = _sign(sides[-1] if sides else None, game, mover)
                found.append((match.start(), match.end(), _turned(match.group(), low, high, sign)))
    return max(found, key=lambda item: (item[1], -item[0]))[2] if found else None  # of two at one place, the longer


def _band_ranges() -> list[tuple[str, float, float]]:
    bounds = [1.0, *(bound for bound, _ in BANDS), -1.0]
    return [(band((low + high) / 2), low, high) for high, low in pairwise(bounds)]


def _turned(text: str, low: float, high: float, sign: int) -> Judgement:
    return Judgement(text, low, high) if sign > 0 else Judgement(text, -high, -low)


def _clause_before(text: str, position: int) -> str:
    before = text[:position]
    ends = [end.end() for end in _SENTENCE.finditer(before)]
    return before[ends[-1] :] if ends else before


# -- sides -------------------------------------------------------------------------------------------------------------
def _sign(side: str | None, game: Game[Any], mover: int) -> int:
    """+1 where the player to move is meant, -1 where its opponent is."""
    if side is None or game.num_players == 1:
        return 1
    word = side.split()[-1].lower()
    names = [name.lower() for name in game.player_names]
    if word in names:
        return 1 if names.index(word) == mover else -1
    return -1 if "opponent" in word else 1


def _name_pattern(names: tuple[str, ...]) -> str:
    own = "|".join(rf"(?-i:{re.escape(name)})" if len(name) == 1 else re.escape(name) for name in names)
    return rf"(?:(?:the |player |side )*(?:{own})\b|(?-i:I)\b|(?:(?:my|the|your|their) )?opponent\b)"


@lru_cache(maxsize=64)
def _names(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b{_name_pattern(names)}", re.IGNORECASE)


@lru_cache(maxsize=64)
def _judgements(names: tuple[str, ...]) -> list[tuple[dict[str, Any], re.Pattern[str]]]:
    return load_patterns(Path(__file__).with_suffix(".toml"), "judgements", {"name": _name_pattern(names)})


@lru_cache(maxsize=64)
def _stated(names: tuple[str, ...]) -> re.Pattern[str]:
    verb = r"(?:stands?\s+at|is\s+at|at|is)"
    return re.compile(rf"\b(?P<side>{_name_pattern(names)})\s+{verb}\s+(?P<number>[+-]\d+(?:[.,]\d+)?)", re.IGNORECASE)
