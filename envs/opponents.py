"""Players that need no language: what an agent trains against and is measured against.

An `Opponent` plays many games at once (`choose`) and knows its exact distribution over moves (`policy`), so that
everything it takes part in can be computed instead of sampled. `make_opponent` reads the names that configs and records
hold:

    random                      every legal move alike
    first-move                  the legal move with the lowest number
    minimax                     every move of the highest exact value alike
    epsilon(0.25,minimax)       a random move with probability 0.25, otherwise the inner opponent's
    mixture(1,random,3,minimax) for each move one of the inner opponents, drawn in proportion to the weights
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.envs.spec import parse_call
from nlrl.errors import NLRLError


@runtime_checkable
class Opponent(Protocol):
    """Anything that moves without language."""

    name: str

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> list[int]:
        """A legal action for each state, drawn with the generator of the same index and nothing else.

        Raises:
            LookupError: the opponent has no move in one of the states (it is terminal, or not in a frozen table).
        """
        ...

    def policy(self, state: Any) -> Mapping[int, float]:
        """The distribution that `choose` draws from: action -> probability.

        Raises:
            LookupError: as `choose`.
        """
        ...


class Distribution(ABC):
    """An opponent that is given by its distribution: `choose` samples it, with one draw a move."""

    name: str

    @abstractmethod
    def policy(self, state: Any) -> Mapping[int, float]: ...

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> list[int]:
        return [_draw(self.policy(state), rng) for state, rng in zip(states, rngs, strict=True)]

    def __repr__(self) -> str:
        return f"<opponent {self.name}>"


def _draw(moves: Mapping[int, float], rng: Rng) -> int:
    """In order of action, so that equal distributions draw alike however their tables were built."""
    actions = sorted(moves)
    return actions[rng.weighted([moves[action] for action in actions])]


class RandomOpponent(Distribution):
    """Every legal move alike."""

    name = "random"

    def __init__(self, game: Game[Any]):
        self._game = game

    def policy(self, state: Any) -> dict[int, float]:
        legal = _legal(self._game, state)
        return dict.fromkeys(legal, 1 / len(legal))

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> list[int]:
        return [rng.choice(_legal(self._game, state)) for state, rng in zip(states, rngs, strict=True)]


class FirstMoveOpponent(Distribution):
    """The legal move with the lowest number."""

    name = "first-move"

    def __init__(self, game: Game[Any]):
        self._game = game

    def policy(self, state: Any) -> dict[int, float]:
        return {_legal(self._game, state)[0]: 1.0}


class MinimaxOpponent(Distribution):
    """Every move of the highest exact value alike, so that it is not one fixed line of play.

    Raises:
        NLRLError: the game has no oracle.
    """

    name = "minimax"

    def __init__(self, game: Game[Any]):
        from nlrl.envs.oracle import oracle_for  # numpy only where it is needed

        self._game, self._oracle = game, oracle_for(game)

    def policy(self, state: Any) -> dict[int, float]:
        _legal(self._game, state)
        best = self._oracle.best_actions(state)
        return dict.fromkeys(best, 1 / len(best))


class Mixture(Distribution):
    """For each move one of `parts`, drawn in proportion to its weight."""

    def __init__(self, parts: Sequence[tuple[float, Opponent]], name: str | None = None):
        """Raises:
        NLRLError: no parts, or weights that are not positive.
        """
        if not parts or any(not 0 < weight < float("inf") for weight, _ in parts):
            raise NLRLError(f"a mixture needs parts with positive weights, not {[weight for weight, _ in parts]}")
        self.name = name or f"mixture({','.join(f'{weight:g},{part.name}' for weight, part in parts)})"
        total = sum(weight for weight, _ in parts)
        self._parts = [(weight / total, part) for weight, part in parts]

    def policy(self, state: Any) -> dict[int, float]:
        mixed: dict[int, float] = {}
        for weight, part in self._parts:
            for action, probability in part.policy(state).items():
                mixed[action] = mixed.get(action, 0.0) + weight * probability
        return mixed


class TabularPolicy(Distribution):
    """A frozen policy: `table` holds, for each state it knows, the probability of each action.

    Raises:
        ValueError: the probabilities of a state are negative or do not sum to 1.
    """

    def __init__(self, table: Mapping[Hashable, Mapping[int, float]], name: str):
        for state, moves in table.items():
            if any(p < 0 for p in moves.values()) or abs(sum(moves.values()) - 1) > 1e-6:
                raise ValueError(f"{name}: the probabilities in {state} must be >= 0 and sum to 1, not {dict(moves)}")
        self.table, self.name = table, name

    def policy(self, state: Any) -> Mapping[int, float]:
        try:
            return self.table[state]
        except KeyError:
            raise LookupError(f"{self.name} has no move in {state}") from None


def _legal(game: Game[Any], state: Any) -> tuple[int, ...]:
    legal = game.legal_actions(state)
    if not legal:
        raise LookupError(f"there is no move in the terminal state {state}")
    return legal


# -- names -------------------------------------------------------------------------------------------------------------
_SIMPLE: dict[str, Callable[[Game[Any]], Opponent]] = {
    opponent.name: opponent for opponent in (RandomOpponent, FirstMoveOpponent, MinimaxOpponent)
}
_KNOWN = (*_SIMPLE, "epsilon(probability,opponent)", "mixture(weight,opponent,weight,opponent,...)")


def make_opponent(name: str, game: Game[Any]) -> Opponent:
    """The opponent that `name` describes, for `game`.

    Raises:
        NLRLError: no such opponent, or wrong arguments; the message lists what is known.
    """
    call = parse_call(name)
    if call.name in _SIMPLE and not call.args and not call.kwargs:
        return _SIMPLE[call.name](game)
    if call.name == "epsilon" and len(call.args) == 2 and not call.kwargs:
        return _epsilon(call.args[0], make_opponent(str(call.args[1]), game), game)
    if call.name == "mixture" and len(call.args) >= 2 and len(call.args) % 2 == 0 and not call.kwargs:
        weights = [_number(weight, name) for weight in call.args[::2]]
        parts = [make_opponent(str(part), game) for part in call.args[1::2]]
        return Mixture(list(zip(weights, parts, strict=True)))
    raise NLRLError(f"unknown opponent {name!r}; known: {', '.join(_KNOWN)}")


def _epsilon(epsilon: Any, inner: Opponent, game: Game[Any]) -> Opponent:
    """With probability `epsilon` a uniformly random legal move, else the inner opponent's."""
    name = f"epsilon({epsilon},{inner.name})"
    if not 0 <= _number(epsilon, name) <= 1:
        raise NLRLError(f"{name!r}: the probability of a random move must be from 0 to 1, not {epsilon}")
    parts = [(epsilon, RandomOpponent(game)), (1 - epsilon, inner)]
    return Mixture([part for part in parts if part[0] > 0], name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NLRLError(f"{name!r}: {value!r} must be a number; known: {', '.join(_KNOWN)}")
    return value
