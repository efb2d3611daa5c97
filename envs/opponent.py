"""What an opponent is.

1. An `Opponent` plays many games at once (`choose`). What it plays in one game depends on that game's state and
   generator alone, never on the rest of the batch or its order.
2. Most opponents know their exact distribution over moves (`policy`), so that everything they take part in can be
   computed instead of sampled. Those that do not (a search by sampling) say so: `exact` is False.
3. Only players that speak may fail to move; None as a move is their forfeit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError


@runtime_checkable
class Opponent(Protocol):
    """Anything that makes the other side's moves."""

    name: str
    exact: bool
    """Whether `policy` is known. Against an opponent that is not exact, results can be sampled but not computed."""

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> Sequence[int | None]:
        """A legal action for each state, drawn with the generator of the same index and nothing else.

        Raises:
            LookupError: the opponent has no move in one of the states (it is terminal, or not in a frozen table).
        """
        ...

    def policy(self, state: Any) -> Mapping[int, float]:
        """The distribution that `choose` draws from: action -> probability.

        Raises:
            LookupError: as `choose`.
            NLRLError: the opponent is not `exact`.
        """
        ...

    def prepare(self, states: Sequence[Any]) -> None:
        """Told that these states will be asked about one by one; who answers faster in batches does so now."""
        ...


class Distribution(ABC):
    """An opponent that is given by its distribution: `choose` samples it, with one draw a move."""

    name: str
    exact = True

    @abstractmethod
    def policy(self, state: Any) -> Mapping[int, float]: ...

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> Sequence[int | None]:
        return [_draw(self.policy(state), rng) for state, rng in zip(states, rngs, strict=True)]

    def prepare(self, states: Sequence[Any]) -> None:  # noqa: B027 - most have nothing to prepare
        pass

    def __repr__(self) -> str:
        return f"<opponent {self.name}>"


def _draw(moves: Mapping[Any, float], rng: Rng) -> int | None:
    """In order of action, so that equal distributions draw alike however their tables were built."""
    actions = sorted(moves, key=lambda action: -1 if action is None else action)
    return actions[rng.weighted([moves[action] for action in actions])]


def legal_moves(game: Game[Any], state: Any) -> tuple[int, ...]:
    """The legal moves of a state in which an opponent has to move.

    Raises:
        LookupError: the state is terminal.
    """
    legal = game.legal_actions(state)
    if not legal:
        raise LookupError(f"there is no move in the terminal state {state}")
    return legal


def require_two_players(game: Game[Any], name: str) -> None:
    """Refuses opponents that search for replies where nobody replies.

    Raises:
        NLRLError: the game is for one player.
    """
    if game.num_players != 2:
        raise NLRLError(
            f"{name!r} plays against somebody, and {game.spec} is for one player; there, 'random', 'first-move' and "
            "'minimax' (best play) are policies to compare with"
        )


def sampled_only(name: str) -> NLRLError:
    """What `policy` raises where it is not known."""
    return NLRLError(
        f"{name!r} is known by its samples only: it can be played against, but nothing exact can be computed about it"
    )


def is_number(value: Any) -> bool:
    """Whether an argument of a name is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
