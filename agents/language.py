"""How a game is put into words: the part of the language that rules decide.

A `GameLanguage` knows a game's rules and its sentences. It retells moves (the descriptor d of the language Bellman
equation), states the facts of a position, and words a verdict; it never judges. Whoever judges (the G1 of a corpus,
a model) does so elsewhere and passes the verdict in. Sentences are data: `agents/phrases/<game>.toml`.

1. A `Line` is what was played: the states that chance chose, too. What is retold is always a line.
2. A *score* is the verdict that the rules give a finished line, in [-1, 1] from a player's view. A *verdict* is a
   forecast of it: its expectation.
3. An *aim* is something that a side may still win by, and a name for it that texts cite as hope or danger.
"""

from __future__ import annotations

import random
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
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


class Line(NamedTuple):
    """What was played: n actions and the n + 1 states from before the first to after the last of them."""

    states: tuple[Any, ...]
    actions: tuple[int, ...]

    @property
    def start(self) -> Any:
        return self.states[0]

    @property
    def end(self) -> Any:
        return self.states[-1]


NO_MOVE = -1
"""In place of an action: the reply named no legal move, and the rules say what that costs (`Game.invalid_step`)."""


def line_of(game: Game, state: Any, actions: Sequence[int]) -> Line:
    """The line of `actions` from `state` in a game without chance.

    Raises:
        ValueError: an action is illegal, or chance has a say: then its states must be given, `Line(states, actions)`.
    """
    states = [state]
    for action in actions:
        lost = game.invalid_step(states[-1]) if action == NO_MOVE else None
        states.append((lost or game.apply(states[-1], action)).state)
    return Line(tuple(states), tuple(actions))


