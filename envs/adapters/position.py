"""A game in progress, as every adapter sees it: the state, the cap on its length and the rewards so far.

The rules of `Game` say nothing about time. A game that reaches `max_length` actions before its rules end it is
*truncated*: each player is paid `truncation_reward` on top, and nobody has won, lost or drawn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nlrl.envs.game import Game, Step

Rewards = tuple[float, ...]


class Position(NamedTuple):
    """Immutable; `advance` gives the next one."""

    state: Any
    played: int
    """Actions so far, at most `max_length`."""
    rewards: Rewards
    """What the last action paid each player, with `truncation_reward` where it was the last one allowed."""
    totals: Rewards
    """The sum of all rewards so far."""
    terminated: bool
    """The rules ended the game."""
    truncated: bool
    """The cap ended it."""

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


def start(game: Game[Any], state: Any) -> Position:
    """A game that begins in `state`."""
    nothing = (0.0,) * game.num_players
    return Position(state, 0, nothing, nothing, game.is_terminal(state), False)


def advance(game: Game[Any], position: Position, step: Step[Any]) -> Position:
    """The position after one more action, whose outcome was `step`."""
    played, terminated = position.played + 1, game.is_terminal(step.state)
    truncated = not terminated and played >= game.max_length
    rewards = tuple(reward + game.truncation_reward for reward in step.rewards) if truncated else step.rewards
    totals = tuple(total + reward for total, reward in zip(position.totals, rewards, strict=True))
    return Position(step.state, played, rewards, totals, terminated, truncated)


def refuse(game: Game[Any], position: Position) -> Position:
    """The position after the player to move named no legal action.

    That is what `Game.invalid_step` says, or else a forfeit: the game is over, the player to move ends with the lowest
    return there is, and in a game of two the other one with the highest.
    """
    step = game.invalid_step(position.state)
    if step is not None:
        return advance(game, position, step)
    low, high = game.value_range
    loser = game.current_player(position.state)
    totals = tuple(low if player == loser else high for player in range(game.num_players))
    rewards = tuple(after - before for after, before in zip(totals, position.totals, strict=True))
    return Position(position.state, position.played + 1, rewards, totals, True, False)
