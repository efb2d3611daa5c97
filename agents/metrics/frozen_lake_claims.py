"""The checks behind `frozen_lake_claims.toml`: what each phrase must be for the rules to call it true.

Rows and columns count from 1. On slippery ice a text about a move speaks of the position before it, because where the
move leads is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from nlrl.agents.frozen_lake_language import EDGE, beside, cell_of, goals_of
from nlrl.agents.metrics.claims import Check, ClaimPattern, Context, register_claims
from nlrl.agents.metrics.pattern_table import load_patterns
from nlrl.envs.frozen_lake import ACTIONS, FrozenLakeState, lake_of

Decided = Iterable[tuple[str, bool]]
_SIDES = {"above": "up", "below": "down"}
_KINDS = {"safe": "ice", "frozen": "ice", "holes": "hole", "water": "hole", "border": EDGE, "boundary": EDGE}


def _tile_at(state: FrozenLakeState, row: int, column: int) -> str:
    """The letter of the map there; "" outside it."""
    lake = lake_of(state.map)
    inside = 1 <= row <= lake.rows and 1 <= column <= lake.columns
    return lake.tiles[(row - 1) * lake.columns + column - 1] if inside else ""


def _place(match: re.Match[str]) -> tuple[int, int]:
    return int(match["row"]), int(match["column"])


def row_of_holes(match: re.Match[str], context: Context) -> Decided:
    state, row = context.position, int(match["row"])
    columns = range(1, lake_of(state.map).columns + 1)
    holes = {column for column in columns if _tile_at(state, row, column) == "H"}
    yield match.group(), holes == {int(column) for column in match["columns"].split()}


def no_holes(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), "H" not in context.position.map


def goal_place(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _place(match) in goals_of(context.position.map)


def hole_place(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _tile_at(context.position, *_place(match)) == "H"


def player_place(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _place(match) == cell_of(context.position)


def goal_way(match: re.Match[str], context: Context) -> Decided:
    """True of any goal that lies so."""
    said = match.groupdict()
    rows = int(said.get("rows") or 0) * (1 if said.get("vertical") == "down" else -1)
    columns = int(said.get("columns") or 0) * (1 if said.get("across") == "right" else -1)
    row, column = cell_of(context.position)
    yield match.group(), (row + rows, column + columns) in goals_of(context.position.map)


def _is_beside(match: re.Match[str], state: FrozenLakeState) -> bool:
    way, tile = match["way"].lower(), match["tile"].lower()
    return beside(state, ACTIONS.index(_SIDES.get(way, way))) == _KINDS.get(tile, tile)


def leads_to(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _is_beside(match, context.before)


def lies_beside(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _is_beside(match, context.position)


def arrives(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _tile_at(context.position, *cell_of(context.position)) == "G"


def falls(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _tile_at(context.position, *cell_of(context.position)) == "H"


def stays(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), context.position == context.before


_CHECKS: tuple[Check, ...] = (
    *(row_of_holes, no_holes, goal_place, hole_place, player_place, goal_way),
    *(leads_to, lies_beside, arrives, falls, stays),
)


@cache
def frozen_lake_claims() -> tuple[ClaimPattern, ...]:
    """The table of `frozen_lake_claims.toml`."""
    checks = {check.__name__: check for check in _CHECKS}  # type: ignore[attr-defined]  # they are functions
    table = load_patterns(Path(__file__).with_suffix(".toml"), "claims")
    return tuple(ClaimPattern(group["kind"], pattern, checks[group["check"]]) for group, pattern in table)


register_claims("frozen_lake", frozen_lake_claims)