class GameLanguage(ABC):
    """The words of one game."""

    setting = ""
    """What prompts say about the rules where games of one name differ, as a phrase (`slippery ice`)."""
    scale = ""
    """What some verdicts mean in the game's own units, where that is not plain, as a phrase."""
    longest_transition = 4
    """Actions that the corpus has G2 retell at most."""
    persistence = 0.0
    """How often a random game of the corpus repeats the action before, where each way is long: a walk that draws every
    step anew stays where it is."""
    atoms: tuple[str, ...] = ()
    """Regular expressions of what a tokenizer keeps whole, earlier ones first; see `agents/corpus/tokens.py`."""

    def __init__(self, game: Game, phrases: dict[str, Any]):
        self.game = game
        self.phrases = phrases

    # -- who plays where -----------------------------------------------------------------------------------------------
    def player(self, state: Any) -> str:
        """The name of the player to move."""
        return self.game.player_names[self.game.current_player(state)]

    def opponent(self, state: Any) -> str:
        """The name of the other player; "" where there is none."""
        return "" if self.game.num_players == 1 else self.game.player_names[1 - self.game.current_player(state)]

    def legal(self, state: Any) -> str:
        """The legal moves, separated by spaces."""
        return " ".join(self.game.action_text(state, action) for action in self.game.legal_actions(state))

    def board(self, state: Any) -> str:
        """The position as prompts show it; states that look alike here are one state to a model."""
        return self.game.to_text(state)

    def label(self, state: Any, action: int) -> str:
        """What a candidate is called in the prompt of I."""
        return f"move {self.game.action_text(state, action)}"

    # -- what the rules say --------------------------------------------------------------------------------------------
    @abstractmethod
    def facts(self, state: Any, pick: Picker = FIRST) -> str:
        """What the rules say about a position, for the player to move."""

    @abstractmethod
    def facts_after(self, state: Any, action: int, pick: Picker = FIRST) -> str:
        """What the rules say about the position after `action`, for the player who moved; of all positions that it may
        lead to, where chance has a say."""

    @abstractmethod
    def read(self, state: Any, pick: Picker = FIRST) -> str:
        """The position piece by piece, as a sentence."""

    def aims(self, state: Any, player: int) -> tuple[str, ...]:
        """What `player` may still win by."""
        return ()

    def aim_of(self, line: Line) -> str | None:
        """The aim by which a finished line was won, whoever won it; None for none."""
        return None

    def serves(self, action: str, aim: str) -> bool:
        """Whether the action of this text is a step to the aim."""
        return False

    # -- what was played -----------------------------------------------------------------------------------------------
    @abstractmethod
    def moves(self, line: Line) -> str:
        """A compact retelling and, where the line ends the game, its result (`X2 O6 X7, X won by 3-5-7`)."""

    def forfeit(self, line: Line) -> str:
        """`moves` of a game that ended because the next player gave no legal answer."""
        return f"{self.moves(line)}, {self.player(line.end)} forfeits"

    def cut(self, line: Line) -> str:
        """`moves` of a game that was cut at its longest."""
        return f"{self.moves(line)}, cut"

    def told(self, line: Line, forfeited: bool = False) -> str:
        """A whole game: by its end `moves`, `forfeit` or `cut`."""
        if forfeited:
            return self.forfeit(line)
        return self.moves(line) if self.game.is_terminal(line.end) else self.cut(line)

    @abstractmethod
    def retell(self, line: Line, pick: Picker = FIRST) -> str:
        """The descriptor d: the moves as a sentence."""

    def content(self, text: str) -> list[str]:
        """What a reading (`read`) or a retelling says, whatever its phrasing: equal lists for equal content."""
        return [text]

    # -- what it was worth ---------------------------------------------------------------------------------------------
    def score_at(self, state: Any, steps: int, player: int = 0) -> float:
        """The score of a line of `steps` actions that ends in `state`, in [-1, 1] from `player`'s view.

        By default the return: +0.50 says, for example, three wins to one loss. A line that has not ended was cut: 0.
        """
        return self.game.returns(state)[player]

    def forfeit_score(self, line: Line, player: int = 0) -> float:
        """The score of a line whose next player forfeits."""
        return -1.0 if self.game.current_player(line.end) == player else 1.0

    def score(self, line: Line, player: int = 0, forfeited: bool = False) -> float:
        """The verdict of a finished line, for the state that it starts from."""
        return self.forfeit_score(line, player) if forfeited else self.score_at(line.end, len(line.actions), player)

    def verdict_of_value(self, value: float, state: Any) -> float:
        """An exact expected return to come from `state` (as oracles give it) on the scale of verdicts.

        Right where all ways have one length or length does not matter; else average `score_at` over the ways' ends.
        """
        return value

    def carry(self, line: Line, outlook: Outlook) -> Outlook:
        """What an outlook on the line's end, from the view of the player to move there, means for its start and mover
        (the sum r + gamma V of the scalar Bellman equation)."""
        if self.game.current_player(line.start) == self.game.current_player(line.end):
            return outlook
        return Outlook(-outlook.verdict + 0.0, outlook.danger, outlook.hope)

    def summary(self, scores: Sequence[float], player: str, pick: Picker = FIRST) -> str:
        """What G1 counts in the games it is given: by default games won, drawn and lost."""
        won, lost = sum(score > 0 for score in scores), sum(score < 0 for score in scores)
        counts = {"n": len(scores), "won": won, "drawn": len(scores) - won - lost, "lost": lost}
        return pick.choice(self.phrases["counts"]["games"]).format(me=player, **counts)

    # -- positions for the corpus --------------------------------------------------------------------------------------
    def wander(self, rng: random.Random) -> Callable[[Any], int]:
        """How the players of one game move from which the corpus draws a position, where the game is too large to list
        its positions: at random. No example shows these moves."""
        before = NO_MOVE

        def choose(state: Any) -> int:
            nonlocal before
            before = self.random_action(state, before, rng)
            return before

        return choose

    def random_action(self, state: Any, before: int, rng: random.Random) -> int:
        """A uniformly random legal action, or the one `before` it again where the game's random walks go on."""
        legal = self.game.legal_actions(state)
        if self.persistence and before in legal and rng.random() < self.persistence:
            return before
        return rng.choice(legal)

    # -- words ---------------------------------------------------------------------------------------------------------
    def atom_texts(self) -> list[str]:
        """Every atom as it appears in texts, so that each gets its token however rare it is."""
        return []

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


_languages: dict[str, str | type[GameLanguage]] = {
    "frozen_lake": "nlrl.agents.frozen_lake_language:FrozenLakeLanguage",
    "maze": "nlrl.agents.maze_language:MazeLanguage",
    "breakthrough": "nlrl.agents.breakthrough_language:BreakthroughLanguage",
    "tictactoe": "nlrl.agents.tictactoe_language:TicTacToeLanguage",
}


def register_language(game_name: str, language: str | type[GameLanguage]) -> None:
    """Gives the game of this name a language: a class, or a string `module:class` that is imported on first use.

    Raises:
        NLRLError: it has one.
    """
    if game_name in _languages:
        raise NLRLError(f"game '{game_name}' has a language already")
    _languages[game_name] = language


def language_of(game: Game) -> GameLanguage:
    """The language of a game.

    Raises:
        NLRLError: the game has none; an instruct model can still play it, a bundled model cannot.
    """
    if game.name not in _languages:
        raise NLRLError(f"game '{game.name}' has no language; known: {', '.join(sorted(_languages))}")
    language = _languages[game.name]
    if isinstance(language, str):
        module, _, name = language.partition(":")
        language = _languages[game.name] = getattr(import_module(module), name)
    return language(game, load_phrases(game.name))
