"""Games as OpenSpiel games: `pyspiel.load_game("nlrl_breakthrough(rows=5,columns=5)")`, or `to_openspiel(game)`.

1. Importing this module registers every game that `nlrl.envs.names()` lists as `nlrl_NAME`, with the parameters of
   `nlrl.envs.make(NAME)`. `import nlrl.envs` does the same as soon as pyspiel is imported, in whichever order.
2. OpenSpiel's parameters are int, float, bool or string and never null: -1, -1.0 or "" stand for None.
3. What is left to chance is a chance node of its own: the draw of the first state where there are several, and the
   outcome of an action that has several. Rewards are paid after it.
4. `max_length` is OpenSpiel's `max_game_length`; a game cut there is terminal, with `truncation_reward` in its returns.
5. One-player games pay rewards on the way. OpenSpiel's MCTS accepts only games that pay at the end: with the parameter
   `pay_at_end=True` such a game keeps all rewards until it is over, and its returns stay what they are.
6. `str(state)` is the board, for one player with the number of moves and the return so far, so that equal strings are
   equal futures, as OpenSpiel's value iteration wants.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyspiel
from open_spiel.python.observation import IIGObserverForPublicInfoGame

from nlrl import envs
from nlrl.envs.adapters.features import features_of
from nlrl.envs.adapters.openspiel_types import PAY_AT_END, PREFIX, game_info_of, game_type_of, given_of, parameters_of
from nlrl.envs.adapters.position import Position, advance, start
from nlrl.envs.adapters.survey import survey
from nlrl.envs.game import Game, Step
from nlrl.errors import GameError, NLRLError

_classes: dict[str, type] = {}
"""Game class by OpenSpiel name, for what is registered so far."""


def to_openspiel(game: Game[Any], pay_at_end: bool = False) -> pyspiel.Game:
    """`game` as an OpenSpiel game; see the module's text.

    OpenSpiel stores and sends games by name, so a game of a new class is registered as `nlrl_NAME` on the way; of two
    classes with one name the later one stays, unless `nlrl.envs` knows the name.

    Raises:
        GameError: `nlrl.envs` has another game of this name, or `pay_at_end` is given for a game of two players.
    """
    if game.num_players != 1 and pay_at_end:
        raise GameError(f"{game.spec}: pay_at_end is for games of one player; this one pays at its end anyway")
    _ensure_registered(game)
    return OpenSpielGame(game, pay_at_end)


def register_all() -> None:
    """Registers every game that `nlrl.envs.make` makes without parameters with OpenSpiel; what is registered stays."""
    for name in envs.names():
        with contextlib.suppress(GameError):  # a game that needs parameters: to_openspiel registers it
            if PREFIX + name not in _classes:
                _register(envs.make(name))


# -- registration ------------------------------------------------------------------------------------------------------
def _ensure_registered(game: Game[Any]) -> None:
    cls, known = type(game), _classes.get(PREFIX + game.name)
    if known is cls:
        return
    if known is not None and game.name in envs.names():
        raise GameError(f"{PREFIX}{game.name} is {known.__module__}.{known.__name__}; name {cls.__name__} otherwise")
    _register(game)


def _register(game: Game[Any]) -> None:
    """Makes `nlrl_NAME` loadable; `game` is any game of its class."""

    def create(params: Mapping[str, Any]) -> pyspiel.Game:
        own = {key: given.read(params[key]) for key, given in known.items() if params[key] != given.default}
        return OpenSpielGame(cls(**own), params.get(PAY_AT_END, False))

    cls, known = type(game), parameters_of(game)
    # OpenSpiel lets go of it after Python has ended, when freeing it would crash: a cycle keeps it.
    create.itself = create  # type: ignore[attr-defined]
    pyspiel.register_game(game_type_of(game, False), create)
    _classes[PREFIX + game.name] = cls


class OpenSpielGame(pyspiel.Game):
    """An nlrl game in OpenSpiel; `rules` is the game itself."""

    def __init__(self, rules: Game[Any], pay_at_end: bool = False):
        given = {**given_of(rules), PAY_AT_END: True} if pay_at_end else given_of(rules)
        super().__init__(game_type_of(rules, pay_at_end), game_info_of(rules), given)
        self.rules, self.pays_at_end = rules, pay_at_end or rules.num_players > 1
        self.starts, self.max_outcomes = tuple(rules.initial_states()), survey(rules).max_outcomes
        self.root = _root(rules, self.starts)

    def new_initial_state(self, state: Any = None) -> OpenSpielState:
        """The start of a game.

        Raises:
            NLRLError: a state is given; OpenSpiel's descriptions of states as JSON are not supported.
        """
        if state is not None:
            raise NLRLError(f"{self}: a state cannot be made from {state!r}; apply actions to an initial state")
        return OpenSpielState(self)

    def max_chance_nodes_in_history(self) -> int:
        return (len(self.starts) > 1) + (self.rules.max_length if self.max_outcomes > 1 else 0)

    def make_py_observer(self, iig_obs_type: Any = None, params: Any = None) -> Any:
        """What the players see. For a game that hides something: only with their own, and so all, information."""
        kinds = pyspiel.PrivateInfoType
        if not isinstance(iig_obs_type, pyspiel.IIGObservationType):  # OpenSpiel's C++ passes `params` alone
            return _Observer(self.rules, recall=False)
        if survey(self.rules).hides:
            complete = iig_obs_type.public_info and iig_obs_type.private_info == kinds.SINGLE_PLAYER
            return _Observer(self.rules, iig_obs_type.perfect_recall) if complete else None
        if iig_obs_type.public_info and not iig_obs_type.perfect_recall:
            return _Observer(self.rules, recall=False)
        return IIGObserverForPublicInfoGame(iig_obs_type, params)


# -- play --------------------------------------------------------------------------------------------------------------
class _Node(NamedTuple):
    """Where a game is: after `position`, and before chance picks one of `outcomes` if there are any.

    The whole of a state's own data is one immutable value, which OpenSpiel's clones may therefore share.
    """

    position: Position
    outcomes: tuple[Step[Any], ...]
    draws_start: bool = False
    """Chance is to pick the state that the game starts from."""

    def __deepcopy__(self, memo: Any) -> _Node:
        return self


def _root(rules: Game[Any], starts: tuple[Any, ...]) -> _Node:
    """Where games begin: at the only start, or before one is drawn."""
    first, share = start(rules, starts[0]), 1 / len(starts)
    draws = tuple(Step(share, state, first.rewards) for state in starts) if len(starts) > 1 else ()
    return _Node(first, draws, bool(draws))


class OpenSpielState(pyspiel.State):
    """A state of play; `position.state` is the state of the rules."""

    def __init__(self, game: OpenSpielGame):
        super().__init__(game)
        self._node = game.root

    @property
    def _game(self) -> OpenSpielGame:
        return self.get_game()  # no attribute, which every clone would copy

    @property
    def position(self) -> Position:
        """The state of the rules, with what has been played and paid; at a chance node, that before it."""
        return self._node.position

    def current_player(self) -> int:
        if self._node.outcomes:
            return pyspiel.PlayerId.CHANCE
        return pyspiel.PlayerId.TERMINAL if self.is_terminal() else self._game.rules.current_player(self.position.state)

    def is_terminal(self) -> bool:
        return self._node.position.over

    def _legal_actions(self, player: int) -> list[int]:
        return list(self._game.rules.legal_actions(self.position.state))

    def chance_outcomes(self) -> list[tuple[int, float]]:
        return [(number, step.probability) for number, step in enumerate(self._node.outcomes)]

    def _apply_action(self, action: int) -> None:
        """Raises:
        NLRLError: the action has more outcomes than the game was declared to have.
        """
        game, (position, outcomes, draws_start) = self._game, self._node
        if draws_start:
            self._node = _Node(start(game.rules, outcomes[action].state), ())
            return
        steps: tuple[Step[Any], ...] = (
            (outcomes[action],) if outcomes else game.rules.transitions(position.state, action)
        )
        if len(steps) > game.max_outcomes:
            raise NLRLError(
                f"{game}: {len(steps)} outcomes of one action, where its first states have {game.max_outcomes}"
            )
        chance = bool(steps[1:])
        self._node = _Node(position, steps) if chance else _Node(advance(game.rules, position, steps[0]), ())

    def rewards(self) -> list[float]:
        """What the last action paid."""
        if self._game.pays_at_end:
            return self.returns()
        return [0.0] * self._game.rules.num_players if self._node.outcomes else list(self.position.rewards)

    def returns(self) -> list[float]:
        """The sum of rewards so far; in a game that pays at its end 0 until then."""
        if self._game.pays_at_end and not self.is_terminal():
            return [0.0] * self._game.rules.num_players
        return list(self.position.totals)

    # -- text ----------------------------------------------------------------------------------------------------------
    def _action_to_string(self, player: int, action: int) -> str:
        rules, (position, outcomes, draws_start) = self._game.rules, self._node
        if player != pyspiel.PlayerId.CHANCE:
            return rules.action_text(position.state, action)
        return f"start {action}" if draws_start else f"outcome {action}: {outcomes[action].state}"

    def __str__(self) -> str:
        rules, (position, outcomes, draws_start) = self._game.rules, self._node
        lines = ["a start is drawn" if draws_start else rules.to_text(position.state)]
        if rules.num_players == 1:
            lines.append(f"moves: {position.played}, return: {position.totals[0]}")
        if outcomes and not draws_start:
            lines.append(f"chance: {', '.join(f'{step.state} {step.probability:.3g}' for step in outcomes)}")
        return "\n".join(lines)


class _Observer:
    """What a player sees, as OpenSpiel's observer: `tensor`, views of it in `dict`, and a string."""

    def __init__(self, rules: Game[Any], recall: bool):
        self._rules, self._recall, self._features = rules, recall, features_of(rules)
        self.tensor = np.zeros(int(np.prod(self._features.shape)), np.float32)
        self.dict = {"observation": self.tensor.reshape(self._features.shape)}

    def set_from(self, state: OpenSpielState, player: int) -> None:
        """Zero before the start is drawn."""
        unknown = state._node.draws_start
        self.dict["observation"][:] = 0 if unknown else self._features.encode(state.position.state, player)

    def string_from(self, state: OpenSpielState, player: int) -> str:
        """The text that the player sees; with recall, all it saw when it moved, and its moves, before that."""
        if state._node.draws_start:
            return ""
        parts = self._memories(state, player) if self._recall else []
        return "\n".join([*parts, self._rules.observation_text(state.position.state, player)])

    def _memories(self, state: OpenSpielState, player: int) -> list[str]:
        past, parts = state.get_game().new_initial_state(), []
        for item in state.full_history():
            if item.player == player:
                here = past.position.state
                seen, move = self._rules.observation_text(here, player), self._rules.action_text(here, item.action)
                parts += [seen, f"> {move}"]
            past.apply_action(item.action)
        return parts


register_all()
