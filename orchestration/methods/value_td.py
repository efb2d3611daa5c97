"""Algorithm 2 of the paper (arXiv 2411.14251), iterated language TD: a critic of positions learns the values of a fixed
policy from look-aheads that are made once and labelled anew in every iteration. No policy is trained."""

from __future__ import annotations

from typing import Any

from nlrl.envs.game import Game
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.methods import Method
from nlrl.orchestration.stages import evaluation, targets
from nlrl.orchestration.stages.imported import check_folder
from nlrl.orchestration.stages.training import run_critic
from nlrl.orchestration.stages.value_evaluation import run_value_evaluation
from nlrl.orchestration.stages.value_targets import LOOK_AHEADS, run_labels, run_look_aheads


def check_game(config: RunConfig, game: Game[Any]) -> None:
    """Refuses games without exact values, and players that are not there.

    Raises:
        NLRLError: the game has one player, no oracle, or there is no such policy, player or imported folder.
    """
    if game.num_players != 2:
        raise NLRLError(f"game: method 'value_td' plays both sides of a game for two; {game.spec} is for one")
    oracle_for(game)
    td = config.value_td
    for field, folder, kind in (
        ("imported", td.imported, "lookahead"),
        ("imported_held_out", td.imported_held_out, "state"),
    ):
        if folder is not None:
            check_folder(f"value_td.{field}", folder, kind, game)
    named = {"value_td.policy": (config.value_td.policy,), "value_td.states.players": config.value_td.states.players}
    for field, names in named.items():
        for name in names:
            try:
                make_opponent(name, game)
            except NLRLError as error:
                raise NLRLError(f"{field}: {error}") from None


METHOD = Method(
    first=((LOOK_AHEADS, run_look_aheads), (evaluation.NAME, run_value_evaluation)),
    stages=(
        (targets.NAME, run_labels),
        ("critic", run_critic),
        (evaluation.NAME, run_value_evaluation),
    ),
    exports="critic",
    gathers=1,
    asked=lambda config: ("critic",),
    check=check_game,
)
