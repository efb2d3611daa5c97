"""What a config's fields cannot check alone: refused before a folder is made or an actor started."""

from __future__ import annotations

from typing import Any

from nlrl.agents.roles import Roles
from nlrl.envs import make
from nlrl.envs.game import Game
from nlrl.envs.opponents import make_opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.config import EvaluationConfig, RolloutConfig, RunConfig
from nlrl.orchestration.diary import probe_list
from nlrl.orchestration.frozen import agent_maker, describe
from nlrl.orchestration.methods import Method, method_of
from nlrl.orchestration.players import NONE, SELF


def check(config: RunConfig) -> None:
    """Tries whatever can be tried without a model.

    Raises:
        NLRLError: the model cannot be trained, no such game, no language for it, no such opponent (or frozen agent), an
            illegal probe; the message names the field.
    """
    method = method_of(config)
    if method.exports is not None and not config.model.trainable:
        raise NLRLError(
            f"model.kind is '{config.model.kind}': only native models, and vllm with [model.tuning], can be trained "
            "here; name such a model under [teacher], or measure it as it is with `nlrl eval`"
        )
    try:
        game = make(config.game.name, **config.game.params)
    except NLRLError as error:
        raise NLRLError(f"game: {error}") from None
    for model in (config.model, config.teacher or config.model):
        Roles(game, model.prompt_style)
    if game.num_players == 1:
        _check_alone(config, game)
    else:
        _check_opponents(config, game)
    probe_list(config, game)
    _check_replay(config, method)
    method.check(config, game)


def _check_replay(config: RunConfig, method: Method) -> None:
    """Only texts of the shared stages are chosen among; other methods have samples of their own policy."""
    from nlrl.orchestration.stages import training

    stages = [stage for _, stage in method.stages]
    for name, settings, stage in (
        ("critic", config.critic, training.run_critic),
        ("actor", config.actor, training.run_actor),
    ):
        if settings.replay.kind != "recent" and stage not in stages:
            raise NLRLError(
                f"{name}.replay.kind is '{settings.replay.kind}', but method '{config.method}' does not train its "
                f"{name} on targets or choices; leave it 'recent'"
            )


def _check_opponents(config: RunConfig, game: Game[Any]) -> None:
    agents = agent_maker(lambda source: describe(source).frozen(None), config.rollout, config.seed)
    for field, names in (
        ("rollout.opponents", [name for name in config.rollout.opponents if name != SELF]),
        ("evaluation.opponents", config.evaluation.opponents),
    ):
        for name in names:
            try:
                make_opponent(name, game, agents)
            except NLRLError as error:
                raise NLRLError(f"{field}: {error}") from None


def _check_alone(config: RunConfig, game: Game[Any]) -> None:
    """In a game for one player nobody is opposed: opponents are left as they are, or are `none`."""
    for field, names, unset in (
        ("rollout.opponents", config.rollout.opponents, RolloutConfig().opponents),
        ("evaluation.opponents", config.evaluation.opponents, EvaluationConfig().opponents),
    ):
        if names not in ((), (NONE,), unset):
            raise NLRLError(f"{field} is {list(names)}, but {game.spec} is a game for one player; leave it out")
    if config.targets.opponent_aware:
        raise NLRLError(f"targets.opponent_aware: {game.spec} is a game for one player")
