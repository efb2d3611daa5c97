"""Minimax to a given depth: sees what can be forced within so many moves and guesses beyond.

Alpha-beta pruning as in Knuth and Moore (1975), fail-soft. The root's moves are compared exactly: a move is dropped
only once it is known to be worse than the best, so that equally good ones stay and are played alike. With a depth that
reaches every end of the game it is the opponent `minimax`.
"""

from __future__ import annotations

from math import inf, nextafter
from typing import Any

from nlrl.envs.game import Game
from nlrl.envs.opponent import Distribution, legal_moves, require_two_players
from nlrl.errors import NLRLError

_REMEMBERED = 100_000
"""States whose moves are kept at a time."""


class DepthLimitedMinimax(Distribution):
    """Every move that looks best alike, from a search `depth` moves deep.

    Where the search stops before the game ends, `Game.heuristic` guesses.

    Raises:
        NLRLError: the depth is not a positive integer; the game is for one player, or chance has a say in it.
    """

    def __init__(self, game: Game[Any], depth: int):
        self.name = f"minimax({depth})"
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise NLRLError(f"{self.name!r}: the depth must be a positive integer, not {depth!r}")
        require_two_players(game, self.name)
        _require_no_chance(game, self.name)
        self._game, self._depth, self._highest = game, depth, game.value_range[1]
        self._known: dict[Any, dict[int, float]] = {}

    def policy(self, state: Any) -> dict[int, float]:
        if state not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            best = self._best(state)
            self._known[state] = dict.fromkeys(best, 1 / len(best))
        return self._known[state]

    def _best(self, state: Any) -> list[int]:
        player, best, found = self._game.current_player(state), -inf, list[int]()
        for action in legal_moves(self._game, state):
            beaten = nextafter(best, -inf)  # values from `best` on are exact, those of worse moves only bounds
            value = self._after(state, action, player, self._depth, beaten, inf)
            if value > best:
                best, found = value, []
            if value == best:
                found.append(action)
        return found

    def _after(self, state: Any, action: int, player: int, depth: int, alpha: float, beta: float) -> float:
        return -self._search(self._game.apply(state, action).state, 1 - player, depth - 1, -beta, -alpha)

    def _search(self, state: Any, player: int, depth: int, alpha: float, beta: float) -> float:
        """The value for `player`, who is to move: exact between `alpha` and `beta`, outside only a bound."""
        if self._game.is_terminal(state):
            return self._game.returns(state)[player]
        if depth == 0:
            return self._guess(state)
        enough, best = min(beta, self._highest), -inf
        for action in self._game.legal_actions(state):
            best = max(best, self._after(state, action, player, depth, alpha, beta))
            if best >= enough:
                break
            alpha = max(alpha, best)
        return best

    def _guess(self, state: Any) -> float:
        value, (low, high) = self._game.heuristic(state), self._game.value_range
        if not low <= value <= high:
            raise ValueError(f"{self._game.spec}: heuristic must lie in {low} to {high}, not {value} in {state}")
        return value


def _require_no_chance(game: Game[Any], name: str) -> None:
    for state in game.initial_states():
        for action in game.legal_actions(state):
            if len(game.transitions(state, action)) > 1:
                raise NLRLError(f"{name!r} needs a game without chance, and {game.spec} has some")
