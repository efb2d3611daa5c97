"""Checks the atomic claims of a text against the rules: who wins where, which lines are open, what is legal or taken.

1. A *claim* is a phrase that rules can decide. Phrases are data, a table a game (`tictactoe_claims.toml`), each with
   the check that decides it; what no pattern matches is not a claim and is neither counted nor judged.
2. A text is about a state, or about an action in a state. In the second case its facts are about the position after the
   action, except where they speak of the action itself ("playing 5 blocks X").
   Where chance has a say in what the action leads to, facts are about the state before it.
3. The writer ("I") is the player to move in the given state.
4. For every game, the moves that a text suggests (`suggestions.toml`) and the move that it ends with are claims to be
   legal, of kind `LEGAL_MOVE`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nlrl.agents.endings import MOVE_KEY, find_answers, fold
from nlrl.agents.metrics.suggestions import is_legal, suggestion_patterns
from nlrl.agents.parser import ParseFailure, parse_move
from nlrl.envs.game import Game

LEGAL_MOVE = "legal_move"
"""The kind of a claim that a move is legal: where it is false, the text suggests an illegal move."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One decided phrase."""

    text: str
    kind: str
    true: bool


@dataclass(frozen=True, slots=True)
class Context:
    """What a check may look at."""

    game: Game
    before: Any
    """The state that was given."""
    position: Any
    """The state that facts are about: `before`, or the state after `action` where there is only one."""
    writer: int
    action: int | None = None


Check = Callable[[re.Match[str], Context], Iterable[tuple[str, bool]]]
"""Decides a match: the words of each claim in it, and whether it is true."""


@dataclass(frozen=True, slots=True)
class ClaimPattern:
    """One phrase and the check that decides it."""

    kind: str
    pattern: re.Pattern[str]
    check: Check


_TABLES: dict[str, Callable[[], Sequence[ClaimPattern]]] = {}


def register_claims(game_name: str, table: Callable[[], Sequence[ClaimPattern]]) -> None:
    """Makes a game's claims known. Where matches overlap, the earlier pattern counts; `table` is called when needed."""
    _TABLES[game_name] = table


def check_claims(text: str, game: Game, state: Any, action: int | None = None) -> list[Claim]:
    """The claims of a text, in order.

    Args:
        state: what the text is about; its player to move is the writer.
        action: of a text that evaluates this action in `state` (Q).

    Raises:
        ValueError: `action` is illegal in `state`.
    """
    context = Context(game, state, _position(game, state, action), game.current_player(state), action)
    found: list[tuple[int, Claim]] = []
    taken: list[tuple[int, int]] = []
    for row in (*_TABLES.get(game.name, tuple)(), *_suggestions(context)):
        for match in row.pattern.finditer(text):
            start, end = match.span()
            if not any(start < other_end and other_start < end for other_start, other_end in taken):
                taken.append((start, end))
                found.extend((start, Claim(words, row.kind, true)) for words, true in row.check(match, context))
    found.sort(key=lambda item: item[0])
    return [claim for _, claim in found] + _ending_claim(text, context)


def _position(game: Game, state: Any, action: int | None) -> Any:
    outcomes = () if action is None else game.transitions(state, action)
    return outcomes[0].state if len(outcomes) == 1 else state


def _suggestions(context: Context) -> list[ClaimPattern]:
    patterns = suggestion_patterns(context.game, context.before)
    return [ClaimPattern(LEGAL_MOVE, pattern, _playable) for pattern in patterns]


def _playable(match: re.Match[str], context: Context) -> Iterable[tuple[str, bool]]:
    """Playable before the action, which includes the action itself, or after it, as a reply."""
    states = (context.before, context.position)
    yield match.group(), any(is_legal(context.game, state, match["move"]) for state in states)


def _ending_claim(text: str, context: Context) -> list[Claim]:
    answers = find_answers(fold(text), MOVE_KEY)
    if not answers:
        return []
    move = parse_move(text, context.game, context.before)
    true = not isinstance(move, ParseFailure)
    return [Claim(f"{MOVE_KEY}: {answers[-1].scope.strip()[:20]}", LEGAL_MOVE, true)]
