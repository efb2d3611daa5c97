"""The checks behind `maze_claims.toml`: what each phrase must be for the rules to call it true.

Rows and columns count from 0, as in the game's texts. Distances are those of a breadth-first search.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from nlrl.agents.metrics.claims import Check, ClaimPattern, Context, register_claims
from nlrl.agents.metrics.pattern_table import load_patterns
from nlrl.envs.maze.grid import Grid
from nlrl.envs.maze.state import DIRECTIONS, Cell

Decided = Iterable[tuple[str, bool]]
_SIDES = {"above": "up", "below": "down"}


def _grid(context: Context) -> Grid:
    return context.game.grid  # type: ignore[attr-defined]  # the game of these claims is a maze


def _place(match: re.Match[str]) -> Cell:
    return int(match["row"]), int(match["column"])


def _ways(match: re.Match[str]) -> set[str]:
    """The directions that a list names."""
    words: list[str] = re.findall(r"left|right|up|down|above|below", match["ways"].lower())
    return {_SIDES.get(word, word) for word in words}


def _walls(context: Context) -> set[str]:
    """The directions in which the walker runs into a wall."""
    walls = _grid(context).walls[context.position.cell]
    return {name for bit, name in enumerate(DIRECTIONS) if walls >> bit & 1}


def goal_place(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _place(match) == _grid(context).goal


def walker_place(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _place(match) == context.position.cell


def goal_way(match: re.Match[str], context: Context) -> Decided:
    said = match.groupdict()
    rows = int(said.get("rows") or 0) * (1 if said.get("vertical") == "down" else -1)
    columns = int(said.get("columns") or 0) * (1 if said.get("across") == "right" else -1)
    row, column = context.position.cell
    yield match.group(), (row + rows, column + columns) == _grid(context).goal


def distance(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _grid(context).distance[context.position.cell] == int(match["steps"])


def all_walls(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _ways(match) == _walls(context)


def all_open(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _ways(match) == set(DIRECTIONS) - _walls(context)


def some_walls(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), _ways(match) <= _walls(context)


def some_open(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), not _ways(match) & _walls(context)


def arrives(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), context.position.cell == _grid(context).goal


def bumps(match: re.Match[str], context: Context) -> Decided:
    yield match.group(), context.action is not None and context.position.cell == context.before.cell


_CHECKS: tuple[Check, ...] = (
    *(goal_place, walker_place, goal_way, distance),
    *(all_walls, all_open, some_walls, some_open, arrives, bumps),
)


@cache
def maze_claims() -> tuple[ClaimPattern, ...]:
    """The table of `maze_claims.toml`."""
    checks = {check.__name__: check for check in _CHECKS}  # type: ignore[attr-defined]  # they are functions
    table = load_patterns(Path(__file__).with_suffix(".toml"), "claims")
    return tuple(ClaimPattern(group["kind"], pattern, checks[group["check"]]) for group, pattern in table)


register_claims("maze", maze_claims)
