"""Exact results of a tabulated agent in a game for one player, over chance and up to the longest game.

Values are those of a walk that begins in a state with all of `Game.max_length` moves before it, as everywhere where
prompts do not tell how many are left: see `nlrl.orchestration.players`; or, as `targets.horizon` may want it, the mean
over walks of all lengths up to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlrl.agents.language import GameLanguage, Line
from nlrl.envs.game import Game, Step

Floats = NDArray[np.float64]
Table = Mapping[Any, Mapping[int | None, float]]


class WalkResults(NamedTuple):
    """What a walk is worth, and how it ends."""

    return_: float
    score: float
    """The expected verdict, in [-1, 1]; see `GameLanguage.score`."""
    win: float
    loss: float
    cut: float
    forfeit: float


_RETURN, _SCORE, _WIN, _LOSS, _CUT, _FORFEIT = range(len(WalkResults._fields))


class ExactWalks:
    """The agent of a table, from every state that it can come to from `starts`.

    Args:
        table: state -> moves and their weights; None as a move is a reply that names no legal one.
        horizon: as `targets.horizon`: "full", or "uniform" for walks of 1 to `max_length` moves, each as likely.

    Raises:
        KeyError: the table has no moves for a state that the agent can get into.
    """

    def __init__(
        self, game: Game[Any], language: GameLanguage, table: Table, starts: Iterable[Any], horizon: str = "full"
    ):
        self.game, self.language = game, language
        self._row = {state: row for row, state in enumerate(dict.fromkeys(starts))}
        self._states = list(self._row)
        edges, paid = self._explore(table)
        columns = np.array(edges, dtype=np.float64).reshape(-1, 3).T
        self._from, self._to = columns[0].astype(np.intp), columns[1].astype(np.intp)
        self._probability, self._paid = columns[2], np.array(paid).reshape(-1, len(WalkResults._fields))
        self._ends = np.array([game.is_terminal(state) for state in self._states], dtype=bool)
        lengths = range(1 if horizon == "uniform" else game.max_length, game.max_length + 1)
        self._values = np.mean([self._sweep(longest) for longest in lengths], axis=0)

    def results(self, state: Any) -> WalkResults:
        """Of walks that begin in one of the states; with a uniform horizon the means over all lengths.

        Raises:
            KeyError: the agent cannot come to this state.
        """
        return WalkResults(*self._values[0][self._row[state]].tolist())

    def after(self, state: Any, action: int) -> float:
        """The expected score of a walk that begins in `state` with `action`, which leads to known states."""
        steps = self.game.transitions(state, action)
        return sum(step.probability * float(self._values[1][self._row[step.state], _SCORE]) for step in steps)

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _explore(self, table: Table) -> tuple[list[tuple[int, int, float]], list[Floats]]:
        """(from row, to row, probability) of every step, and what each row pays at once."""
        edges: list[tuple[int, int, float]] = []
        paid = []
        for here, state in enumerate(self._states):  # grows while it is read
            now = np.zeros(len(WalkResults._fields))
            for weight, step in self._steps(state, table):
                if step is None:
                    score = self.language.forfeit_score(Line((state,), ()))
                    now[[_SCORE, _FORFEIT]] += weight * score, weight
                    continue
                there = self._row.setdefault(step.state, len(self._states))
                if there == len(self._states):
                    self._states.append(step.state)
                now[_RETURN] += weight * step.rewards[0]
                edges.append((here, there, weight))
            paid.append(now)
        return edges, paid

    def _steps(self, state: Any, table: Table) -> Iterable[tuple[float, Step[Any] | None]]:
        """What may follow, with probabilities; None is a forfeit."""
        if self.game.is_terminal(state):
            return
        moves = table[state]
        total = sum(moves.values())
        for action, weight in moves.items():
            if not weight:
                continue
            if action is None:
                yield weight / total, self.game.invalid_step(state)
                continue
            for step in self.game.transitions(state, action):
                yield weight / total * step.probability, step

    def _sweep(self, longest: int) -> tuple[Floats, Floats]:
        """(states, results) at the beginning of a walk of at most `longest` moves, and after its first move."""
        value, after = self._at_end(longest, cut=True), np.zeros(0)
        value[~self._ends, _RETURN] = self.game.truncation_reward
        value[~self._ends, _CUT] = 1.0
        for moves in reversed(range(longest)):
            after, ended = value, self._at_end(moves, cut=False)
            value = np.where(self._ends[:, None], ended, self._paid + self._expect(after))
        return value, after

    def _expect(self, after: Floats) -> Floats:
        weighted = after[self._to] * self._probability[:, None]
        count = len(self._states)
        columns = [np.bincount(self._from, column, minlength=count) for column in weighted.T]
        return np.stack(columns, axis=1).astype(np.float64)

    def _at_end(self, moves: int, cut: bool) -> Floats:
        """(states, results) of walks that are over after so many moves; of open states, if they are cut then."""
        value = np.zeros((len(self._states), len(WalkResults._fields)))
        for row in range(len(self._states)) if cut else np.flatnonzero(self._ends):
            value[row, _SCORE] = self.language.score_at(self._states[row], moves)
        won = [bool(end) and self.game.won(state, 0) for state, end in zip(self._states, self._ends, strict=True)]
        value[:, _WIN] = won
        value[:, _LOSS] = self._ends & ~np.array(won, dtype=bool)
        return value


def mean_results(walks: ExactWalks, starts: Iterable[Any]) -> WalkResults:
    """Over starts, each as likely."""
    return WalkResults(*np.mean([walks.results(start) for start in starts], axis=0).tolist())
