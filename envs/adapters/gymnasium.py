"""Games as Gymnasium environments: `gymnasium.make("nlrl/Maze-v0", layout="double_t")`, or `GameEnv(game)`.

1. Importing this module registers `nlrl/Maze-v0`, `nlrl/FrozenLake-v0`, `nlrl/TicTacToe-v0` and `nlrl/Breakthrough-v0`.
   `import nlrl.envs` does the same as soon as gymnasium is imported, in whichever order.
2. Arguments of `gymnasium.make` that `GameEnv` does not name are the game's, as in `nlrl.envs.make`.
3. In a game of two the agent has one seat and an opponent of `nlrl.envs.opponents` the other; a step is the agent's
   action and the opponent's reply, and its reward what both paid the agent.
4. A game that its rules end is terminated. One that is cut at `max_length` is truncated: neither a draw nor an end.
5. All randomness (the start, chance, the opponent, a random seat) comes from `reset(seed=...)`.
"""

from __future__ import annotations

import string
from typing import Any, Literal

import gymnasium
from gymnasium import spaces

from nlrl import envs
from nlrl.envs.adapters.features import action_mask, features_of
from nlrl.envs.adapters.position import Position, advance, refuse, start
from nlrl.envs.adapters.survey import survey
from nlrl.envs.game import Game
from nlrl.envs.opponents import make_opponent
from nlrl.envs.random import Rng
from nlrl.errors import GameError

IDS = {
    "nlrl/Breakthrough-v0": "breakthrough",
    "nlrl/FrozenLake-v0": "frozen_lake",
    "nlrl/Maze-v0": "maze",
    "nlrl/TicTacToe-v0": "tictactoe",
}
"""Game name by environment id."""
TEXT_LENGTH = 65_536
"""Most characters of an observation in text."""
REPLY_LENGTH = 1_024
"""Most characters of an action in text."""


