"""Stages 3 and 5: the critic learns the targets, the actor learns what I argued. Supervised fine-tuning on texts,
nothing else. Methods that train otherwise use `restored`, `checked` and `train`, too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from nlrl.agents.roles import ActionInput, StateInput
from nlrl.backbones.language_model import Message
from nlrl.envs.game import Game
from nlrl.envs.random import derive_seed
from nlrl.errors import NLRLError
from nlrl.orchestration.budget import Entry
from nlrl.orchestration.config import RunConfig, TrainConfig
from nlrl.orchestration.fits import FitSettings, TextExample
from nlrl.orchestration.records import SHARDS_FOLDER
from nlrl.orchestration.replay import Chosen, Item, choose
from nlrl.orchestration.session import ACTOR, CRITIC, Session
from nlrl.orchestration.stages import improvement, targets
from nlrl.orchestration.trainer import HEAD_FILE, OPTIMIZER_FILE, PROGRESS_FILE, WEIGHTS_FILE, Network

MOST_WEIGHT = 4.0
REPLAYED_ROLES = ("reader", "descriptor", "g1_games", "g2", "improvement")
"""Corpus roles that may be replayed: they keep reading and counting alive and say nothing about what to play."""


def run_critic(session: Session, iteration: int) -> None:
    """Trains the critic on sets of targets."""
    config = session.config.critic
    if not restored(session, iteration, CRITIC):
        chosen, figures = selected(session, iteration, CRITIC, config, target_items)
        examples = [TextExample(value_prompt(session, item), item.text, weight) for item, weight in chosen]
        fine_tune(session, iteration, CRITIC, config, examples, figures)


def run_actor(session: Session, iteration: int) -> None:
    """Trains the actor on sets of choices."""
    config = session.config.actor
    if not restored(session, iteration, ACTOR):
        chosen, figures = selected(session, iteration, ACTOR, config, choice_items)
        examples = [TextExample(policy_prompt(session, item), item.text, weight) for item, weight in chosen]
        fine_tune(session, iteration, ACTOR, config, examples, figures)


def value_prompt(session: Session, item: Item) -> tuple[Message, ...]:
    """What the critic is asked when a text is what it should say."""
    roles, state = session.student_roles, session.game.parse_text(item.state)
    if item.action is None:
        return roles.v.messages(StateInput(state, item.against))
    return roles.q.messages(ActionInput(state, item.action, item.against))


def policy_prompt(session: Session, item: Item) -> tuple[Message, ...]:
    """The same for the actor."""
    return session.student_roles.policy.messages(StateInput(session.game.parse_text(item.state)))


# -- what is trained on ------------------------------------------------------------------------------------------------
def target_items(session: Session, iteration: int) -> Iterator[Item]:
    """The targets of an iteration that the critic can learn."""
    for record in session.folder.stage(iteration, targets.NAME).records():
        if record["target"] is not None:
            told = record["verdict"], record.get("outcome"), record.get("against", "")
            heavy = weight(session.config.critic, record["visits"])
            yield Item(record["state"], record["action"], record["target"], record["iteration"], *told, heavy)


def choice_items(session: Session, iteration: int) -> Iterator[Item]:
    """The choices of an iteration that the actor can learn; the best candidate's verdict is what that of the chosen one
    should have been."""
    for record in session.folder.stage(iteration, improvement.NAME).records():
        if record["target"] is not None:
            verdicts = {each["action"]: each["verdict"] for each in record.get("candidates", ())}
            told = verdicts.get(record["action"]), max(verdicts.values(), default=None), ""
            heavy = weight(session.config.actor, record["visits"])
            yield Item(record["state"], None, record["target"], record["iteration"], *told, heavy)


def selected(
    session: Session,
    iteration: int,
    network: Network,
    config: TrainConfig,
    items_of: Callable[[Session, int], Iterator[Item]],
) -> tuple[list[Chosen], dict[str, Any]]:
    """What a network is trained on, and what the manifest says of the choice."""
    recent = buffer(config, iteration)
    if config.replay.kind == "recent":
        return [Chosen(item, item.weight) for each in recent for item in items_of(session, each)], {}
    found = [item for each in reach(config, iteration) for item in items_of(session, each)]
    size = config.replay.size or sum(item.iteration in recent for item in found)
    seed = session.seed("prioritised replay", network, iteration)
    choice = choose(found, config.replay, size, iteration, seed)
    return choice.chosen, {"replay": choice.figures}


def buffer(config: TrainConfig, iteration: int) -> range:
    """The iterations whose sets are trained on: the newest alone while the policy changes fast, then several, but
    never those from before it settled."""
    until = config.short_buffer_until
    if iteration <= until:
        return range(iteration, iteration + 1)
    return range(max(until, 1, iteration - config.buffer_iterations + 1), iteration + 1)


def reach(config: TrainConfig, iteration: int) -> range:
    """The iterations that prioritised replay chooses among: all that the buffer would hold if it were endless."""
    return buffer(config.model_copy(update={"buffer_iterations": iteration}), iteration)


def weight(config: TrainConfig, visits: int) -> float:
    """How much an example counts, by how often games visited its state."""
    return min(MOST_WEIGHT, max(visits, 1) ** config.visit_weight)


def run_fine_tuning(
    session: Session, iteration: int, network: Network, config: TrainConfig, found: Iterable[TextExample]
) -> None:
    """Fine-tunes a network on texts, and commits and installs it, if that is not done yet."""
    if not restored(session, iteration, network):
        fine_tune(session, iteration, network, config, list(found))


def fine_tune(
    session: Session,
    iteration: int,
    network: Network,
    config: TrainConfig,
    found: list[TextExample],
    told: Mapping[str, Any] | None = None,
) -> None:
    """Fine-tunes a network on texts, and commits and installs it.

    Args:
        told: what else the manifest says of the texts.
    """
    examples = checked(session, iteration, network, found)
    if network == CRITIC and session.config.control == "shuffled_g1":
        examples = shuffled_answers(examples, session.seed("shuffled_g1", iteration))
    replayed = replay(session, iteration, network, round(len(examples) * config.replay_fraction))
    epochs = config.first_epochs if iteration == 1 else config.epochs
    seed = session.seed("fit", network, iteration)
    kept = {"keep_optimizer": config.keep_optimizer, "save_every": config.save_every}
    settings = FitSettings(config.learning_rate, config.batch_size, epochs, seed, **kept)
    figures = {"texts": len(examples), "replayed": len(replayed)} | dict(told or {})
    train(session, iteration, network, examples + replayed, settings, figures)


def check_native(config: RunConfig, game: Game[Any]) -> None:
    """Refuses models whose trainer takes texts alone, for methods that train on something else.

    Raises:
        NLRLError: names the field.
    """
    if config.model.kind not in ("native", "scripted"):
        raise NLRLError(
            f"method is '{config.method}', which trains on more than texts: that needs model.kind 'native', "
            f"not '{config.model.kind}'"
        )


def restored(session: Session, iteration: int, network: Network) -> bool:
    """Whether the stage that trains a network is committed; if so, its weights are those that answer."""
    stage = session.folder.stage(iteration, network)
    if not stage.is_committed():
        return False
    if session.versions[network] != f"{network}@{iteration}":
        assert session.trainer is not None
        if (head := stage.dir / HEAD_FILE).is_file():
            session.trainer.call("load_head", network, str(head)).result()
        if (memory := stage.dir / OPTIMIZER_FILE).is_file():
            session.trainer.call("load_optimizer", network, str(memory)).result()
        session.restore(network, iteration, stage.dir)
    return True


def checked(session: Session, iteration: int, network: Network, examples: list[Any]) -> list[Any]:
    """The examples.

    Raises:
        NLRLError: there are none.
    """
    if not examples:
        folder = session.folder.stage(iteration, network).dir.parent
        raise NLRLError(
            f"iteration {iteration}: there is nothing to train the {network} on: no readable text came of the games. "
            f"What was said instead is in {folder}; does {session.config.model.name} know them?"
        )
    return examples


def train(
    session: Session,
    iteration: int,
    network: Network,
    examples: Sequence[Any],
    settings: FitSettings,
    figures: Mapping[str, Any],
    head: bool = False,
) -> None:
    """Trains a network, commits its weights (and its value head's, and what its optimizer remembers) with what is told
    of them, and installs it."""
    stage, trainer = session.folder.stage(iteration, network), session.trainer
    assert trainer is not None
    progress = (str(stage.dir / SHARDS_FOLDER / PROGRESS_FILE),) if settings.save_every else ()
    metrics = trainer.call("fit", network, examples, settings, *progress).result()
    session.meter.note([Entry(settings.seed, trained_tokens=metrics.get("tokens", 0))])
    files = {WEIGHTS_FILE: "save"} | ({HEAD_FILE: "save_head"} if head else {})
    files |= {OPTIMIZER_FILE: "save_optimizer"} if settings.keep_optimizer else {}
    for name, method in files.items():
        with stage.file(name) as path:
            trainer.call(method, network, str(path)).result()
    timeless = {key: value for key, value in metrics.items() if key != "seconds"}
    stage.commit(timeless | dict(figures), list(files))
    session.install(network, iteration, [example.messages for example in examples])


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
