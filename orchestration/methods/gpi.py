"""Algorithm 1 of the paper (arXiv 2411.14251), language generalised policy iteration by prompting: sweeps over all
states of a small game for one player, and walks by what they chose. Nothing is trained, so any model will do."""

from __future__ import annotations

from typing import Any

from nlrl.agents.corpus.states import states_by_ply
from nlrl.envs.game import Game
from nlrl.envs.opponents import make_opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.methods import Method
from nlrl.orchestration.stages import evaluation, sweep
from nlrl.orchestration.stages.planned_walks import run_walks
from nlrl.orchestration.stages.sweep import run_sweep


def check_game(config: RunConfig, game: Game[Any]) -> None:
    """Refuses games that cannot be swept over.

    Raises:
        NLRLError: the game is for two, or too large, or the look-aheads' policy is unknown.
    """
    if game.num_players != 1:
        raise NLRLError(f"game: method 'gpi' walks alone; {game.spec} is a game for {game.num_players}")
    try:
        states_by_ply(game.spec)
    except NLRLError as error:
        raise NLRLError(f"game: method 'gpi' sweeps over all states: {error}") from None
    try:
        make_opponent(config.gpi.policy, game)
    except NLRLError as error:
        raise NLRLError(f"gpi.policy: {error}") from None


METHOD = Method(
    stages=((sweep.NAME, run_sweep), (evaluation.NAME, run_walks)),
    exports=None,
    check=check_game,
)
