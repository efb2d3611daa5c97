"""What a config's fields cannot check alone: refused before a folder is made or an actor started."""

from __future__ import annotations

from typing import Any

from nlrl.agents.roles import Roles
from nlrl.envs import make
from nlrl.envs.game import Game
from nlrl.envs.opponents import make_opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.checkpoints import MOST, checkpoint_maker, checkpoints_in
from nlrl.orchestration.checkpoints import NAME as PAST
from nlrl.orchestration.config import EvaluationConfig, RolloutConfig, RunConfig
from nlrl.orchestration.diary import probe_list
from nlrl.orchestration.frozen import FrozenModel, unopened
from nlrl.orchestration.methods import Method, method_of
from nlrl.orchestration.placement import check_placement
from nlrl.orchestration.players import NONE, SELF
from nlrl.orchestration.submit import check_in_job
from nlrl.orchestration.training_checks import check_training


def check(config: RunConfig) -> None:
    """Tries whatever can be tried without a model.

    Raises:
        NLRLError: `out` would be lost, the model cannot be trained, no such game, no language for it, no such opponent
            (or frozen agent), an illegal probe; the message names the field.
    """
    check_in_job(config.out)
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
        _check_horizon(config)
        _check_opponents(config, game)
        _check_checkpoints(config, method)
    probe_list(config, game)
    check_training(config)
    _check_replay(config, method)
    _check_staleness(config, method)
    check_placement(config)
    method.check(config, game)


def _check_horizon(config: RunConfig) -> None:
    """A cut game of two would be a draw, which is no price for detours, and exact values know whole games only."""
    if config.targets.horizon != "full":
        raise NLRLError(f"targets.horizon is '{config.targets.horizon}': only games for one player; leave it 'full'")


def _check_staleness(config: RunConfig, method: Method) -> None:
    if config.staleness and not method.gathers:
        raise NLRLError(
            f"staleness is {config.staleness}, but method '{config.method}' has nothing to gather while networks "
            "learn; leave it 0"
        )


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
    agents = unopened(game, config.rollout, config.seed)
    none_yet = FrozenModel(None, config.model.prompt_style, 1)  # type: ignore[arg-type]
    past = checkpoint_maker(lambda which: none_yet, config.rollout, config.seed)
    for field, names, makers in (
        ("rollout.opponents", [name for name in config.rollout.opponents if name != SELF], agents | past),
        ("evaluation.opponents", config.evaluation.opponents, agents),
        ("league.members", config.league.members if config.league.every else (), agents | past),
    ):
        for name in names:
            try:
                make_opponent(name, game, makers)
            except NLRLError as error:
                hint = "; the run's own past is met in league.members" if makers is agents and PAST in name else ""
                raise NLRLError(f"{field}: {error}{hint}") from None


def _check_checkpoints(config: RunConfig, method: Method) -> None:
    """There must be checkpoints, and few enough of them at a time."""
    league, rollout = config.league.members if config.league.every else (), config.rollout.opponents
    in_rollout, in_league = checkpoints_in(rollout), checkpoints_in(league)
    if not config.league.every and not in_rollout:
        return
    field = "rollout.opponents" if in_rollout else "league.every"
    if "actor" not in [name for name, _ in method.stages]:
        raise NLRLError(f"{field}: method '{config.method}' trains no actor, so there are no checkpoints to play")
    for one in in_rollout:
        last = max(config.iterations - 1 - config.staleness, 0)
        if isinstance(one.which, int) and one.which > last:
            raise NLRLError(f"rollout.opponents: checkpoint({one.which}) meets nobody: the last one played is {last}")
    if "all" in [one.which for one in in_rollout]:
        raise NLRLError("rollout.opponents: checkpoint(all) is for league.members; here, checkpoint(random) draws one")
    if "random" in [one.which for one in in_league]:
        raise NLRLError("league.members: checkpoint(random) is for rollout.opponents; here, checkpoint(all) is each")
    if len(in_rollout) > MOST:
        raise NLRLError(f"rollout.opponents: {len(in_rollout)} checkpoints would be held in memory; {MOST} may be")
    anchor = config.league.anchor
    if config.league.every and anchor is not None and not _is_always_there(anchor, league):
        raise NLRLError(f"league.anchor: '{anchor}' is not a member of every round; members are {', '.join(league)}")


def _is_always_there(anchor: str, members: tuple[str, ...]) -> bool:
    return anchor in members and all(one.which == 0 for one in checkpoints_in([anchor]))


def _check_alone(config: RunConfig, game: Game[Any]) -> None:
    """In a game for one player nobody is opposed: opponents are left as they are, or are `none`."""
    for field, names, unset in (
        ("rollout.opponents", config.rollout.opponents, RolloutConfig().opponents),
        ("evaluation.opponents", config.evaluation.opponents, EvaluationConfig().opponents),
    ):
        if names not in ((), (NONE,), unset):
            raise NLRLError(f"{field} is {list(names)}, but {game.spec} is a game for one player; leave it out")
    if config.league.every:
        raise NLRLError(f"league.every: a league is for games for two; {game.spec} is for one")
    if config.targets.opponent_aware:
        raise NLRLError(f"targets.opponent_aware: {game.spec} is a game for one player")