class GameEnv(gymnasium.Env[Any, Any]):
    """One game as an environment.

    Args:
        game: a game, or the name of one that is made with `params`.
        seat: the agent's seat, 0 (moves first) or 1, or "random" for a new draw with every reset.
        opponent: in games of two, the name of who has the other seat, as `nlrl.envs.opponents` reads it.
        observation: "board" is the array of `nlrl.envs.adapters.features`, "text" what the player is told (gymnasium's
            AsyncVectorEnv passes on text with `shared_memory=False` only).
        actions: "index" is a number in range(num_actions), "text" the move as people write it.
        illegal: what an action does that is not legal, or no move at all. "forfeit": what the game says an unreadable
            reply does (mazes: -4 and the walker stays), else the game is lost with the lowest return there is.
            "raise": `step` raises ValueError, and nothing has changed.
        render_mode: "ansi" (text) or "svg" (a picture as a string).

    `info` holds `text` (what the player is told), `action_mask` (`(num_actions,)` of int8, 1 for legal), `legal_moves`
    (the legal actions as text) and `illegal` (the last action was not legal).

    Raises:
        GameError: an argument that cannot be; the message says what is allowed. NLRLError: no such opponent.
    """

    metadata = {"render_modes": ["ansi", "svg"], "render_fps": 1}  # noqa: RUF012 - as gymnasium declares it

    def __init__(
        self,
        game: str | Game[Any],
        *,
        seat: Literal[0, 1, "random"] = 0,
        opponent: str = "random",
        observation: Literal["board", "text"] = "board",
        actions: Literal["index", "text"] = "index",
        illegal: Literal["forfeit", "raise"] = "forfeit",
        render_mode: str | None = None,
        **params: Any,
    ):
        self.game: Game[Any] = _make(game, params)
        _require("seat", seat, (*range(self.game.num_players), "random"))
        _require("observation", observation, ("board", "text"))
        _require("actions", actions, ("index", "text"))
        _require("illegal", illegal, ("forfeit", "raise"))
        _require("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.render_mode = render_mode
        self._seat, self._illegal = seat, illegal
        self._reads_text, self._tells_text = actions == "text", observation == "text"
        self._opponent = make_opponent(opponent, self.game) if self.game.num_players == 2 else None
        self._features = features_of(self.game)
        self.action_space = _text_space(REPLY_LENGTH) if self._reads_text else spaces.Discrete(self.game.num_actions)
        self.observation_space = self._observation_space()
        self._last_move: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts a game. `options={"text": BOARD}` starts it from a board, as `Game.to_text` writes it.

        Raises:
            ValueError: an unknown option, or a text that is no board of this game, or one where the game is over (or
                is so before the agent has moved).
        """
        super().reset(seed=seed)
        rng = Rng(int(self.np_random.integers(1 << 63)))
        self._chance, self._replies = rng.spawn("chance"), rng.spawn("opponent")
        players = range(self.game.num_players)
        self.seat: int = rng.spawn("seat").choice(players) if isinstance(self._seat, str) else self._seat
        self.position: Position = start(self.game, self._first_state(rng.spawn("start"), options or {}))
        self._last_move = None
        self._let_opponent_move()
        if self.position.over:
            raise ValueError(f"the game is over before the agent moves, on the board\n{self._board()}")
        return self._observe(), self._info(illegal=False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Plays `action` and the opponent's reply.

        Raises:
            ValueError: with `illegal="raise"`, the action is not legal; the message names those that are.
            ResetNeeded: the game is over.
        """
        if self.position.over:
            raise gymnasium.error.ResetNeeded("the game is over; call reset() before step()")
        before, move = self.position, self._read(action)
        if move is None and self._illegal == "raise":
            raise ValueError(f"action {action!r} is illegal; legal: {self._legal_text()}")
        self._play(move, self._chance)
        self._let_opponent_move()
        after = self.position
        reward = after.totals[self.seat] - before.totals[self.seat]
        return self._observe(), reward, after.terminated, after.truncated, self._info(move is None)

    def render(self) -> Any:
        """What the render mode says: the board as text, or as SVG with the last move."""
        if self.render_mode == "ansi":
            return self._board()
        if self.render_mode == "svg":
            return self.game.render_svg(self.position.state, self._last_move)
        return super().render()

    # -- play ----------------------------------------------------------------------------------------------------------
    def _first_state(self, rng: Rng, options: dict[str, Any]) -> Any:
        _require_only("option", options, ("text",))
        if "text" not in options:
            return self.game.initial_state(rng)
        return self.game.parse_text(options["text"])

    def _read(self, action: Any) -> int | None:
        """The legal action that is meant, or None."""
        state = self.position.state
        if self._reads_text:
            return self.game.parse_action(state, str(action).strip())
        return int(action) if action in self.game.legal_actions(state) else None

    def _let_opponent_move(self) -> None:
        state = self.position.state
        while not self.position.over and self.game.current_player(state) != self.seat:
            assert self._opponent is not None
            self._play(self._opponent.choose([state], [self._replies])[0], self._chance)
            state = self.position.state

    def _play(self, move: int | None, chance: Rng) -> None:
        if move is None:
            self.position = refuse(self.game, self.position)
        else:
            self.position = advance(self.game, self.position, self.game.apply(self.position.state, move, chance))
        self._last_move = move

    # -- what the agent gets -------------------------------------------------------------------------------------------
    def _observation_space(self) -> spaces.Space[Any]:
        if self._tells_text:
            return _text_space(TEXT_LENGTH, survey(self.game).characters)
        return spaces.Box(0, self._features.high, self._features.shape, self._features.dtype)

    def _observe(self) -> Any:
        state = self.position.state
        if self._tells_text:
            return self.game.observation_text(state, self.seat)
        return self._features.encode(state, self.seat)

    def _info(self, illegal: bool) -> dict[str, Any]:
        state = self.position.state
        legal = () if self.position.over else self.game.legal_actions(state)
        return {
            "text": self.game.observation_text(state, self.seat),
            "action_mask": action_mask(self.game, legal),
            "legal_moves": tuple(self.game.action_text(state, action) for action in legal),
            "illegal": illegal,
        }

    def _board(self) -> str:
        return self.game.to_text(self.position.state)

    def _legal_text(self) -> str:
        state = self.position.state
        moves = self.game.legal_actions(state)
        return ", ".join(f"{move} ({self.game.action_text(state, move)})" for move in moves)


def _make(game: str | Game[Any], params: dict[str, Any]) -> Game[Any]:
    if isinstance(game, str):
        return envs.make(game, **params)
    _require_only("argument", params, ())
    return game


def _require(field: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value == one and type(value) is type(one) for one in allowed):
        raise GameError(f"{field} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _require_only(what: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise GameError(f"unknown {what} {unknown[0]!r}; known: {', '.join(known) or 'none'}")


def _text_space(length: int, characters: frozenset[str] = frozenset()) -> spaces.Text:
    return spaces.Text(length, min_length=0, charset=frozenset(string.printable) | characters)


def register_all() -> None:
    """Registers the environments of `IDS` with gymnasium; those that are registered stay."""
    for env_id, name in IDS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=f"{__name__}:GameEnv", kwargs={"game": name})


register_all()
