"""Our games as `TextEnv`s, for `conformance.py`: the rules by themselves, and through the Gymnasium adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from nlrl.benchmarks.conformance_peers import openspiel_breakthrough
from nlrl.envs.game import Game
from nlrl.envs.testing import Frame, GameTextEnv, NotApplicable, TextEnv


class BreakthroughEnv(GameTextEnv):
    """Our Breakthrough, with OpenSpiel's beside it as a second opinion on the rules."""

    def __init__(self, game: Game[Any]):
        super().__init__(game)
        self._other: Any = None

    def reset(self, seed: int | None) -> Frame:
        self._other = openspiel_breakthrough(self.game.params["rows"], self.game.params["columns"])
        return super().reset(seed)

    def step(self, reply: str) -> Frame:
        if self._other is not None and reply in self.moves():
            self._other.apply_action(self._other.string_to_action(reply))
        return super().step(reply)

    def legal_by_the_rules(self) -> Sequence[str]:
        if self._other is None:
            raise NotApplicable("OpenSpiel is not installed, or has no board of this size and filling")
        return [self._other.action_to_string(action) for action in self._other.legal_actions()]


class GymnasiumEnv(TextEnv):
    """A Gymnasium environment whose observations and actions are texts and whose `info` lists the legal moves."""

    def __init__(self, env_id: str, **params: Any):
        import gymnasium

        import nlrl.envs.adapters.gymnasium

        _ = nlrl.envs.adapters.gymnasium.IDS  # importing it registers the environments
        self._make = partial(gymnasium.make, env_id, observation="text", actions="text", illegal="raise", **params)
        self.env, self._moves = self._make(), ()

    def reset(self, seed: int | None) -> Frame:
        text, info = self.env.reset(seed=seed)
        self._moves = info["legal_moves"]
        return Frame(0, text)

    def step(self, reply: str) -> Frame:
        text, reward, terminated, truncated, info = self.env.step(reply)
        self._moves = info["legal_moves"]
        return Frame(0, text, (float(reward),), terminated, truncated)

    def moves(self) -> Sequence[str]:
        return self._moves

    def illegal(self) -> Sequence[str]:
        return ["nonsense", ""]

    def position(self) -> Any:
        return self.env.unwrapped.position  # type: ignore[attr-defined]

    def stalling_reply(self) -> str:
        unwrapped: Any = self.env.unwrapped
        if unwrapped.game.num_players == 2:
            raise NotApplicable("the rules end every game")
        state, game = unwrapped.position.state, unwrapped.game
        for action in game.legal_actions(state):
            if not any(game.is_terminal(step.state) for step in game.transitions(state, action)):
                return game.action_text(state, action)
        raise NotApplicable("every move may end the game")

    def final_observation(self, seed: int, replies: Sequence[str]) -> str | None:
        from gymnasium.vector import AutoresetMode, SyncVectorEnv

        vector = SyncVectorEnv([self._make], autoreset_mode=AutoresetMode.SAME_STEP)
        vector.reset(seed=[seed])
        infos: dict[str, Any] = {}
        for reply in replies:
            infos = vector.step([reply])[-1]
        return infos["final_obs"][0] if "final_obs" in infos else None
