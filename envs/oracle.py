"""The exact truth about a game: how good states and moves are, and how good a policy is.

1. Values are expected returns *still to come*, in units of the game's returns, from the view of the player to move. A
   terminal state has none left: its value is 0, and what it paid was the reward of the move that led to it.
2. `Oracle` is what every game offers: the value of best play, the best moves, the regret of a move. `TabularOracle`
   computes it, and the value of any given policy, best responses and outcome probabilities, for games small enough to
   enumerate.
3. A value is that with `max_length` actions left to play. Further on in a game that is cut there (mazes, lakes) fewer
   are left and values differ: `at_horizon` has those. Where every game ends by its own rules they are the same.
4. A policy need not be given everywhere. A value that depends on a state where it is not given is NaN; a scalar result
   that does is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.distances import forced_distances
from nlrl.envs.game import Game
from nlrl.envs.state_table import Floats, Policy, state_table
from nlrl.envs.values import TOLERANCE, Oracle, Values

__all__ = ["Objective", "Oracle", "Outcome", "Response", "TabularOracle", "Values", "oracle_for"]

State = TypeVar("State", bound=Hashable)
Mask = NDArray[np.bool_]
Backup = Callable[[Floats], Floats]
"""From values of pairs to values of states."""
Objective = Literal["return", "wins"]


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
        optimal = self._sweep(self._best_play, game.max_length)
        super().__init__(self.table, optimal.v, optimal.q)
        self._horizons: dict[int, Values[State]] = {game.max_length: self}

    # -- values --------------------------------------------------------------------------------------------------------
    def at_horizon(self, steps_left: int) -> Values[State]:
        """Best play with `steps_left` actions left (kept once computed). With none left no action has a value: NaN.

        Raises:
            ValueError: `steps_left` is not from 0 to `max_length`.
        """
        self._require_steps(steps_left)
        if steps_left not in self._horizons:
            self._horizons[steps_left] = self._sweep(self._best_play, steps_left)
        return self._horizons[steps_left]

    def policy_value(
        self, policy: Policy, opponent: Policy | None = None, seat: int = 0, steps_left: int | None = None
    ) -> Values[State]:
        """V^pi and Q^pi of `policy` playing `seat` and `opponent` playing the other one (None: `policy` plays both).

        They are values with `steps_left` actions left (None: `max_length`).

        Raises:
            ValueError: a policy is not a distribution over legal moves; `steps_left` is not from 0 to `max_length`.
        """
        steps_left = self.game.max_length if steps_left is None else steps_left
        self._require_steps(steps_left)
        return self._sweep(self._follow(self._joint(policy, opponent, seat)), steps_left)

    def best_response(self, opponent: Policy, seat: int, objective: Objective = "return") -> Response:
        """The best that `seat` can do against `opponent` in the other seat.

        With objective "wins" it maximises the probability of winning and does not tell a draw from a loss.

        Raises:
            ValueError: `opponent` is not a distribution over legal moves.
        """
        mine = self._pair_player == seat
        theirs = np.where(mine, 0.0, self.table.probabilities(opponent))
        values = self._respond(theirs, seat, objective)
        highest = values.v[self.table.pair_state]
        best = np.where(mine & ~np.isnan(highest), values.q >= highest - TOLERANCE, np.nan)
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

    def distance(self, state: State) -> int | None:
        """Actions to the end when both sides make only best moves, fast or slowly as it suits them.

        A player with a positive value to come makes the best move that ends the game soonest, any other player the one
        that ends it latest; so a drawn game lasts as long as either can make it. None where a player who gains nothing
        by ending need never end, and in all games with chance.
        """
        distance = self._distances[self.table.row_of(state)]
        return int(distance) if np.isfinite(distance) else None

    @cached_property
    def _distances(self) -> Floats:
        return forced_distances(self.table, self.v > TOLERANCE, self.q >= self.v[self.table.pair_state] - TOLERANCE)

    # -- machinery: values inside are player 0's -----------------------------------------------------------------------
    def _best_play(self, q: Floats) -> Floats:
        return self._sign * self.table.max_actions(self._pair_sign * q)

    def _require_steps(self, steps_left: int) -> None:
        if not 0 <= steps_left <= self.game.max_length:
            allowed = f"from 0 to {self.game.max_length}"
            raise ValueError(f"{self.game.spec}: steps_left must be {allowed}, not {steps_left}")

    def _sweep(self, backup: Backup, steps: int, wins_of: int | None = None) -> Values[State]:
        """Backs up `steps` times, or until nothing changes; without cycles that is exact for every state.

        `wins_of` a seat counts its wins instead of returns.
        """
        table, cut = self.table, 0.0
        if wins_of is None and table.game.num_players == 1:
            cut = table.game.truncation_reward
        reward = table.reward if wins_of is None else self._win_reward(wins_of)
        v, q = np.where(table.player < 0, 0.0, cut), np.full(len(table.pair_state), np.nan)
        for _ in range(steps):
            q = table.expect(reward + v[table.outcome_next])
            before, v = v, backup(q)
            if np.array_equal(before, v, equal_nan=True):
                break
        return Values(table, self._sign * v + 0.0, self._pair_sign * q + 0.0)  # + 0.0: no negative zeros

    def _follow(self, probs: Floats) -> Backup:
        """Averages with `probs`. A move that is never made counts nothing, even where its value is unknown."""
        return lambda q: self.table.sum_actions(np.where(probs == 0, 0.0, probs * q))

    def _respond(self, theirs: Floats, seat: int, objective: Objective) -> Values[State]:
        """Values when `seat` makes its best moves and the other seat follows `theirs`."""
        sign, follow = (1.0, -1.0)[seat], self._follow(theirs)
        choosing = self.table.player == seat
        return self._sweep(
            lambda q: np.where(choosing, sign * self.table.max_actions(sign * q), follow(q)),
            self.game.max_length,
            wins_of=seat if objective == "wins" else None,
        )

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
        _oracles[key] = game.make_oracle()
    return _oracles[key]
