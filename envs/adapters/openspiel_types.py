"""What OpenSpiel wants declared about a game: its parameters, its type, its bounds.

OpenSpiel's parameters are int, float, bool or string and never null: -1, -1.0 or "" stand for None. Its names of games
keep brackets and commas for themselves, so that a tuple such as (8, 6) is the string `[8;6]`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_args, get_type_hints

import pyspiel

from nlrl.envs.adapters.survey import survey
from nlrl.envs.game import Game
from nlrl.errors import GameError

PREFIX = "nlrl_"
PAY_AT_END = "pay_at_end"
_NONE = {int: -1, float: -1.0, str: ""}
"""What stands for None, by the parameter's other type."""
_SIMPLE = (bool, int, float, str)
_TO_OPENSPIEL = str.maketrans({"(": "[", ")": "]", ",": ";", " ": None})
_FROM_OPENSPIEL = str.maketrans("[];", "(),")


class Parameter(NamedTuple):
    """A constructor's parameter as OpenSpiel has it: its default, and how to read a value."""

    default: Any
    read: Callable[[Any], Any]


def parameters_of(game: Game[Any]) -> dict[str, Parameter]:
    """The parameters of the constructor of `game`, with defaults that OpenSpiel can hold."""
    hints, signature = get_type_hints(type(game).__init__), inspect.signature(type(game)).parameters.values()
    named = [p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: _parameter(p, hints.get(p.name), game.params.get(p.name)) for p in named}


def _parameter(parameter: inspect.Parameter, hint: Any, current: Any) -> Parameter:
    default = current if parameter.default is parameter.empty else parameter.default
    if default is None:
        kind = next((kind for kind in _NONE if kind in get_args(hint)), None)
        return Parameter("" if kind is None else _NONE[kind], _read_tuple if kind is None else _read_simple)
    return Parameter(_write(default), _read_simple if isinstance(default, _SIMPLE) else _read_tuple)


def _write(value: Any) -> Any:
    return value if isinstance(value, _SIMPLE) else str(value).translate(_TO_OPENSPIEL)


def _read_simple(value: Any) -> Any:
    return value


def _read_tuple(text: str) -> Any:
    try:
        return ast.literal_eval(text.translate(_FROM_OPENSPIEL))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise GameError(f"{text!r} is not a value; a tuple such as (8, 6) is written [8;6]") from None


def given_of(game: Game[Any]) -> dict[str, Any]:
    """The parameters of `game` that are not at their default, as OpenSpiel holds them."""
    known = parameters_of(game)
    values = {key: _write(value) for key, value in game.params.items() if value is not None}
    return {key: value for key, value in values.items() if value != known[key].default}


# -- declarations ------------------------------------------------------------------------------------------------------
def game_type_of(game: Game[Any], pay_at_end: bool) -> pyspiel.GameType:
    kind, facts = pyspiel.GameType, survey(game)
    alone, chance = game.num_players == 1, facts.max_outcomes > 1 or len(game.initial_states()) > 1
    specification = {key: parameter.default for key, parameter in parameters_of(game).items()}
    return kind(
        short_name=PREFIX + game.name,
        long_name=f"NLRL {game.name}",
        dynamics=kind.Dynamics.SEQUENTIAL,
        chance_mode=kind.ChanceMode.EXPLICIT_STOCHASTIC if chance else kind.ChanceMode.DETERMINISTIC,
        information=_information(facts.hides),
        utility=kind.Utility.GENERAL_SUM if alone else kind.Utility.ZERO_SUM,
        reward_model=kind.RewardModel.REWARDS if alone and not pay_at_end else kind.RewardModel.TERMINAL,
        max_num_players=game.num_players,
        min_num_players=game.num_players,
        provides_information_state_string=True,
        provides_information_state_tensor=False,
        provides_observation_string=True,
        provides_observation_tensor=True,
        parameter_specification={**specification, PAY_AT_END: False} if alone else specification,
    )


def _information(hides: bool) -> Any:
    kinds = pyspiel.GameType.Information
    return kinds.IMPERFECT_INFORMATION if hides else kinds.PERFECT_INFORMATION


def game_info_of(game: Game[Any]) -> pyspiel.GameInfo:
    (low, high), last = game.value_range, game.truncation_reward
    starts, outcomes = len(game.initial_states()), survey(game).max_outcomes
    return pyspiel.GameInfo(
        num_distinct_actions=game.num_actions,
        max_chance_outcomes=max((n for n in (starts, outcomes) if n > 1), default=0),
        num_players=game.num_players,
        min_utility=low + min(last, 0.0),
        max_utility=high + max(last, 0.0),
        utility_sum=None if game.num_players == 1 else 0.0,
        max_game_length=game.max_length,
    )
