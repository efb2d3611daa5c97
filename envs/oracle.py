"""The exact truth about a game: how good states and moves are, and how good a policy is.

1. Values are expected returns *still to come*, in units of the game's returns, from the view of the player to move. A
   terminal state has none left: its value is 0, and what it paid was the reward of the move that led to it.
2. `Oracle` is what every game offers: the value of best play, the best moves, the regret of a move. `TabularOracle`
   computes it, and the value of any given policy, best responses and outcome probabilities, for games small enough to
   enumerate.
3. Where states can recur (mazes), a value is that with `max_length` actions left to play.
4. A policy need not be given everywhere. A value that depends on a state where it is not given is NaN; a scalar result
   that does is a ValueError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, Generic, Literal, NamedTuple, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.game import Game
from nlrl.envs.state_table import Floats, Policy, StateTable, state_table

State = TypeVar("State", bound=Hashable)
Mask = NDArray[np.bool_]
Backup = Callable[[Floats], Floats]
"""From values of pairs to values of states."""
Objective = Literal["return", "wins"]
_TOLERANCE = 1e-9
"""Values closer than this are equal: sums of a few hundred probabilities differ by less."""


class Oracle(ABC, Generic[State]):
    """Exact values of one way to play."""

    game: Game[State]

    @abstractmethod
    def q_values(self, state: State) -> dict[int, float]:
        """Legal action -> expected return from here on, from the mover's view. Empty in a terminal state."""

    @abstractmethod
    def value(self, state: State) -> float:
        """Expected return from here on, from the mover's view. 0 in a terminal state."""

    def best_actions(self, state: State) -> tuple[int, ...]:
        """The legal actions of the highest value, in increasing order; empty in a terminal state."""
        q_values = self.q_values(state)
        best = max(q_values.values(), default=0.0)
        return tuple(action for action, q in q_values.items() if q >= best - _TOLERANCE)

    def regret(self, state: State, action: int) -> float:
        """How much less than the best action this one is worth (at least 0).

        Raises:
            ValueError: the action is not legal.
        """
        q_values = self.q_values(state)
        if action not in q_values:
            raise ValueError(f"{self.game.spec}: action {action!r} is illegal in {state}; legal: {tuple(q_values)}")
        return max(q_values.values()) - q_values[action]


class Values(Oracle[State]):
    """Values of all states (`v`, shape (states,)) and pairs (`q`, shape (pairs,)) of a table, from the mover's view."""

    def __init__(self, table: StateTable[State], v: Floats, q: Floats):
        self.game, self.table, self.v, self.q = table.game, table, v, q

    def value(self, state: State) -> float:
        return float(self.v[self.table.row_of(state)])

    def q_values(self, state: State) -> dict[int, float]:
        pairs = self.table.pairs_of(state)
        return dict(zip(self.table.pair_action[pairs].tolist(), self.q[pairs].tolist(), strict=True))

    def at_start(self, player: int) -> float:
        """The mean value of the initial states, from `player`'s view."""
        initial = self.table.initial
        return float(np.mean(self.v[initial] * np.where(self.table.player[initial] == player, 1.0, -1.0)))


class Outcome(NamedTuple):
    """Probabilities of how a game ends, from player 0's view. An unfinished game (`max_length` reached) is a draw."""

    win: float
    draw: float
    loss: float

    def swapped(self) -> Outcome:
        """The same from player 1's view."""
        return Outcome(self.loss, self.draw, self.win)


class Response(NamedTuple):
    """A best response: what it plays and what that is worth."""

    policy: Floats
    """(pairs,) uniform over the best actions of its seat; NaN in the other seat's states and where it is unknown."""
    values: Values[Any]
    """Of the response in its seat against the given policy: returns, or for "wins" +1 if the response wins, else 0."""


