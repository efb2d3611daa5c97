"""What a config's fields cannot check alone: refused before a folder is made or an actor started."""

from __future__ import annotations

from nlrl.agents.roles import Roles
from nlrl.envs import make
from nlrl.envs.opponents import make_opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.diary import probe_list
from nlrl.orchestration.frozen import agent_maker, describe
from nlrl.orchestration.players import SELF


def check(config: RunConfig) -> None:
    """Tries whatever can be tried without a model.

    Raises:
        NLRLError: the model cannot be trained, no such game, no language for it, no such opponent (or frozen agent), an
            illegal probe; the message names the field.
    """
    if not config.model.trainable:
        raise NLRLError(
            f"model.kind is '{config.model.kind}': only native models can be trained here; "
            "name such a model under [teacher], or measure it as it is with `nlrl eval`"
        )
    try:
        game = make(config.game.name, **config.game.params)
    except NLRLError as error:
        raise NLRLError(f"game: {error}") from None
    for model in (config.model, config.teacher or config.model):
        Roles(game, model.prompt_style)
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
    probe_list(config, game)
