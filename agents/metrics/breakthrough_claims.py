"""The checks behind `breakthrough_claims.toml`: what each phrase must be for the rules to call it true.

What is said about the pawn that moved is about the cell it came from or the one it went to.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from nlrl.agents.metrics import breakthrough_words as words
from nlrl.agents.metrics.claims import Check, ClaimPattern, Context, register_claims
from nlrl.agents.metrics.pattern_table import load_patterns
from nlrl.envs.breakthrough import tactics


# -- how many pawns ----------------------------------------------------------------------------------------------------
def _count(context: Context, player: int) -> int:
    return words.pawns(context, player).bit_count()


def both_counts(match: re.Match[str], context: Context) -> words.Decided:
    for side in ("a", "b"):
        said = match[f"{side}_n"]
        yield (
            f"{match[side]} has {said} pawns",
            _count(context, words.player(match[side], context)) == words.number(said),
        )


def equal_counts(match: re.Match[str], context: Context) -> words.Decided:
    counts, said = [_count(context, player) for player in (0, 1)], words.group(match, "n")
    yield match.group(), counts[0] == counts[1] and (said is None or counts[0] == words.number(said))


def _ahead(match: re.Match[str], context: Context, sign: int) -> words.Decided:
    player, said = words.player(match["a"], context), words.group(match, "n")
    lead = sign * (_count(context, player) - _count(context, 1 - player))
    yield match.group(), lead > 0 if said is None else lead == words.number(said)


def more_pawns(match: re.Match[str], context: Context) -> words.Decided:
    yield from _ahead(match, context, 1)


def fewer_pawns(match: re.Match[str], context: Context) -> words.Decided:
    yield from _ahead(match, context, -1)


def count(match: re.Match[str], context: Context) -> words.Decided:
    yield match.group(), _count(context, words.player(match["a"], context)) == words.number(match["n"])


# -- how far they have to go -------------------------------------------------------------------------------------------
def _foremost(context: Context, player: int) -> tuple[int, set[int]]:
    if not words.pawns(context, player):
        return 0, set()
    rows, cells = tactics.foremost(words.board(context), context.position, player)
    return rows, set(cells)


def both_foremost(match: re.Match[str], context: Context) -> words.Decided:
    for side in ("a", "b"):
        rows, cells = int(match[f"{side}_rows"]), words.cells(match[f"{side}_cells"], context)
        true = _foremost(context, words.player(match[side], context)) == (rows, cells)
        yield f"{match[side]} is {rows} from the far row with {match[f'{side}_cells']}", true


def foremost(match: re.Match[str], context: Context) -> words.Decided:
    said = words.cells(match["cells"], context)
    yield match.group(), bool(said) and said <= _foremost(context, words.player(match["a"], context))[1]


def rows_left(match: re.Match[str], context: Context) -> words.Decided:
    board, rows = words.board(context), words.number(match["n"])
    owners = {cell: words.owner(cell, context.position) for cell in words.cells(match["cells"], context)}
    true = all(o is not None and tactics.rows_to_go(board, o, cell) == rows for cell, o in owners.items())
    yield match.group(), true


# -- captures ----------------------------------------------------------------------------------------------------------
def all_captures(match: re.Match[str], context: Context) -> words.Decided:
    yield (
        match.group(),
        words.moves(match["moves"], context) == words.captures(words.player(match["a"], context), context),
    )


def pawn_takes(match: re.Match[str], context: Context) -> words.Decided:
    pairs = {(a, b) for a in words.cells(match["a_cells"], context) for b in words.cells(match["b_cells"], context)}
    yield match.group(), pairs <= words.captures(0, context) | words.captures(1, context)


def takes(match: re.Match[str], context: Context) -> words.Decided:
    targets = {target for _, target in words.captures(words.player(match["a"], context), context)}
    yield match.group(), words.cells(match["cells"], context) <= targets


def no_captures(match: re.Match[str], context: Context) -> words.Decided:
    players = [words.player(match["a"], context)] if words.group(match, "a") else [0, 1]
    yield match.group(), not any(words.captures(player, context) for player in players)


def is_attacked(match: re.Match[str], context: Context) -> words.Decided:
    board, position = words.board(context), context.position
    bits = tactics.attacked(board, position, 0) | tactics.attacked(board, position, 1)
    cells = words.cells(match["cells"], context)
    if words.group(match, "a"):
        bits &= position[1 - words.player(match["a"], context)]
    attacked = [cell != words.NOWHERE and bool(bits >> cell & 1) for cell in cells]
    yield match.group(), not any(attacked) if words.group(match, "not") else all(attacked)


def _guards(cell: int, context: Context) -> set[int] | None:
    """Who could take back on this cell; None where there is no pawn."""
    owner = words.owner(cell, context.position)
    return None if owner is None else set(tactics.guards(words.board(context), context.position, owner, cell))


def guarded(match: re.Match[str], context: Context) -> words.Decided:
    by = words.cells(words.group(match, "b_cells"), context)
    guards = [_guards(cell, context) for cell in words.cells(match["cells"], context)]
    yield from words.unless_denied(match, all(bool(found) and by <= found for found in guards))


def unguarded(match: re.Match[str], context: Context) -> words.Decided:
    yield match.group(), all(_guards(cell, context) == set() for cell in words.cells(match["cells"], context))


def hangs(match: re.Match[str], context: Context) -> words.Decided:
    board, position = words.board(context), context.position
    hanging = {cell for player in (0, 1) for cell in tactics.hanging(board, position, player)}
    yield match.group(), words.cells(match["cells"], context) <= hanging


# -- who can win at once -----------------------------------------------------------------------------------------------
def wins_by(match: re.Match[str], context: Context) -> words.Decided:
    """A winning move of anybody, or the action itself if it has won."""
    said, ended = words.moves(match["moves"], context), context.game.is_terminal(context.position)
    mover = context.before.player
    played = words.ways([context.action], mover, context) if ended and context.action is not None else set()
    players = [words.player(match["a"], context)] if words.group(match, "a") else [0, 1]
    yield match.group(), bool(said) and said <= played.union(*(words.wins(player, context) for player in players))


def pawn_wins(match: re.Match[str], context: Context) -> words.Decided:
    players = [words.player(match["a"], context)] if words.group(match, "a") else [0, 1]
    pawns = {pawn for player in players for pawn, _ in words.wins(player, context)}
    said = words.cells(match["cells"], context)
    yield match.group(), said <= pawns if said else not pawns


def reaches_at_once(match: re.Match[str], context: Context) -> words.Decided:
    targets = {target for _, target in words.wins(words.player(match["a"], context), context)}
    yield match.group(), words.cells(match["cells"], context) <= targets


def can_win(match: re.Match[str], context: Context) -> words.Decided:
    yield match.group(), bool(words.wins(words.player(match["a"], context), context))


def cannot_win(match: re.Match[str], context: Context) -> words.Decided:
    players = [words.player(match["a"], context)] if words.group(match, "a") else [0, 1]
    yield match.group(), not any(words.wins(player, context) for player in players)


# -- runners and aims --------------------------------------------------------------------------------------------------
def runs_free(match: re.Match[str], context: Context) -> words.Decided:
    board, position = words.board(context), context.position
    owners = {cell: words.owner(cell, position) for cell in words.cells(match["cells"], context)}
    true = all(o is not None and tactics.is_runner(board, position, o, cell) for cell, o in owners.items())
    yield from words.unless_denied(match, true)


def has_runner(match: re.Match[str], context: Context) -> words.Decided:
    found = tactics.runners(words.board(context), context.position, words.player(match["a"], context))
    yield match.group(), bool(found) == bool(words.number(match["n"]))


def _may_reach(cell: int, player: int, context: Context) -> bool:
    """Whether a pawn of the player is on this cell, or could get there if nothing were in its way."""
    board = words.board(context)
    for pawn in tactics.cells_of(words.pawns(context, player)):
        rows = tactics.rows_to_go(board, player, pawn) - tactics.rows_to_go(board, player, cell)
        if rows >= 0 and abs(pawn % board.columns - cell % board.columns) <= rows:
            return True
    return False


def own_aim(match: re.Match[str], context: Context) -> words.Decided:
    player = words.subject(match, context)
    cells = words.cells(match["cells"], context)
    yield match.group(), all(cell != words.NOWHERE and _may_reach(cell, player, context) for cell in cells)


def their_aim(match: re.Match[str], context: Context) -> words.Decided:
    player = 1 - words.subject(match, context)
    cells = words.cells(match["cells"], context)
    yield match.group(), all(cell != words.NOWHERE and _may_reach(cell, player, context) for cell in cells)


# -- where pawns stand -------------------------------------------------------------------------------------------------
def whole_board(match: re.Match[str], context: Context) -> words.Decided:
    for player, group in enumerate(("a_cells", "b_cells")):
        held = set(tactics.cells_of(words.pawns(context, player)))
        yield f"{context.game.player_names[player]} on {match[group]}", words.cells(match[group], context) == held
    if words.group(match, "cells"):
        free = words.board(context).full & ~(context.position.black | context.position.white)
        yield f"free {match['cells']}", words.cells(match["cells"], context) == set(tactics.cells_of(free))


def holds(match: re.Match[str], context: Context) -> words.Decided:
    player, cells = words.player(match["a"], context), words.cells(match["cells"], context)
    where = [{cell for cell in cells if words.owner(cell, position) == player} for position in words.positions(context)]
    # Of the pawn that moved, either place may be meant; of the others both positions say the same.
    yield from words.unless_denied(match, bool(cells) and cells <= set().union(*where))


def empty(match: re.Match[str], context: Context) -> words.Decided:
    cells = words.cells(match["cells"], context)
    true = all(cell != words.NOWHERE and words.owner(cell, context.position) is None for cell in cells)
    yield from words.unless_denied(match, true)


def taken(match: re.Match[str], context: Context) -> words.Decided:
    owners = [words.owner(cell, context.position) for cell in words.cells(match["cells"], context)]
    yield from words.unless_denied(match, all(owner is not None for owner in owners))


# -- the rest ----------------------------------------------------------------------------------------------------------
def mobility(match: re.Match[str], context: Context) -> words.Decided:
    found = tactics.moves(words.board(context), context.position, words.player(match["a"], context))
    yield match.group(), len(found) == words.number(match["n"])


def to_move(match: re.Match[str], context: Context) -> words.Decided:
    yield match.group(), context.game.current_player(context.position) == words.player(match["a"], context)


def arrives(match: re.Match[str], context: Context) -> words.Decided:
    board, position = words.board(context), context.position
    arrived = position.black & board.goals[0] | position.white & board.goals[1]
    yield match.group(), words.cells(match["cells"], context) == set(tactics.cells_of(arrived))


def takes_all(match: re.Match[str], context: Context) -> words.Decided:
    yield match.group(), not all(words.pawns(context, player) for player in (0, 1))


def playable(match: re.Match[str], context: Context) -> words.Decided:
    """One claim for each move of a list."""
    legal = set()
    for position in words.positions(context):
        mover = position.player
        if not context.game.is_terminal(position):
            legal |= words.ways(context.game.legal_actions(position), mover, context)
    for move in sorted(words.moves(match["moves"], context)):
        yield match.group(), move in legal


_ABOUT_NOW: tuple[Check, ...] = (
    *(pawn_takes, takes, no_captures, is_attacked, guarded, unguarded, hangs),
    *(wins_by, pawn_wins, reaches_at_once, can_win, cannot_win, runs_free, has_runner),
)
_CHECKS: tuple[Check, ...] = (
    *(both_counts, equal_counts, more_pawns, fewer_pawns, count, both_foremost, foremost, rows_left, all_captures),
    *map(words.if_about_now, _ABOUT_NOW),
    *(own_aim, their_aim, whole_board, holds, empty, taken, mobility, to_move, arrives, takes_all, playable),
)


@cache
def breakthrough_claims() -> tuple[ClaimPattern, ...]:
    """The table of `breakthrough_claims.toml`."""
    checks = {check.__name__: check for check in _CHECKS}  # type: ignore[attr-defined]  # they are functions
    table = load_patterns(Path(__file__).with_suffix(".toml"), "claims")
    return tuple(ClaimPattern(group["kind"], pattern, checks[group["check"]]) for group, pattern in table)


register_claims("breakthrough", breakthrough_claims)
