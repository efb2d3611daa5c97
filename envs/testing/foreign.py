"""What a text environment from elsewhere must show of itself so that `check_env` can put its questions.

1. A `TextEnv` wraps one environment: `reset`, `step`, and the replies that may be given. Everything else it can tell
   (illegal replies, the position, what each player sees, ...) is optional; what it leaves out is not checked.
2. Replies are chosen outside, from `moves()` in its order, with a generator of their own: a difference between two
   games with equal seeds is the environment's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from nlrl.envs.testing.report import NotApplicable


class Frame(NamedTuple):
    """What there is to see after a reset or a step."""

    player: int
    """Who is to move; at the end, who moved last."""
    observation: str
    """What an agent in that seat is shown."""
    rewards: tuple[float, ...] = ()
    """Of each player, for the last step."""
    terminated: bool = False
    """The rules have ended the game."""
    truncated: bool = False
    """The game was cut."""

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


class TextEnv(ABC):
    """One environment behind a thin wrapper. Only the first three methods are needed."""

    chance: bool = True
    """Whether anything in the game is drawn at random."""

    @abstractmethod
    def reset(self, seed: int | None) -> Frame:
        """Starts a game; None goes on with the generator of the last seed."""

    @abstractmethod
    def step(self, reply: str) -> Frame:
        """Gives `reply` as the player to move. An illegal one may raise ValueError."""

    @abstractmethod
    def moves(self) -> Sequence[str]:
        """Replies to choose from, in an order that depends on the position alone; empty: nobody can move."""

    # -- optional: raise NotApplicable, with the reason, where the environment cannot say ------------------------------
    def illegal(self) -> Sequence[str]:
        """Replies that are illegal now."""
        raise NotApplicable("no illegal replies are known")

    def position(self) -> Any:
        """The position itself, hidden parts included: a value that later play does not change."""
        raise NotApplicable("the position cannot be looked at")

    def views(self) -> Sequence[str]:
        """What each player could be shown now."""
        raise NotApplicable("only the player to move is shown anything")

    def secrets(self) -> Sequence[str]:
        """For each player, a text that occurs in its views and must not occur in another's; "" for none."""
        raise NotApplicable("nothing is hidden")

    def legal_by_the_rules(self) -> Collection[str]:
        """The legal moves here by an independent implementation of the rules, in the notation of `moves`."""
        raise NotApplicable("there is nothing to compare the rules with")

    def stalling_reply(self) -> str:
        """A reply after which the game cannot be over by its rules, so that only a cap ends it."""
        raise NotApplicable("the game cannot be drawn out")

    def final_observation(self, seed: int, replies: Sequence[str]) -> str | None:
        """Plays `replies`, which end a game, through the library's auto-resetting driver.

        Returns what the driver gives as the last observation of that game; None if it gives none.
        """
        raise NotApplicable("the library has no auto-resetting driver")
