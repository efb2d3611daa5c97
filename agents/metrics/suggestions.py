"""Moves that a text suggests, found in any game by the form that its moves have.

A move is recognised by its shape: `b4a3*` is letter, digit, letter, digit, perhaps a star, so `z9a3` is a move too, an
illegal one. Moves without a digit (`move left`) are recognised as they are.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from nlrl.agents.metrics.pattern_table import load_patterns
from nlrl.envs.game import Game

_NO_MOVE = r"(?![\w%]|[.,:/-]\d| (?:games?|times|turns?|moves?|steps?|rows?|lines?|pawns?|pieces?)\b)"
"""What may not follow: a longer number, or something that is counted."""


def suggestion_patterns(game: Game[Any], state: Any) -> list[re.Pattern[str]]:
    """Phrases that suggest a move; their group `move` is the move's text."""
    return _patterns(_word(game, state))


def is_legal(game: Game[Any], state: Any, text: str) -> bool:
    """Whether a text names a legal move. The star that marks a capture may be missing: prose need not be so exact."""
    legal = {game.action_text(state, action) for action in game.legal_actions(state)}
    return text in legal or f"{text}*" in legal


def _word(game: Game[Any], state: Any) -> str:
    """A regular expression for whatever has the form of a move."""
    shapes = {_shape(text) for text in _texts(game, state)}
    return "(?:" + "|".join(sorted(shapes, key=lambda shape: (-len(shape), shape))) + ")" if shapes else "(?!)"


def _texts(game: Game[Any], state: Any) -> set[str]:
    return {game.action_text(state, action) for action in game.legal_actions(state)}


def _shape(text: str) -> str:
    if not any(character.isdigit() for character in text):
        return rf"\b{re.escape(text)}\b".replace(r"\ ", " ")
    runs = [(kind, "".join(run)) for kind, run in groupby(text.rstrip("*"), _kind)]
    parts = [{"letter": rf"[a-z]{{{len(run)}}}", "digit": r"\d+"}.get(kind, re.escape(run)) for kind, run in runs]
    return rf"(?<![\w.,+-]){''.join(parts)}\*?{_NO_MOVE}"


def _kind(character: str) -> str:
    return "digit" if character.isdigit() else "letter" if character.isalpha() else "other"


@lru_cache(maxsize=256)
def _patterns(word: str) -> list[re.Pattern[str]]:
    path = Path(__file__).with_suffix(".toml")
    return [pattern for _, pattern in load_patterns(path, "suggestions", {"word": word})]
