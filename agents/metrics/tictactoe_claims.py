"""The checks behind `tictactoe_claims.toml`: what each phrase must be for the rules to call it true."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from nlrl.agents.metrics.claims import Check, ClaimPattern, Context, register_claims
from nlrl.agents.metrics.pattern_table import load_patterns
from nlrl.envs import tictactoe as rules

Decided = Iterable[tuple[str, bool]]
_CELL_WORD = re.compile(r"[1-9]|\b(?:top|upper|middle|centre|center|bottom|lower|left|right)\b", re.IGNORECASE)
_ROWS = {"top": 0, "upper": 0, "bottom": 6, "lower": 6}
_COLUMNS = {"left": 0, "right": 2}
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_OBJECT = "".join(rf"(?<!\b{verb} )" for verb in ("block", "blocks", "blocking", "stops", "against"))
_SIDE = re.compile(rf"{_OBJECT}\b(?:[OX]|I|[Mm]y(?! opponent)|[Oo]pponent)\b")


def cells_named(words: str) -> set[int]:
    """The cells (0 to 8) that a list names by number or by place; "none" names no cell."""
    cells, place = set(), []
    for part in re.split(r"\band\b|\bor\b|,", words.lower()):
        tokens = _CELL_WORD.findall(part)
        cells.update(int(token) - 1 for token in tokens if token.isdigit())
        place = [token for token in tokens if not token.isdigit()]
        if place:
            row = next((_ROWS[token] for token in place if token in _ROWS), 3)
            cells.add(row + next((_COLUMNS[token] for token in place if token in _COLUMNS), 1))
    return cells


def _group(match: re.Match[str], name: str) -> str | None:
    return match.groupdict().get(name)


def _player(name: str | None, context: Context) -> int:
    """The player that "O", "X", "I", "my" or "opponent" means; the writer where nobody is named."""
    words = (name or "I").split()
    if words[-1] in context.game.player_names:
        return context.game.player_names.index(words[-1])
    return 1 - context.writer if "opponent" in words[-1].lower() else context.writer


def _subject(match: re.Match[str], context: Context) -> int:
    """The side named last before the match in its sentence."""
    if _group(match, "a"):
        return _player(_group(match, "a"), context)
    text = match.string[: match.start()]
    ends = [end.end() for end in _SENTENCE_END.finditer(text)]
    sides = _SIDE.findall(text, ends[-1] if ends else 0)
    return _player(sides[-1] if sides else None, context)


def _state_for(cell: int, context: Context) -> rules.TicTacToeState:
    """What is said about the action itself is about the state before it."""
    return context.before if cell == context.action else context.position


def _wins(cell: int, player: int, context: Context) -> bool:
    return cell in rules.winning_cells(_state_for(cell, context), player)


def all_winning_cells(match: re.Match[str], context: Context) -> Decided:
    for side in ("a", "b"):
        words = _group(match, f"{side}_cells") or "none"
        true = cells_named(words) == set(rules.winning_cells(context.position, _player(match[side], context)))
        yield f"{match[side]} wins at {words}", true


def some_winning_cells(match: re.Match[str], context: Context) -> Decided:
    player, cells = _player(_group(match, "a"), context), cells_named(match["cells"])
    if cells:
        yield match.group(), all(_wins(cell, player, context) for cell in cells)
    else:
        yield match.group(), not rules.winning_cells(context.position, player)


def no_winning_cells(match: re.Match[str], context: Context) -> Decided:
    players = [_player(match["a"], context)] if _group(match, "a") else [0, 1]
    yield match.group(), not any(rules.winning_cells(context.position, player) for player in players)


def blocks(match: re.Match[str], context: Context) -> Decided:
    blocked = _player(match["b"], context) if _group(match, "b") else 1 - _subject(match, context)
    yield match.group(), all(_wins(cell, blocked, context) for cell in cells_named(match["cells"]))


def _line(match: re.Match[str]) -> rules.Line:
    first, second, third = sorted(int(cell) - 1 for cell in match["line"].split("-"))
    return first, second, third


def completed_line(match: re.Match[str], context: Context) -> Decided:
    """A line that is complete, or that one move (of its two pieces' owner) would complete."""
    line = _line(match)
    players = [_player(match["a"], context)] if _group(match, "a") else [0, 1]
    if context.game.is_terminal(context.position):
        true = any(line in rules.won_lines(context.position, player) for player in players)
    else:
        true = any(
            line in rules.open_lines(context.position, player)
            and any(cell in line for cell in rules.winning_cells(context.position, player))
            and sum(context.position[player] >> cell & 1 for cell in line) == 2
            for player in players
        )
    yield match.group(), true


def own_open_line(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _line(match) in rules.open_lines(context.position, _subject(match, context))


def their_open_line(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _line(match) in rules.open_lines(context.position, 1 - _subject(match, context))


def blocked_line(match: re.Match[str], context: Context) -> Decided:
    players = [_player(match["a"], context)] if _group(match, "a") else [0, 1]
    line = _line(match)
    closed = not any(line in rules.open_lines(context.position, player) for player in players)
    yield match.group(), line in rules.LINES and closed


def is_line(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _line(match) in rules.LINES


def _on(cells: Iterable[int], board: int) -> bool:
    return all(board >> cell & 1 for cell in cells)


def whole_board(match: re.Match[str], context: Context) -> Decided:
    position = context.position
    free = rules.free_cells(position)
    for player, group in enumerate(("o_cells", "x_cells")):
        held = {cell for cell in range(9) if position[player] >> cell & 1}
        yield f"{context.game.player_names[player]} on {match[group]}", cells_named(match[group]) == held
    yield f"free {match['cells']}", cells_named(match["cells"]) == set(free)


def holds(match: re.Match[str], context: Context) -> Decided:
    held = _on(cells_named(match["cells"]), context.position[_player(match["a"], context)])
    yield match.group(), held != bool(_group(match, "not"))


def free(match: re.Match[str], context: Context) -> Decided:
    cells = cells_named(match["cells"])
    is_free = cells <= set(rules.free_cells(context.position))
    yield match.group(), is_free != bool(_group(match, "not"))


def taken(match: re.Match[str], context: Context) -> Decided:
    is_taken = _on(cells_named(match["cells"]), context.position.o | context.position.x)
    yield match.group(), is_taken != bool(_group(match, "not"))


def to_move(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), context.game.current_player(context.position) == _player(match["a"], context)


def board_full(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), not rules.free_cells(context.position)


def nobody_won(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), not any(rules.won_lines(context.position, player) for player in (0, 1))


def playable(match: re.Match[str], context: Context) -> Decided:
    legal = {*context.game.legal_actions(context.position), context.action}
    yield match.group(), cells_named(match["cells"]) <= legal


_CHECKS: tuple[Check, ...] = (
    *(all_winning_cells, some_winning_cells, no_winning_cells, blocks),
    *(completed_line, own_open_line, their_open_line, blocked_line, is_line),
    *(whole_board, holds, free, taken, to_move, board_full, nobody_won, playable),
)


@cache
def tictactoe_claims() -> tuple[ClaimPattern, ...]:
    """The table of `tictactoe_claims.toml`."""
    checks = {check.__name__: check for check in _CHECKS}  # type: ignore[attr-defined]  # they are functions
    table = load_patterns(Path(__file__).with_suffix(".toml"), "claims")
    return tuple(ClaimPattern(group["kind"], pattern, checks[group["check"]]) for group, pattern in table)


register_claims("tictactoe", tictactoe_claims)
