"""A `Game` as a `TextEnv`: our own games under the questions that others are asked."""

from __future__ import annotations

from typing import Any

from nlrl.envs.adapters.position import Position, advance, start
from nlrl.envs.adapters.survey import survey
from nlrl.envs.game import Game, Step
from nlrl.envs.random import Rng
from nlrl.envs.testing.foreign import Frame, TextEnv
from nlrl.envs.testing.report import NotApplicable


class GameTextEnv(TextEnv):
    """Plays `game`; replies are texts of moves, and every seat is the caller's."""

    def __init__(self, game: Game[Any]):
        self.game, self.chance = game, len(game.initial_states()) > 1 or survey(game).max_outcomes > 1
        self._rng = Rng(0)
        self._now: Position

    def reset(self, seed: int | None) -> Frame:
        if seed is not None:
            self._rng = Rng("GameTextEnv", seed)
        self._now = start(self.game, self.game.initial_state(self._rng))
        return self._frame(self.game.current_player(self._now.state))

    def step(self, reply: str) -> Frame:
        player = self.game.current_player(self._now.state)
        self._now = advance(self.game, self._now, self._play(reply))
        return self._frame(player if self._now.over else self.game.current_player(self._now.state))

    def _play(self, reply: str) -> Step[Any]:
        state = self._now.state
        action = self.game.parse_action(state, reply)
        if action is not None:
            return self.game.apply(state, action, self._rng)
        step = self.game.invalid_step(state)
        if step is None:
            raise ValueError(f"{reply!r} is not a legal move; legal: {' '.join(self.moves())}")
        return step

    def _frame(self, player: int) -> Frame:
        now, view = self._now, self.game.observation_text(self._now.state, player)
        return Frame(player, view, now.rewards, now.terminated, now.truncated)

    def moves(self) -> list[str]:
        state = self._now.state
        return [self.game.action_text(state, action) for action in self.game.legal_actions(state)]

    def illegal(self) -> list[str]:
        step = self.game.invalid_step(self._now.state)
        if step is not None and step.state != self._now.state:
            raise NotApplicable("by the rules, the position remembers refused replies")
        return ["", "nonsense", *(move + move for move in self.moves()[:3])]

    def position(self) -> Any:
        return self._now.state

    def views(self) -> list[str]:
        return [self.game.observation_text(self._now.state, player) for player in range(self.game.num_players)]

    def stalling_reply(self) -> str:
        """The first move that may not end the game."""
        if self.game.num_players == 2:
            raise NotApplicable("the rules end every game")
        state = self._now.state
        for action in self.game.legal_actions(state):
            if not any(self.game.is_terminal(step.state) for step in self.game.transitions(state, action)):
                return self.game.action_text(state, action)
        raise NotApplicable("every move may end the game")
