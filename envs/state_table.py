"""A whole game as arrays: every reachable state, every legal action, every outcome.

Rows are states in breadth-first order from the initial states. A *pair* is a state with one of its legal actions; pairs
are sorted by state, outcomes by pair, so sums and maxima over actions are one `reduceat`. Policies are arrays of pair
probabilities, (pairs,).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.game import Game
from nlrl.errors import NLRLError

State = TypeVar("State", bound=Hashable)
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


class PolicyLike(Protocol):
    """Anything with an exact distribution over moves, such as an `Opponent`."""

    def policy(self, state: Any) -> Mapping[int, float]:
        """Action -> probability.

        Raises:
            LookupError: the policy is not known in this state.
        """
        ...


Policy = Mapping[Any, Mapping[int, float]] | Floats | PolicyLike
"""state -> {action: probability}; an array (states, num_actions) or (pairs,); or an object with a method `policy`."""


class StateTable(Generic[State]):
    """The arrays of one game. S states, P pairs, K outcomes.

    Raises:
        NLRLError: the game has more than `max_states` reachable states.
    """

    game: Game[State]
    states: list[State]
    row: dict[State, int]
    """State -> its row."""
    initial: Indices
    """Rows of the initial states."""
    player: NDArray[np.int8]
    """(S,) the player to move, -1 in terminal states."""
    terminal_return: Floats
    """(S,) player 0's return for reaching a terminal state, 0 elsewhere."""
    pair_state: Indices
    """(P,)"""
    pair_action: Indices
    """(P,)"""
    first_pair: Indices
    """(S + 1,) pairs of row s are first_pair[s] to first_pair[s + 1]."""
    outcome_pair: Indices
    """(K,)"""
    outcome_next: Indices
    """(K,) row of the next state."""
    probability: Floats
    """(K,)"""
    reward: Floats
    """(K,) reward of player 0; in two-player games player 1's is its negative."""

    def __init__(self, game: Game[State], max_states: int = 1_000_000):
        self.game = game
        self.states = list(dict.fromkeys(game.initial_states()))
        self.row = {state: row for row, state in enumerate(self.states)}
        self.initial = np.array([self.row[state] for state in game.initial_states()])
        pairs, outcomes = self._explore(max_states)
        self.player = np.array([game.current_player(state) for state in self.states], dtype=np.int8)
        self.terminal_return = np.array([game.returns(state)[0] for state in self.states])
        pair_state, pair_action = zip(*pairs, strict=True) if pairs else ((), ())
        self.pair_state, self.pair_action = np.array(pair_state, dtype=np.intp), np.array(pair_action, dtype=np.intp)
        self.first_pair = np.searchsorted(self.pair_state, np.arange(len(self.states) + 1))
        columns = np.array(outcomes, dtype=np.float64).reshape(-1, 4).T
        self.outcome_pair, self.outcome_next = columns[0].astype(np.intp), columns[1].astype(np.intp)
        self.probability, self.reward = columns[2].copy(), columns[3].copy()
        self._acting = self.first_pair[:-1] < self.first_pair[1:]
        self._segments = self.first_pair[:-1][self._acting]
        self._first_outcome = np.searchsorted(self.outcome_pair, np.arange(len(self.pair_state)))

    def _explore(self, max_states: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, float, float]]]:
        """Fills `states` and `row`; returns (row, action) pairs and (pair, next row, probability, reward) outcomes."""
        game, states, row = self.game, self.states, self.row
        pairs: list[tuple[int, int]] = []
        outcomes: list[tuple[int, int, float, float]] = []
        for here, state in enumerate(states):  # grows while it is read
            for action in game.legal_actions(state):
                for probability, successor, rewards in game.transitions(state, action):
                    there = row.setdefault(successor, len(states))
                    if there == len(states):
                        states.append(successor)
                    outcomes.append((len(pairs), there, probability, rewards[0]))
                pairs.append((here, action))
            if len(states) > max_states:
                raise NLRLError(f"{game.spec} has more than {max_states:,} states: too many for exact tables")
        return pairs, outcomes

    def row_of(self, state: State) -> int:
        """The state's row.

        Raises:
            ValueError: no game reaches this state.
        """
        try:
            return self.row[state]
        except KeyError:
            raise ValueError(f"{self.game.spec}: no game reaches the state {state}") from None

    def pairs_of(self, state: State) -> slice:
        row = self.row_of(state)
        return slice(int(self.first_pair[row]), int(self.first_pair[row + 1]))

    # -- sums and maxima over outcomes and actions ---------------------------------------------------------------------
    def expect(self, outcome_values: Floats) -> Floats:
        """(K,) values of outcomes -> (P,) expectations."""
        if len(outcome_values) == len(self.pair_state):
            return outcome_values
        return np.add.reduceat(self.probability * outcome_values, self._first_outcome)

    def sum_actions(self, pair_values: Floats) -> Floats:
        """(P,) -> (S,), 0 in terminal states."""
        return self._scatter(np.add.reduceat(pair_values, self._segments))

    def max_actions(self, pair_values: Floats) -> Floats:
        """(P,) -> (S,), 0 in terminal states."""
        return self._scatter(np.maximum.reduceat(pair_values, self._segments))

    def _scatter(self, acting_values: Floats) -> Floats:
        out = np.zeros(len(self.states))
        out[self._acting] = acting_values
        return out

    # -- policies ------------------------------------------------------------------------------------------------------
    def probabilities(self, policy: Policy) -> Floats:
        """The policy as pair probabilities, (P,): NaN in states where it is not given.

        Raises:
            ValueError: an array of another shape; a negative probability; a state whose legal moves do not sum to 1.
        """
        probs = self._gather(policy) if isinstance(policy, np.ndarray) else self._look_up(policy)
        total = self.sum_actions(probs)[self.pair_state]
        wrong = (probs < 0) | (np.abs(total - 1) > 1e-6)
        if wrong.any():
            pair = int(np.argmax(wrong))
            state = self.states[self.pair_state[pair]]
            moves = probs[self.pairs_of(state)]
            raise ValueError(f"in {state} the legal moves have probabilities {moves}; they must be >= 0 and sum to 1")
        return probs / total

    def _gather(self, policy: Floats) -> Floats:
        if policy.shape == (len(self.pair_state),):
            return policy.astype(np.float64)
        if policy.shape != (len(self.states), self.game.num_actions):
            wanted = (len(self.states), self.game.num_actions)
            raise ValueError(f"a policy array has shape {wanted} or ({len(self.pair_state)},), not {policy.shape}")
        return policy[self.pair_state, self.pair_action].astype(np.float64)

    def _look_up(self, policy: Mapping[Any, Mapping[int, float]] | PolicyLike) -> Floats:
        look_up = policy.__getitem__ if isinstance(policy, Mapping) else policy.policy
        probs, actions, pair = np.full(len(self.pair_state), np.nan), self.pair_action.tolist(), 0
        for state, end in zip(self.states, self.first_pair[1:].tolist(), strict=True):
            if pair < end:
                try:
                    moves = look_up(state)
                except LookupError:
                    pass
                else:
                    probs[pair:end] = [moves.get(action, 0.0) for action in actions[pair:end]]
            pair = end
        return probs

    def as_mapping(self, probs: Floats) -> dict[State, dict[int, float]]:
        """Pair probabilities as state -> {action: probability}, without zeros, where they are known."""
        table: dict[State, dict[int, float]] = {}
        for row, action, probability in zip(
            self.pair_state.tolist(), self.pair_action.tolist(), probs.tolist(), strict=True
        ):
            if probability > 0:
                table.setdefault(self.states[row], {})[action] = probability
        return table


_tables: dict[tuple[type, str], StateTable[Any]] = {}


def state_table(game: Game[State]) -> StateTable[State]:
    """The table of `game`, made once per process and game (class and spec)."""
    key = (type(game), game.spec)
    if key not in _tables:
        _tables[key] = StateTable(game)
    return _tables[key]
