"""How a game is put into words: the part of the language that rules decide.

A `GameLanguage` knows a game's rules and its sentences. It retells moves (the descriptor d of the language Bellman
equation), states the facts of a position, and words a verdict; it never judges. Whoever judges (the G1 of a corpus,
a model) does so elsewhere and passes the verdict in. Sentences are data: `agents/phrases/<game>.toml`.
"""

from __future__ import annotations

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nlrl.envs.game import Game
from nlrl.errors import NLRLError


class Picker(Protocol):
    """Chooses among phrasings: a seeded generator, or `first` for the plain one."""

    def choice(self, items: Sequence[str]) -> str: ...


class First:
    """Always the first phrasing: canonical text."""

    def choice(self, items: Sequence[str]) -> str:
        return items[0]


FIRST = First()

BANDS = (
    (0.85, "winning"),
    (0.5, "much_better"),
    (0.15, "better"),
    (-0.15, "level"),
    (-0.5, "worse"),
    (-0.85, "much_worse"),
)
"""Lower bounds (exclusive) of each band of verdicts, from the best down; below the last it is "losing"."""


def band(verdict: float) -> str:
    """The name of the band a verdict in [-1, 1] falls into; symmetric around 0."""
    for bound, name in BANDS:
        if verdict >= bound if bound > 0 else verdict > bound:
            return name
    return "losing"


def number(verdict: float) -> str:
    """A verdict as it is written everywhere: sign and two decimals (`+0.50`; zero is `+0.00`)."""
    return f"{round(verdict, 2) + 0.0:+.2f}"


class Outlook(NamedTuple):
    """What a forecast says: the verdict from the mover's view in [-1, 1], and the lines it cites (text, or None)."""

    verdict: float
    hope: str | None = None
    danger: str | None = None


class GameLanguage(ABC):
    """The words of one game."""

    def __init__(self, game: Game, phrases: dict[str, Any]):
        self.game = game
        self.phrases = phrases

    def player(self, state: Any) -> str:
        """The name of the player to move."""
        return self.game.player_names[self.game.current_player(state)]

    def opponent(self, state: Any) -> str:
        """The name of the other player (of a two-player game)."""
        return self.game.player_names[1 - self.game.current_player(state)]

    def legal(self, state: Any) -> str:
        """The legal moves, separated by spaces."""
        return " ".join(self.game.action_text(state, action) for action in self.game.legal_actions(state))

    @abstractmethod
    def facts(self, state: Any, pick: Picker = FIRST) -> str:
        """What the rules say about a position, for the player to move."""

    @abstractmethod
    def facts_after(self, state: Any, action: int, pick: Picker = FIRST) -> str:
        """What the rules say about the position after `action`, for the player who moved."""

    @abstractmethod
    def moves(self, state: Any, actions: Sequence[int]) -> str:
        """A compact retelling of moves and, where they end the game, its result (`X2 O6 X7, X won by 3-5-7`)."""

    def forfeit(self, state: Any, actions: Sequence[int]) -> str:
        """`moves` of a game that ended because the next player gave no legal answer."""
        now = state
        for action in actions:
            now = self.game.apply(now, action).state
        return f"{self.moves(state, actions)}, {self.player(now)} forfeits"

    @abstractmethod
    def result(self, state: Any) -> str:
        """How a finished game ended, e.g. `X won by 3-5-7` or `draw`."""

    @abstractmethod
    def read(self, state: Any, pick: Picker = FIRST) -> str:
        """The position piece by piece, as a sentence."""

    @abstractmethod
    def retell(self, state: Any, actions: Sequence[int], pick: Picker = FIRST) -> str:
        """The descriptor d: the moves as a sentence."""

    def forecast(self, player: str, outlook: Outlook, pick: Picker = FIRST) -> str:
        """A forecast sentence whose words agree with its verdict and which cites only the lines it is given."""
        kind = {(0, 0): "plain", (1, 0): "hope", (0, 1): "danger", (1, 1): "both"}[
            outlook.hope is not None, outlook.danger is not None
        ]
        return pick.choice(self.phrases["forecast"][kind]).format(
            me=player,
            verdict=number(outlook.verdict),
            band=pick.choice(self.phrases["bands"][band(round(outlook.verdict, 2))]),
            hope=outlook.hope,
            danger=outlook.danger,
        )


@cache
def load_phrases(game_name: str) -> dict[str, Any]:
    """The sentences of a game.

    Raises:
        NLRLError: no phrases are written for this game.
    """
    path = Path(__file__).parent / "phrases" / f"{game_name}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.toml")))
        raise NLRLError(f"game '{game_name}' has no sentences (agents/phrases/{game_name}.toml); known: {known}")
    return tomllib.loads(path.read_text())


def language_of(game: Game) -> GameLanguage:
    """The language of a game.

    Raises:
        NLRLError: the game has none; an instruct model can still play it, a bundled model cannot.
    """
    from nlrl.agents.tictactoe_language import TicTacToeLanguage

    languages = {"tictactoe": TicTacToeLanguage}
    if game.name not in languages:
        raise NLRLError(f"game '{game.name}' has no language; known: {', '.join(languages)}")
    return languages[game.name](game, load_phrases(game.name))
