"""Stages 3 and 5: the critic learns the targets, the actor learns what I argued. Supervised fine-tuning on texts,
nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice

from nlrl.agents.roles import ActionInput, StateInput
from nlrl.backbones.language_model import Message
from nlrl.envs.random import derive_seed
from nlrl.errors import NLRLError
from nlrl.orchestration.config import TrainConfig
from nlrl.orchestration.session import ACTOR, CRITIC, Session
from nlrl.orchestration.stages import improvement, targets
from nlrl.orchestration.trainer import WEIGHTS_FILE, FitSettings, Network, TextExample

MOST_WEIGHT = 4.0
REPLAYED_ROLES = ("reader", "descriptor", "g1_games", "g2", "improvement")
"""Corpus roles that may be replayed: they keep reading and counting alive and say nothing about what to play."""


def run_critic(session: Session, iteration: int) -> None:
    """Trains the critic on the newest target sets."""
    config, role = session.config.critic, session.student_roles.q

    def examples() -> Iterator[TextExample]:
        for it in buffer(config, iteration):
            for record in session.folder.stage(it, targets.NAME).records():
                if record["target"] is not None:
                    inp = ActionInput(session.game.parse_text(record["state"]), record["action"])
                    yield TextExample(role.messages(inp), record["target"], weight(config, record["visits"]))

    _train(session, iteration, CRITIC, config, examples())


def run_actor(session: Session, iteration: int) -> None:
    """Trains the actor on the newest sets of choices."""
    config, role = session.config.actor, session.student_roles.policy

    def examples() -> Iterator[TextExample]:
        for it in buffer(config, iteration):
            for record in session.folder.stage(it, improvement.NAME).records():
                if record["target"] is not None:
                    inp = StateInput(session.game.parse_text(record["state"]))
                    yield TextExample(role.messages(inp), record["target"], weight(config, record["visits"]))

    _train(session, iteration, ACTOR, config, examples())


def buffer(config: TrainConfig, iteration: int) -> range:
    """The iterations whose sets are trained on: the newest alone while the policy changes fast, then several, but
    never those from before it settled."""
    until = config.short_buffer_until
    if iteration <= until:
        return range(iteration, iteration + 1)
    return range(max(until, 1, iteration - config.buffer_iterations + 1), iteration + 1)


def weight(config: TrainConfig, visits: int) -> float:
    """How much an example counts, by how often games visited its state."""
    return min(MOST_WEIGHT, max(visits, 1) ** config.visit_weight)


def _train(
    session: Session, iteration: int, network: Network, config: TrainConfig, found: Iterable[TextExample]
) -> None:
    stage = session.folder.stage(iteration, network)
    assert session.trainer is not None
    if stage.is_committed():
        if session.versions[network] != f"{network}@{iteration}":
            session.restore(network, iteration, stage.dir)
        return
    examples = list(found)
    if not examples:
        raise NLRLError(
            f"iteration {iteration}: there is nothing to train the {network} on: no readable text came of the games. "
            f"What was said instead is in {stage.dir.parent}; does {session.config.model.name} know them?"
        )
    if network == CRITIC and session.config.control == "shuffled_g1":
        examples = shuffled_answers(examples, session.seed("shuffled_g1", iteration))
    replayed = replay(session, iteration, network, round(len(examples) * config.replay_fraction))
    epochs = config.first_epochs if iteration == 1 else config.epochs
    settings = FitSettings(config.learning_rate, config.batch_size, epochs, session.seed("fit", network, iteration))
    metrics = session.trainer.call("fit", network, examples + replayed, settings).result()
    with stage.file(WEIGHTS_FILE) as path:
        session.trainer.call("save", network, str(path)).result()
    timeless = {key: value for key, value in metrics.items() if key != "seconds"}
    stage.commit(timeless | {"texts": len(examples), "replayed": len(replayed)}, [WEIGHTS_FILE])
    session.install(network, iteration)


def shuffled_answers(examples: list[TextExample], seed: int) -> list[TextExample]:
    """The control of broken targets: every answer goes to another prompt."""
    answers = [example.completion for example in examples]
    random.Random(seed).shuffle(answers)
    return [TextExample(e.messages, answer, e.weight) for e, answer in zip(examples, answers, strict=True)]


def replay(session: Session, iteration: int, network: str, count: int) -> list[TextExample]:
    """Corpus examples that keep a bundled model's language in shape."""
    if count == 0 or session.config.model.prompt_style != "plain":
        return []
    from nlrl.agents.corpus import CorpusSettings, examples

    stream = examples(
        CorpusSettings(session.game.spec, roles=REPLAYED_ROLES), derive_seed(session.seed("replay", network), iteration)
    )
    return [
        TextExample(tuple(Message(m.role, m.content) for m in e.messages), e.completion) for e in islice(stream, count)
    ]
