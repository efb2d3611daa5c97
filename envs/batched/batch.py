"""What a batch of games is: the interface, and everything that does not depend on how states are encoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlrl.envs.batched import streams
from nlrl.envs.game import Game

State = TypeVar("State")
Actions = NDArray[np.int64]
Bools = NDArray[np.bool_]


class EncodedStates(Sequence[State]):
    """States that stay arrays until somebody reads them."""

    def __init__(self, codes: NDArray[Any], decode: Callable[[NDArray[Any]], list[State]]):
        self._codes, self._decode = codes, decode

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> State: ...
    @overload
    def __getitem__(self, index: slice) -> list[State]: ...
    def __getitem__(self, index: int | slice) -> State | list[State]:
        if isinstance(index, slice):
            return self._decode(self._codes[index])
        return self._decode(self._codes[[index]])[0]


class BatchedStep(NamedTuple, Generic[State]):
    """What one `step` did to n games, m of which ended."""

    rewards: NDArray[np.float64]
    """(n, num_players)"""
    terminated: Bools
    """(n,) the rules ended the game."""
    truncated: Bools
    """(n,) the game was cut at `max_length` actions: not a draw."""
    ended: NDArray[np.intp]
    """(m,) the games that ended either way, in increasing order; they have started again."""
    final: Sequence[State]
    """(m,) the states in which they ended; converted when read, and later steps do not change them."""


class BatchedGame(ABC, Generic[State]):
    """`size` games of the same rules. Subclasses say how states are encoded and how the encoded ones are played.

    Raises:
        ValueError: `size` is not a positive integer.
    """

    game: Game[State]
    size: int

    def __init__(self, game: Game[State], size: int, seed: int | str = 0):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be a positive integer, not {size!r}")
        self.game, self.size = game, size
        self._prepare()
        self.reset(seed=seed)

    # -- to use --------------------------------------------------------------------------------------------------------
    @property
    def num_actions(self) -> int:
        return self.game.num_actions

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) actions played in each game since it started, or since it was given to `reset`."""
        return self._lengths.copy()

    def reset(self, states: Sequence[State] | None = None, *, seed: int | str | None = None) -> None:
        """Starts all games anew, or from `states`; with a `seed`, the games' random streams too start anew.

        Raises:
            ValueError: `states` are not `size` non-terminal states of this game; nothing has changed.
        """
        given = None if states is None else self._encode(self._playable(states))
        if seed is not None:
            self._seed(seed)
        self._codes = self._draw_starts(np.arange(self.size)) if given is None else given
        self._lengths = np.zeros(self.size, dtype=np.int64)

    def states(self) -> list[State]:
        """The states of all games, as the scalar rules know them; none is terminal."""
        return self._decode(self._codes)

    def step(self, actions: ArrayLike) -> BatchedStep[State]:
        """Plays `actions` (n,), one in each game; games that end start again.

        Raises:
            ValueError: not an integer for each game, or an action is illegal (the message names the first such game and
                its action); nothing has changed.
        """
        played = self._read(actions)
        rewards = np.zeros((self.size, self.game.num_players))
        terminated = np.zeros(self.size, dtype=np.bool_)
        illegal = self._advance(played, rewards, terminated)
        if illegal >= 0:
            self._refuse(illegal, int(played[illegal]))
        self._lengths += 1
        truncated = (self._lengths >= self.game.max_length) & ~terminated
        if self.game.truncation_reward:
            rewards[truncated] += self.game.truncation_reward
        ended = np.flatnonzero(terminated | truncated)
        final = EncodedStates(self._codes[ended], self._decode)
        if len(ended):
            self._codes[ended] = self._draw_starts(ended)
            self._lengths[ended] = 0
        return BatchedStep(rewards, terminated, truncated, ended, final)

    @abstractmethod
    def legal_mask(self) -> Bools:
        """(n, num_actions) which actions are legal; at least one in each game."""

    @abstractmethod
    def current_players(self) -> NDArray[np.int8]:
        """(n,) the players to move."""

    @abstractmethod
    def random_actions(self) -> Actions:
        """(n,) a uniformly random legal action for each game, one draw of its stream of moves."""

    # -- to override ---------------------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        """Tables of the rules; before the first reset."""
        self._starts = self._encode(self.game.initial_states())

    def _seed(self, seed: int | str) -> None:
        self._moves = streams.make_streams(seed, self.size, "moves")
        self._chance = streams.make_streams(seed, self.size, "chance")

    def _draw_starts(self, games: NDArray[np.intp]) -> NDArray[Any]:
        """Encoded initial states for `games` (indices), one draw of their streams of chance where there is a choice."""
        if len(self._starts) == 1:
            return np.repeat(self._starts, len(games), axis=0)
        return self._starts[streams.draw_below(self._chance, games, len(self._starts))]

    @abstractmethod
    def _encode(self, states: Sequence[State]) -> NDArray[Any]:
        """(m, ...)"""

    @abstractmethod
    def _decode(self, codes: NDArray[Any]) -> list[State]: ...

    @abstractmethod
    def _advance(self, actions: Actions, rewards: NDArray[np.float64], terminated: Bools) -> int:
        """Plays in place and fills zeroed `rewards` and `terminated`; or changes nothing and returns the first game
        whose action is illegal. -1 if all are legal."""

    # -- refusals ------------------------------------------------------------------------------------------------------
    def _read(self, actions: ArrayLike) -> Actions:
        array = np.asarray(actions)
        if array.shape != (self.size,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.size} integers, one for each game, not {array.dtype} of shape {array.shape}"
            )
        return array.astype(np.int64, copy=False)

    def _refuse(self, index: int, action: int) -> None:
        state = self._decode(self._codes[[index]])[0]
        legal = self.game.legal_actions(state)
        raise ValueError(f"game {index}: action {action} is illegal in {state!r}; legal: {legal}")

    def _playable(self, states: Sequence[State]) -> Sequence[State]:
        if len(states) != self.size:
            raise ValueError(f"{self.size} games need as many states, not {len(states)}")
        kind = type(self.game.initial_states()[0])
        for index, state in enumerate(states):
            if type(state) is not kind or not _is_state(self.game, state):
                raise ValueError(f"game {index}: {state!r} is not a state of {self.game.spec}")
            if self.game.is_terminal(state):
                raise ValueError(f"game {index}: {state!r} is terminal; a batch holds games that go on")
        return states


def _is_state(game: Game[State], state: State) -> bool:
    """Whether the game can write the state and read it back, as it promises for all of its own."""
    try:
        return game.parse_text(game.to_text(state)) == state
    except (ValueError, TypeError, LookupError):
        return False
