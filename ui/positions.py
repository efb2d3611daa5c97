"""Positions that a person sets up: by a board's text, by moves from the start, or by branching from a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nlrl.envs.game import Game
from nlrl.errors import NLRLError


@dataclass(frozen=True)
class Variation:
    """Moves played on from somewhere. Nothing of it is recorded."""

    game: Game[Any]
    states: tuple[Any, ...]
    actions: tuple[int, ...] = ()

    @property
    def state(self) -> Any:
        return self.states[-1]

    @property
    def last_move(self) -> int | None:
        return self.actions[-1] if self.actions else None

    def outcomes(self, action: int) -> list[tuple[str, Any]]:
        """What may follow a move: how likely it is, and the position."""
        steps = self.game.transitions(self.state, action)
        return [(f"{step.probability:.0%}", step.state) for step in steps]

    def played(self, action: int, outcome: int = 0) -> Variation:
        """With one more move.

        Args:
            outcome: which of `outcomes` chance chose.
        """
        after = self.game.transitions(self.state, action)[outcome].state
        return Variation(self.game, (*self.states, after), (*self.actions, action))

    def taken_back(self) -> Variation:
        """Without the last move."""
        return Variation(self.game, self.states[:-1], self.actions[:-1]) if self.actions else self

    @property
    def moves(self) -> list[str]:
        pairs = zip(self.states, self.actions, strict=False)
        return [self.game.action_text(state, action) for state, action in pairs]


def read_position(game: Game[Any], text: str) -> Variation:
    """A position from its text: empty for the start, a board as the game prints it, or moves from the start, separated
    by commas or spaces.

    Raises:
        NLRLError: it is neither; says why.
    """
    start = Variation(game, (game.initial_states()[0],))
    if not text.strip():
        return start
    try:
        return Variation(game, (game.parse_text(text.strip("\n")),))
    except (ValueError, IndexError) as error:
        no_board = str(error)
    words = [word.strip() for word in text.split(",")] if "," in text else text.split()
    for word in filter(None, words):
        action = None if game.is_terminal(start.state) else game.parse_action(start.state, word)
        if action is None:
            raise NLRLError(
                f"no board ({no_board}), and {word!r} is no legal move after {' '.join(start.moves) or 'none'}"
            )
        if len(game.transitions(start.state, action)) > 1:
            raise NLRLError(f"chance decides what follows {word!r}: give the board instead")
        start = start.played(action)
    return start