class TabularOracle(Values[State]):
    """Everything exact about an enumerable game with one or two players, deterministic or with chance.

    Itself it answers for best play on both sides. The table is enumerated once per process and game; every method is a
    few vectorised sweeps over it.

    Raises:
        NLRLError: the game has too many states to enumerate.
    """

    def __init__(self, game: Game[State]):
        self.table = state_table(game)
        self._sign = np.where(self.table.player == 1, -1.0, 1.0)
        self._pair_player = self.table.player[self.table.pair_state]
        self._pair_sign = self._sign[self.table.pair_state]
        optimal = self._sweep(lambda q: self._sign * self.table.max_actions(self._pair_sign * q), self.table.reward)
        super().__init__(self.table, optimal.v, optimal.q)

    # -- values --------------------------------------------------------------------------------------------------------
    def policy_value(self, policy: Policy, opponent: Policy | None = None, seat: int = 0) -> Values[State]:
        """V^pi and Q^pi of `policy` playing `seat` and `opponent` playing the other one (None: `policy` plays both).

        Raises:
            ValueError: a policy is not a distribution over legal moves.
        """
        return self._sweep(self._follow(self._joint(policy, opponent, seat)), self.table.reward)

    def best_response(self, opponent: Policy, seat: int, objective: Objective = "return") -> Response:
        """The best that `seat` can do against `opponent` in the other seat.

        With objective "wins" it maximises the probability of winning and does not tell a draw from a loss.

        Raises:
            ValueError: `opponent` is not a distribution over legal moves.
        """
        mine = self._pair_player == seat
        theirs = np.where(mine, 0.0, self.table.probabilities(opponent))
        values = self._respond(theirs, seat, self._win_reward(seat) if objective == "wins" else self.table.reward)
        highest = values.v[self.table.pair_state]
        best = np.where(mine & ~np.isnan(highest), values.q >= highest - _TOLERANCE, np.nan)
        return Response(best / self.table.sum_actions(best)[self.table.pair_state], values)

    def exploitability(self, policy: Policy) -> float:
        """How much worse than best play `policy` does at the start against its worst opponent: the mean over the seats.

        With one player, how much worse than best play it does.

        Raises:
            ValueError: `policy` is not a distribution over legal moves, or it is not given in a state that matters.
        """
        seats = range(self.game.num_players)
        if len(seats) == 1:
            worst = [self.policy_value(policy).at_start(0)]
        else:
            worst = [-self.best_response(policy, 1 - seat).values.at_start(1 - seat) for seat in seats]
        gap = float(np.mean([self.at_start(seat) - value for seat, value in zip(seats, worst, strict=True)]))
        if np.isnan(gap):
            self._refuse_gaps(self.table.probabilities(policy), np.ones(len(self.table.states), dtype=bool))
        return gap

    # -- games ---------------------------------------------------------------------------------------------------------
    def reach(self, policy: Policy, opponent: Policy | None = None, seat: int = 0) -> Floats:
        """(states,) expected visits of each state in one game; arguments as in `policy_value`.

        Raises:
            ValueError: a policy is not a distribution over legal moves, or is not given in a state that is reached.
        """
        table, probs = self.table, self._joint(policy, opponent, seat)
        mass = np.bincount(table.initial, minlength=len(table.states)) / len(table.initial)
        visits = np.zeros(len(mass))
        for _ in range(self.game.max_length + 1):
            visits += mass
            flow = np.where(mass[table.pair_state] == 0, 0.0, mass[table.pair_state] * probs)
            if np.isnan(flow).any():
                self._refuse_gaps(probs, mass > 0)
            mass = np.bincount(table.outcome_next, flow[table.outcome_pair] * table.probability, minlength=len(mass))
        return visits

    def outcome(self, first: Policy, second: Policy | None = None) -> Outcome:
        """How games between `first` (player 0) and `second` (player 1; None: the same) end, by `Game.returns`.

        Raises:
            ValueError: as `reach`.
        """
        visits, returns = self.reach(first, second), self.table.terminal_return
        win, loss = float(visits[returns > 0].sum()), float(visits[returns < 0].sum())
        return Outcome(win, max(0.0, 1.0 - win - loss), loss)

    def mixed_outcome(self, policy: Policy, opponent: Policy) -> Outcome:
        """`outcome` from `policy`'s view when it plays each seat half of the time.

        Raises:
            ValueError: as `reach`.
        """
        first, second = self.outcome(policy, opponent), self.outcome(opponent, policy)
        return Outcome((first.win + second.loss) / 2, (first.draw + second.draw) / 2, (first.loss + second.win) / 2)

    # -- machinery: values inside are player 0's -----------------------------------------------------------------------
    def _sweep(self, backup: Backup, reward: Floats) -> Values[State]:
        """Backs up `max_length` times, or until nothing changes; without cycles that is exact for every state."""
        table = self.table
        v, q = np.zeros(len(table.states)), np.zeros(len(table.pair_state))
        for _ in range(table.game.max_length):
            q = table.expect(reward + v[table.outcome_next])
            before, v = v, backup(q)
            if np.array_equal(before, v, equal_nan=True):
                break
        return Values(table, self._sign * v + 0.0, self._pair_sign * q + 0.0)  # + 0.0: no negative zeros

    def _follow(self, probs: Floats) -> Backup:
        """Averages with `probs`. A move that is never made counts nothing, even where its value is unknown."""
        return lambda q: self.table.sum_actions(np.where(probs == 0, 0.0, probs * q))

    def _respond(self, theirs: Floats, seat: int, reward: Floats) -> Values[State]:
        """Values when `seat` makes its best moves and the other seat follows `theirs`."""
        sign, follow = (1.0, -1.0)[seat], self._follow(theirs)
        choosing = self.table.player == seat
        return self._sweep(lambda q: np.where(choosing, sign * self.table.max_actions(sign * q), follow(q)), reward)

    def _win_reward(self, seat: int) -> Floats:
        """(outcomes,) player 0's reward where only a win of `seat` pays: 1 to the winner, -1 to the other."""
        sign = (1.0, -1.0)[seat]
        return np.where(sign * self.table.terminal_return > 0, sign, 0.0)[self.table.outcome_next]

    def _joint(self, policy: Policy, opponent: Policy | None, seat: int) -> Floats:
        probs = self.table.probabilities(policy)
        if opponent is None:
            return probs
        return np.where(self._pair_player == seat, probs, self.table.probabilities(opponent))

    def _refuse_gaps(self, probs: Floats, where: Mask) -> NoReturn:
        """Names the first state in `where` without a policy."""
        pair = int(np.argmax(np.isnan(probs) & where[self.table.pair_state]))
        raise ValueError(f"the policy is not given in {self.table.states[self.table.pair_state[pair]]}")


_oracles: dict[tuple[type, str], Oracle[Any]] = {}


def oracle_for(game: Game[State]) -> Oracle[State]:
    """The oracle of `game`, made once per process and game (class and spec).

    Raises:
        NLRLError: no oracle can solve this game.
    """
    key = (type(game), game.spec)
    if key not in _oracles:
        _oracles[key] = TabularOracle(game)
    return _oracles[key]
