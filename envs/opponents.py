"""Players that need no language: what an agent trains against and is measured against.

`make_opponent` reads the names that configs and records hold:

    random                      every legal move alike
    first-move                  the legal move with the lowest number
    minimax                     every move of the highest exact value alike
    minimax(3)                  every move that looks best alike, looking three moves ahead (`nlrl.envs.alpha_beta`)
    mcts(1000,100)              Monte Carlo tree search: simulations, random rollouts for each (`nlrl.envs.mcts`)
    epsilon(0.25,minimax)       a random move with probability 0.25, otherwise the inner opponent's
    mixture(1,random,3,minimax) for each move one of the inner opponents, drawn in proportion to the weights

In a game for one player there is nobody to oppose; random, first-move, minimax and what is made of them act there as
policies to compare with, and the searches refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from nlrl.envs.game import Game
from nlrl.envs.opponent import Distribution, Opponent, is_number, legal_moves
from nlrl.envs.random import Rng
from nlrl.envs.spec import Call, parse_call
from nlrl.errors import NLRLError

__all__ = [
    "Distribution",
    "FirstMoveOpponent",
    "Maker",
    "MinimaxOpponent",
    "Mixture",
    "Opponent",
    "RandomOpponent",
    "TabularPolicy",
    "bound",
    "make_opponent",
]


class RandomOpponent(Distribution):
    """Every legal move alike."""

    name = "random"

    def __init__(self, game: Game[Any]):
        self._game = game

    def policy(self, state: Any) -> dict[int, float]:
        legal = legal_moves(self._game, state)
        return dict.fromkeys(legal, 1 / len(legal))

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> Sequence[int | None]:
        return [rng.choice(legal_moves(self._game, state)) for state, rng in zip(states, rngs, strict=True)]


class FirstMoveOpponent(Distribution):
    """The legal move with the lowest number."""

    name = "first-move"

    def __init__(self, game: Game[Any]):
        self._game = game

    def policy(self, state: Any) -> dict[int, float]:
        return {legal_moves(self._game, state)[0]: 1.0}


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
        legal_moves(self._game, state)
        best = self._oracle.best_actions(state)
        return dict.fromkeys(best, 1 / len(best))


class Mixture(Distribution):
    """For each move one of `parts`, drawn in proportion to its weight. It is exact if all of them are."""

    def __init__(self, parts: Sequence[tuple[float, Opponent]], name: str | None = None):
        """Raises:
        NLRLError: no parts, or weights that are not positive.
        """
        if not parts or any(not 0 < weight < float("inf") for weight, _ in parts):
            raise NLRLError(f"a mixture needs parts with positive weights, not {[weight for weight, _ in parts]}")
        self.name = name or f"mixture({','.join(f'{weight:g},{part.name}' for weight, part in parts)})"
        self.exact = all(part.exact for _, part in parts)
        total = sum(weight for weight, _ in parts)
        self._parts = [(weight / total, part) for weight, part in parts]

    def policy(self, state: Any) -> dict[int, float]:
        mixed: dict[int, float] = {}
        for weight, part in self._parts:
            for action, probability in part.policy(state).items():
                mixed[action] = mixed.get(action, 0.0) + weight * probability
        return mixed

    def prepare(self, states: Sequence[Any]) -> None:
        for _, part in self._parts:
            part.prepare(states)

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> Sequence[int | None]:
        if self.exact:
            self.prepare(states)
            return super().choose(states, rngs)
        weights = [weight for weight, _ in self._parts]
        drawn = [rng.weighted(weights) for rng in rngs]
        moves: dict[int, int | None] = {}
        for index, (_, part) in enumerate(self._parts):
            mine = [i for i, one in enumerate(drawn) if one == index]
            chosen = part.choose([states[i] for i in mine], [rngs[i] for i in mine])
            moves.update(zip(mine, chosen, strict=True))
        return [moves[i] for i in range(len(states))]


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


# -- names -------------------------------------------------------------------------------------------------------------
Inner = Callable[[str], Opponent]
Maker = Callable[[Call, Game[Any], Inner], Opponent | None]
"""Makes an opponent from its parsed name, and those inside it by theirs; None where the arguments do not fit."""


def make_opponent(name: str, game: Game[Any], others: Mapping[str, Maker] | None = None) -> Opponent:
    """The opponent that `name` describes, for `game`.

    Args:
        others: further kinds, by how they are written: `agent(folder)`.

    Raises:
        NLRLError: no such opponent, or wrong arguments; the message lists what is known.
    """
    makers, call = _MAKERS | dict(others or {}), parse_call(name)
    for usage, make in makers.items():
        if usage.partition("(")[0] == call.name:
            opponent = make(call, game, lambda inner: make_opponent(inner, game, others))
            if opponent is not None:
                return opponent
    raise NLRLError(f"unknown opponent {name!r}; known: {', '.join(makers)}")


def _plain(opponent: Callable[[Game[Any]], Opponent]) -> Maker:
    """A kind without arguments."""
    return lambda call, game, inner: None if call.args or call.kwargs else opponent(game)


def _depth_limited(call: Call, game: Game[Any], inner: Inner) -> Opponent | None:
    from nlrl.envs.alpha_beta import DepthLimitedMinimax

    arguments = bound(call, ("depth",))
    return None if arguments is None else DepthLimitedMinimax(game, **arguments)


def _mcts(call: Call, game: Game[Any], inner: Inner) -> Opponent | None:
    arguments = bound(call, ("simulations", "rollouts"), ("uct_c", "solve"))
    if arguments is None:
        return None
    return _mcts_kind(game)(game, **arguments)


def _mcts_kind(game: Game[Any]) -> Any:
    """The compiled search where the game is played by exactly the rules it knows. OpenSpiel only where it is needed."""
    from nlrl.envs.breakthrough import Breakthrough

    if type(game) is Breakthrough:
        from nlrl.envs.breakthrough.mcts import BreakthroughMCTS

        return BreakthroughMCTS
    from nlrl.envs.mcts import MCTSOpponent

    return MCTSOpponent


def bound(call: Call, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any] | None:
    """The arguments of a call by name, the needed ones also in order; None where they do not fit."""
    named = dict(zip(needed, call.args, strict=False))
    fits = len(call.args) <= len(needed) and named.keys().isdisjoint(call.kwargs)
    arguments = named | call.kwargs
    return arguments if fits and set(needed) <= arguments.keys() <= {*needed, *optional} else None


def _epsilon(call: Call, game: Game[Any], inner: Inner) -> Opponent | None:
    """With probability `epsilon` a uniformly random legal move, else the inner opponent's."""
    if len(call.args) != 2 or call.kwargs or not is_number(call.args[0]):
        return None
    epsilon, other = call.args[0], inner(str(call.args[1]))
    name = f"epsilon({epsilon},{other.name})"
    if not 0 <= epsilon <= 1:
        raise NLRLError(f"{name!r}: the probability of a random move must be from 0 to 1, not {epsilon}")
    parts = [(epsilon, RandomOpponent(game)), (1 - epsilon, other)]
    return Mixture([part for part in parts if part[0] > 0], name)


def _mixture(call: Call, game: Game[Any], inner: Inner) -> Opponent | None:
    weights, parts = call.args[::2], call.args[1::2]
    if not parts or len(weights) != len(parts) or call.kwargs or not all(map(is_number, weights)):
        return None
    return Mixture([(weight, inner(str(part))) for weight, part in zip(weights, parts, strict=True)])


_MAKERS: dict[str, Maker] = {
    "random": _plain(RandomOpponent),
    "first-move": _plain(FirstMoveOpponent),
    "minimax": _plain(MinimaxOpponent),
    "minimax(depth)": _depth_limited,
    "mcts(simulations,rollouts,uct_c=1.0,solve=True)": _mcts,
    "epsilon(probability,opponent)": _epsilon,
    "mixture(weight,opponent,weight,opponent,...)": _mixture,
}
