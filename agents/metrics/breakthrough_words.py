"""What the words of a claim about Breakthrough mean, and what there is in the position that it is about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import wraps

from nlrl.agents.metrics.claims import Check, Context
from nlrl.envs.breakthrough import BreakthroughState, tactics
from nlrl.envs.breakthrough.board import Board

Decided = Iterable[tuple[str, bool]]
NOWHERE = -1
"""A cell of larger boards only."""
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_CELL = re.compile(r"(?<![a-z\d])[a-h][1-8](?!\w)", re.IGNORECASE)
_MOVE = re.compile(r"([a-h][1-8])(?: ?[-x] ?| to )?([a-h][1-8])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_SIDE = re.compile(r"\b(?:(?i:black|white)|I|[Mm]y(?! opponent)|[Oo]pponent)\b")
_SUPPOSED = re.compile(
    r"\b(?:if|after|once|when|whenever|unless|following|suppose|assuming|would|later)\b", re.IGNORECASE
)


# -- what the words mean -----------------------------------------------------------------------------------------------
def board(context: Context) -> Board:
    return context.game.board  # type: ignore[attr-defined]  # the game of these claims is Breakthrough


def group(match: re.Match[str], name: str) -> str | None:
    return match.groupdict().get(name)


def number(words: str) -> int:
    words = words.lower()
    return int(words) if words.isdigit() else 1 if words in ("a", "an") else _NUMBERS.index(words)


def cell(name: str, context: Context) -> int:
    names = board(context).cell_names
    return names.index(name.lower()) if name.lower() in names else NOWHERE


def cells(words: str | None, context: Context) -> set[int]:
    """The cells that a list names; "none" names no cell."""
    return {cell(name, context) for name in _CELL.findall(words or "")}


def moves(words: str | None, context: Context) -> set[tuple[int, int]]:
    """The moves that a list names, as the cells moved from and to."""
    return {(cell(a, context), cell(b, context)) for a, b in _MOVE.findall(words or "")}


def player(name: str | None, context: Context) -> int:
    """The player that "black", "I", "my" or "opponent" means; the writer where nobody is named."""
    words = (name or "I").lower()
    for player, own in enumerate(context.game.player_names):
        if own in words:
            return player
    return 1 - context.writer if "opponent" in words else context.writer


def subject(match: re.Match[str], context: Context) -> int:
    """The side of group `a`, else the one named last before the match in its sentence."""
    if group(match, "a"):
        return player(match["a"], context)
    sides = _SIDE.findall(before(match))
    return player(sides[-1] if sides else None, context)


def if_about_now(check: Check) -> Check:
    """`check`, but silent about what a sentence only supposes ("after e3d2 black can win at once")."""

    @wraps(check)
    def checked(match: re.Match[str], context: Context) -> Decided:
        return () if _SUPPOSED.search(before(match)) else check(match, context)

    return checked


def before(match: re.Match[str]) -> str:
    """What stands before the match in its sentence."""
    text = match.string[: match.start()]
    ends = [end.end() for end in _SENTENCE_END.finditer(text)]
    return text[ends[-1] :] if ends else text


def unless_denied(match: re.Match[str], true: bool) -> Decided:
    yield match.group(), true != bool(group(match, "not"))


# -- what the position is ----------------------------------------------------------------------------------------------
def pawns(context: Context, player: int) -> int:
    return context.position[player]


def owner(cell: int, position: BreakthroughState) -> int | None:
    if cell == NOWHERE:
        return None
    return next((player for player in (0, 1) if position[player] >> cell & 1), None)


def ways(actions: Iterable[int], player: int, context: Context) -> set[tuple[int, int]]:
    """Actions as the cells moved from and to."""
    moves = board(context).moves[player]
    return {(moves[action][0].bit_length() - 1, moves[action][1].bit_length() - 1) for action in actions}


def captures(player: int, context: Context) -> set[tuple[int, int]]:
    return ways(tactics.captures(board(context), context.position, player), player, context)


def wins(player: int, context: Context) -> set[tuple[int, int]]:
    if context.game.is_terminal(context.position):
        return set()
    return ways(tactics.winning_moves(board(context), context.position, player), player, context)


def positions(context: Context) -> Iterator[BreakthroughState]:
    """The position, and the one before the action."""
    yield context.position
    if context.action is not None:
        yield context.before
