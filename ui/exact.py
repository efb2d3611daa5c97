"""Exact values of positions, for the viewer: of best play, from the view of the player to move, as verdicts.

1. Tabulated games (Tic-Tac-Toe, FrozenLake, mazes) are exact everywhere. Breakthrough is solved by search, position by
   position, within a number of nodes and a time; what is not found then is unknown, with the reason, never a guess.
2. Values are those with all of a game's moves left: what a text is asked about does not say how many are.
3. A search starts at a game's last position: late ones are quick, and what is found there helps the earlier ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nlrl.agents.language import language_of
from nlrl.envs.breakthrough import Breakthrough
from nlrl.envs.game import Game
from nlrl.envs.oracle import oracle_for
from nlrl.envs.values import Oracle
from nlrl.errors import NLRLError

NODES = 2_000_000
"""Of the solver, for each question about a position: about two seconds at most."""
SECONDS = 8.0
"""For all positions of one game."""


class Exact(NamedTuple):
    """What is known of one position."""

    value: float | None = None
    """Of best play, in [-1, 1]; None where it is not known, and where the game is over."""
    q: dict[int, float | None] = {}  # noqa: RUF012 - never written to
    """Of each legal move; None where it is not known."""
    reason: str = ""
    """Why something is not known."""

    @property
    def best(self) -> tuple[int, ...]:
        """The moves of the highest value; empty where they are not known."""
        if self.value is None:
            return ()
        return tuple(action for action, value in self.q.items() if value is not None and value >= self.value - 1e-6)


@dataclass
class Solver:
    """Exact values of one game's positions, within a time.

    Raises:
        NLRLError: the game has no exact values.
    """

    game: Game[Any]
    seconds: float = SECONDS
    nodes: int = NODES
    clock: Callable[[], float] = time.monotonic
    _known: dict[Any, Exact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._oracle = _oracle(self.game, self.nodes)
        self._deadline = self.clock() + self.seconds
        self._scale = _scale(self.game)

    def exact(self, state: Any) -> Exact:
        """What is known of a position."""
        if state not in self._known:
            self._known[state] = self._solve(state)
        return self._known[state]

    def _solve(self, state: Any) -> Exact:
        legal = self.game.legal_actions(state)
        if not legal:
            return Exact()
        if self.clock() > self._deadline:
            return Exact(None, dict.fromkeys(legal), f"not looked for: the {self.seconds:g} seconds for a game were up")
        try:
            q = self._oracle.q_values(state)
            return Exact(self._scaled(max(q.values()), state), {a: self._scaled(v, state) for a, v in q.items()})
        except NLRLError as error:
            return self._partly(state, legal, str(error).split(". ")[0])

    def _partly(self, state: Any, legal: Sequence[int], reason: str) -> Exact:
        """Move by move: a winning one decides, however little is known of the others."""
        q = {action: self._after(state, action) for action in legal}
        known = [value for value in q.values() if value is not None]
        highest = self._scaled(self.game.value_range[1], state)
        won = bool(known) and max(known) >= highest - 1e-6
        return Exact(max(known) if known and (won or len(known) == len(q)) else None, q, reason)

    def _after(self, state: Any, action: int) -> float | None:
        steps = self.game.transitions(state, action)
        if len(steps) > 1 or self.clock() > self._deadline:
            return None
        mover, step = self.game.current_player(state), next(iter(steps))
        try:
            later = 0.0 if self.game.is_terminal(step.state) else self._oracle.value(step.state)
        except NLRLError:
            return None
        sign = 1 if self.game.current_player(step.state) == mover else -1
        return self._scaled(step.rewards[mover] + sign * later, state)

    def _scaled(self, value: float, state: Any) -> float:
        verdict = self._scale(value, state)
        return max(-1.0, min(1.0, verdict)) + 0.0 if math.isfinite(verdict) else 0.0


def exact_values(game: Game[Any], states: Sequence[Any], seconds: float = SECONDS, nodes: int = NODES) -> list[Exact]:
    """Of the positions of a game, in order; with the reason everywhere where the game has none."""
    try:
        solver = Solver(game, seconds, nodes)
    except NLRLError as error:
        return [Exact(None, dict.fromkeys(game.legal_actions(state)), str(error)) for state in states]
    for state in reversed(states):
        solver.exact(state)
    return [solver.exact(state) for state in states]


def _oracle(game: Game[Any], nodes: int) -> Oracle[Any]:
    if isinstance(game, Breakthrough):
        from nlrl.envs.breakthrough.oracle import BreakthroughOracle

        return BreakthroughOracle(game, node_limit=nodes)
    return oracle_for(game)


def _scale(game: Game[Any]) -> Callable[[float, Any], float]:
    """From a return to a verdict; of a game without a language, by its range of returns."""
    try:
        return language_of(game).verdict_of_value
    except NLRLError:
        low, high = game.value_range
        return lambda value, state: 2 * (value - low) / (high - low) - 1 if high > low else 0.0
