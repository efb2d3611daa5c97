"""Games as PettingZoo environments: `to_pettingzoo(game)` gives an `AECEnv`.

1. Agents are `player_0` (moves first in the game) and `player_1`; a game for one player has the first alone.
2. An observation is `{"observation": array, "action_mask": (num_actions,)}`, both int8 or uint8: the array is that of
   `nlrl.envs.adapters.features` from the agent's view, the mask all zeros for whoever is not to move. `infos[agent]`
   holds `text`, what the agent is told.
3. A game that its rules end is terminated; one that is cut at `max_length` is truncated, for all agents alike.
4. All randomness comes from `reset(seed=...)`; without a seed, every reset goes on from the one before.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import AECEnv

from nlrl.envs.adapters.features import action_mask, features_of
from nlrl.envs.adapters.position import Position, advance, refuse, start
from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.errors import GameError

Illegal = Literal["forfeit", "raise"]
Observation = dict[str, np.ndarray]
_RENDER_MODES = ("ansi", "svg")


def to_pettingzoo(game: Game[Any], illegal: Illegal = "raise", render_mode: str | None = None) -> GameAECEnv:
    """`game` as a PettingZoo environment.

    Args:
        game: any game.
        illegal: what an action does that is not legal. "raise": `step` raises ValueError, and nothing has changed.
            "forfeit": what the game says an unreadable reply does (mazes: -4 and the walker stays), else the agent
            loses the game with the lowest return there is.
        render_mode: "ansi" (text) or "svg" (a picture as a string).

    Raises:
        GameError: an argument that cannot be.
    """
    if illegal not in ("forfeit", "raise"):
        raise GameError(f"illegal must be 'forfeit' or 'raise', not {illegal!r}")
    if render_mode not in (None, *_RENDER_MODES):
        raise GameError(f"render_mode must be one of {', '.join(_RENDER_MODES)} or None, not {render_mode!r}")
    return GameAECEnv(game, illegal, render_mode)


class GameAECEnv(AECEnv[str, Any, Any]):
    """One game; made by `to_pettingzoo`."""

    def __init__(self, game: Game[Any], illegal: Illegal, render_mode: str | None):
        super().__init__()
        self.game, self.render_mode, self._illegal = game, render_mode, illegal
        self.metadata = {
            "name": f"nlrl_{game.name}_v0",
            "render_modes": list(_RENDER_MODES),
            "is_parallelizable": False,
            "render_fps": 1,
        }
        self.possible_agents = [f"player_{player}" for player in range(game.num_players)]
        self.agents = []
        self._features = features_of(game)
        for_all = self.possible_agents
        self.action_spaces: dict[str, spaces.Space[Any]] = {one: spaces.Discrete(game.num_actions) for one in for_all}
        self.observation_spaces: dict[str, spaces.Space[Any]] = {one: self._space() for one in for_all}
        self._np_random: np.random.Generator | None = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Starts a game. `options` are ignored, as PettingZoo's tests pass any."""
        if seed is not None or self._np_random is None:
            self._np_random, _ = seeding.np_random(seed)
        rng = Rng(int(self._np_random.integers(1 << 63)))
        self._chance = rng.spawn("chance")
        self.position: Position = start(self.game, self.game.initial_state(rng.spawn("start")))
        self._last_move: int | None = None
        self.agents = list(self.possible_agents)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self._skip_agent_selection = None
        self._publish()

    def step(self, action: Any) -> None:
        """Plays `action` for `agent_selection`; None for an agent whose game is over.

        Raises:
            ValueError: with `illegal="raise"`, the action is not legal (the message names those that are); or an
                action of an agent whose game is over.
        """
        if self.terminations[self.agent_selection] or self.truncations[self.agent_selection]:
            self._was_dead_step(action)
            return
        state = self.position.state
        legal = self.game.legal_actions(state)
        if action in legal:
            self._last_move = int(action)
            self.position = advance(self.game, self.position, self.game.apply(state, int(action), self._chance))
        elif self._illegal == "raise":
            raise ValueError(f"action {action!r} of {self.agent_selection} is illegal; legal: {legal}")
        else:
            self._last_move = None
            self.position = refuse(self.game, self.position)
        self._cumulative_rewards[self.agent_selection] = 0.0
        self._publish()
        self._accumulate_rewards()

    def observe(self, agent: str) -> Observation:
        """The view of `agent`; new arrays with every call."""
        player = self.possible_agents.index(agent)
        state, moves = self.position.state, agent == self.agent_selection and not self.position.over
        legal = self.game.legal_actions(state) if moves else ()
        return {
            "observation": self._features.encode(state, player),
            "action_mask": action_mask(self.game, legal),
        }

    def render(self) -> str | None:
        """The board as text or SVG, as the render mode says; None without one."""
        if self.render_mode == "ansi":
            return self.game.to_text(self.position.state)
        return self.game.render_svg(self.position.state, self._last_move) if self.render_mode == "svg" else None

    def close(self) -> None:
        """Nothing is held open."""

    # -- PettingZoo's tables -------------------------------------------------------------------------------------------
    def _publish(self) -> None:
        """Writes the position into the tables that PettingZoo reads."""
        position, state = self.position, self.position.state
        self.rewards = dict(zip(self.agents, position.rewards, strict=True))
        self.terminations = dict.fromkeys(self.agents, position.terminated)
        self.truncations = dict.fromkeys(self.agents, position.truncated)
        texts = [self.game.observation_text(state, player) for player in range(len(self.agents))]
        self.infos = {agent: {"text": text} for agent, text in zip(self.agents, texts, strict=True)}
        self.agent_selection = self.agents[self._next_player()]

    def _next_player(self) -> int:
        """Who moves; after the end, the one who did not move last, so that each hears of it in turn."""
        if not self.position.over:
            return self.game.current_player(self.position.state)
        return (self.possible_agents.index(self.agent_selection) + 1) % len(self.agents)

    def _space(self) -> spaces.Dict:
        features = self._features
        return spaces.Dict(
            {
                "observation": spaces.Box(0, features.high, features.shape, features.dtype),
                "action_mask": spaces.Box(0, 1, (self.game.num_actions,), np.int8),
            }
        )
