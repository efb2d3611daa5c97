"""Methods: what a run does. A method is a list of stages; everything else about a run is the same for all of them.

1. A *stage* is a function of (session, iteration) that reads committed records and commits its own, under the name it
   has in the list. One that is committed returns at once, having restored what later stages need (weights).
2. `Method.first` are the stages of iteration 0, before anything is learned, `Method.stages` those of all others.
3. A method's own settings are a section of the config, named like the method.

To add one: a module here with a `METHOD`, named like the method, and its name in `config.MethodName`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from nlrl.envs.game import Game
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages import league
from nlrl.orchestration.trainer import Network

StageFunction = Callable[[Session, int], Any]
NamedStage = tuple[str, StageFunction]


class Method(NamedTuple):
    """One way to turn a config into an agent."""

    stages: tuple[NamedStage, ...]
    """Of every iteration from 1 on, in order; each name is that of the stage's folder."""
    first: tuple[NamedStage, ...] = ()
    """Of iteration 0."""
    exports: Network | None = "actor"
    """The trained network that a finished run leaves in its folder `agent`; None where nothing is trained, and then
    the model may be of any kind."""
    check: Callable[[RunConfig, Game[Any]], None] = lambda config, game: None
    """Refuses, before anything is started, what the method cannot do. Raises NLRLError naming the field."""
    gathers: int = 0
    """So many of the first stages only ask models and write down what is learned from: in asynchronous runs they work
    ahead. 0: there is nothing that could be done beside learning."""
    asked: Callable[[RunConfig], tuple[Network, ...]] = lambda config: ("actor",)
    """Networks that they ask."""


def method_of(config: RunConfig) -> Method:
    """The method that a config names; modules are imported when first used."""
    return import_module(f"{__name__}.{config.method}").METHOD


def stages_of(config: RunConfig, iteration: int = 1) -> tuple[NamedStage, ...]:
    """The stages of an iteration, in order: the method's, and a round of the league where one is due."""
    due = config.league.every and iteration % config.league.every == 0
    return method_of(config).stages + (((league.NAME, league.run_league_round),) if due else ())
