"""DPO: the actor-critic with another last step. What I argued for is preferred to what the actor had played there.

Rollout, targets, policy table, critic, improvement, actor, evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from nlrl.agents.roles import StateInput
from nlrl.orchestration.fits import PairExample, PreferenceFit
from nlrl.orchestration.methods import Method
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stages import improvement
from nlrl.orchestration.stages.decisions import games_of
from nlrl.orchestration.stages.evaluation import run_evaluation
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.policy_table import run_policy_table
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.targets import asked, run_targets
from nlrl.orchestration.stages.training import check_native, checked, restored, run_critic, train


def run_actor(session: Session, iteration: int) -> None:
    """Makes the improved choices likelier than the old ones."""
    if restored(session, iteration, ACTOR):
        return
    config = session.config.dpo
    pairs = checked(session, iteration, ACTOR, list(pairs_of(session, iteration)))
    seed = session.seed("fit", ACTOR, iteration)
    loss, kept = (config.beta, config.likelihood), config.keep_optimizer
    settings = PreferenceFit(config.learning_rate, config.batch_size, config.epochs, seed, *loss, keep_optimizer=kept)
    train(session, iteration, ACTOR, pairs, settings, {"pairs": len(pairs)})


def pairs_of(session: Session, iteration: int) -> Iterator[PairExample]:
    """I's answer against each other move that was played in its state, weighed by how often it was."""
    role, played = session.student_roles.policy, answers_by_move(session, iteration)
    for record in session.folder.stage(iteration, improvement.NAME).records():
        state = session.game.parse_text(record["state"])
        if record["target"] is None or state not in played:
            continue
        texts, counts = played[state]
        for action, text in sorted(texts.items()):
            if action != record["action"]:
                messages, share = role.messages(StateInput(state)), counts[action] / counts.total()
                yield PairExample(messages, record["target"], text, share)


def answers_by_move(session: Session, iteration: int) -> dict[Any, tuple[dict[int, str], Counter[int]]]:
    """For each state an answer for every move that was played there, and how often it was."""
    found: dict[Any, tuple[dict[int, str], Counter[int]]] = {}
    for decision in (decision for game in games_of(session, iteration) for decision in game):
        if decision.action is not None:
            texts, counts = found.setdefault(decision.state, ({}, Counter()))
            texts.setdefault(decision.action, decision.text)
            counts[decision.action] += 1
    return found


METHOD = Method(
    stages=(
        ("rollout", run_rollout),
        ("targets", run_targets),
        ("policy", run_policy_table),
        ("critic", run_critic),
        ("improvement", run_improvement),
        ("actor", run_actor),
        ("evaluation", run_evaluation),
    ),
    first=(("evaluation", run_evaluation),),
    gathers=3,
    asked=asked,
    check=check_native,
)
