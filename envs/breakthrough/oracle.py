"""Exact values of Breakthrough positions, found by search when they are asked for.

1. A value is +1 or -1, for there are no draws; every winning move is best, and in a lost position every move is.
2. The oracle keeps what it finds, so later questions about related positions are cheaper. `save` writes that to a file,
   which new oracles for boards of the same size start with. Nothing is written unless `save` is called.
3. A search that would take too long is an error (`value`, `q_values`) or None (`distance`), never a guess.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from nlrl.envs.breakthrough.board import BLACK, BreakthroughState
from nlrl.envs.breakthrough.rules import Breakthrough
from nlrl.envs.breakthrough.solver import NO, STOPPED, UNBOUNDED, WIN, YES, ask, known, new_search
from nlrl.envs.breakthrough.table import default_path, load_table, new_table, save_table
from nlrl.envs.oracle import Oracle
from nlrl.errors import NLRLError

Pawns = tuple[np.uint64, np.uint64]
"""The mover's bitboard and the enemy's, as the solver sees them."""
_FIRST_SHARE = 30_000
_LARGEST_SHARE = 1_000_000
"""Nodes of one call of the solver: about a second at most, so that Ctrl-C is heard."""


class BreakthroughOracle(Oracle[BreakthroughState]):
    """Perfect play, on boards of any size as far as `node_limit` nodes reach (a million take about a second).

    `table` is a file that `save` wrote; None takes the one in the cache folder (`$NLRL_CACHE`, else `~/.cache/nlrl`) if
    it is there and good.

    Raises:
        NLRLError: the file `table` is missing, damaged, or of another board.
    """

    def __init__(self, game: Breakthrough, table: str | Path | None = None, node_limit: int = 20_000_000):
        self.game: Breakthrough = game
        self.node_limit = node_limit
        self.nodes = 0
        """Nodes that the searches of this oracle have taken."""
        size = game.rows, game.columns
        words = load_table(Path(table), *size) if table is not None else _kept_table(*size)
        self._search = new_search(*size, words)

    def value(self, state: BreakthroughState) -> float:
        """+1 if the player to move wins, -1 if he loses; 0 in a terminal state.

        Raises:
            NLRLError: the search was given up after `node_limit` nodes.
        """
        if self.game.is_terminal(state):
            return 0.0
        return 1.0 if self._wins(self._pawns(state)) else -1.0

    def q_values(self, state: BreakthroughState) -> dict[int, float]:
        """Legal action -> value, from the mover's view.

        Raises:
            NLRLError: the search was given up after `node_limit` nodes a position.
        """
        actions = self.game.legal_actions(state)
        if self.value(state) < 0:
            return dict.fromkeys(actions, -1.0)
        return {action: self._value_of(state, action) for action in actions}

    def distance(self, state: BreakthroughState) -> int | None:
        """Plies to the end if the winner hurries and the loser delays; 0 in a terminal state. None where `node_limit`
        nodes do not tell (5x5 from the start: 26, found in seconds)."""
        if self.game.is_terminal(state):
            return 0
        pawns = self._pawns(state)
        try:
            wins = self._wins(pawns)
        except NLRLError:
            return None
        left = self.node_limit
        lower, upper = known(*pawns, self._search)
        least = WIN - upper if wins else WIN + lower
        for plies in range(least + (least % 2 != wins), UNBOUNDED, 2):  # the winner moves last
            answer, left = self._ask_within(pawns, plies, wins, left)
            if answer != NO:
                return plies if answer == YES else None
        return None

    def save(self, path: str | Path | None = None) -> Path:
        """Writes all that is known to a file (None: in the cache folder) and returns its path.

        Raises:
            NLRLError: the file cannot be written.
        """
        size = self.game.rows, self.game.columns
        path = default_path(*size) if path is None else Path(path)
        save_table(path, self._search.table, *size)
        return path

    # -- questions to the solver ---------------------------------------------------------------------------------------
    def _pawns(self, state: BreakthroughState) -> Pawns:
        """White's view is the board turned by 180 degrees."""
        black, white, player = state
        if player == BLACK:
            return np.uint64(black), np.uint64(white)
        return np.uint64(self._turned(white)), np.uint64(self._turned(black))

    def _turned(self, bits: int) -> int:
        return int(f"{bits:0{self.game.board.cells}b}"[::-1], 2)

    def _value_of(self, state: BreakthroughState, action: int) -> float:
        step = self.game.apply(state, action)
        return step.rewards[state.player] or -self.value(step.state)

    def _wins(self, pawns: Pawns) -> bool:
        """Whether the mover wins.

        Two searches take turns with ever larger shares: one asks for a win at all, the other for one within a number of
        plies that grows. The first is faster on small boards, the second where a large board has a short win.
        """
        left, share, plies = self.node_limit, _FIRST_SHARE, 4
        while left > 0:
            answer, _ = self._ask_within(pawns, UNBOUNDED, True, min(share, left))
            if answer != STOPPED:
                return answer == YES
            budget = min(share // 8, left - share)
            left -= share + budget
            while budget > 0 and plies < UNBOUNDED:
                answer, budget = self._ask_within(pawns, plies, plies % 2 == 1, budget)
                if answer == YES:
                    return plies % 2 == 1
                plies += answer == NO
            share *= 2
        raise NLRLError(self._too_hard())

    def _ask_within(self, pawns: Pawns, plies: int, attacking: bool, nodes: int) -> tuple[int, int]:
        """The answer, and the nodes that are left; several calls of the solver, so that Ctrl-C is heard."""
        while nodes > 0:
            answer = int(ask(*pawns, plies, attacking, min(nodes, _LARGEST_SHARE), self._search))
            used = int(self._search.counters[0])
            nodes -= used
            self.nodes += used
            if answer != STOPPED:
                return answer, nodes
        return STOPPED, 0

    def _too_hard(self) -> str:
        return (
            f"{self.game.spec}: no proof of this position in {self.node_limit:,} nodes. Boards of up to 25 cells are "
            "solved from the start (8x3 with at most two rows of pawns), larger ones near the end of a game; a larger "
            "node_limit of BreakthroughOracle reaches further"
        )


def _kept_table(rows: int, columns: int):
    """The table in the cache folder if there is a good one; a bad one is reported and left alone."""
    path = default_path(rows, columns)
    if path.exists():
        try:
            return load_table(path, rows, columns)
        except NLRLError as error:
            warnings.warn(f"solving without the kept table: {error}", stacklevel=3)
    return new_table(rows, columns)
