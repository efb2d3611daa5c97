"""PPO with a value head on the actor's hidden states: an action is a whole answer, a step is a decision of the agent.

Rollout, actor, evaluation. The opponent is part of the environment, so the agent's last decision earns the result
whoever made the last move: losses are seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nlrl.agents.roles import StateInput
from nlrl.backbones.advantages import gae, normalised
from nlrl.envs.random import derive_seed
from nlrl.orchestration.budget import Entry
from nlrl.orchestration.config import PPOConfig
from nlrl.orchestration.fits import AnswerExample, PolicyFit
from nlrl.orchestration.methods import Method
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stages.decisions import (
    Answer,
    Decision,
    check_sampling,
    games_of,
    gathered,
    rewards_of,
    run_sampled_rollout,
)
from nlrl.orchestration.stages.strength import run_strength
from nlrl.orchestration.stages.training import checked, restored, train


def run_actor(session: Session, iteration: int) -> None:
    """One round of clipped policy gradients and value regression on the iteration's answers."""
    if restored(session, iteration, ACTOR):
        return
    config = session.config.ppo
    games = [game for game in games_of(session, iteration) if game]
    values = state_values(session, iteration, list(dict.fromkeys(d.state for game in games for d in game)))
    answers = estimated(config, games, values)
    examples = checked(session, iteration, ACTOR, examples_of(session, answers, values))
    fields = ("clip", "entropy", "value", "value_clip", "max_kl")
    loss = {field: getattr(config, field) for field in fields}
    seed = session.seed("fit", ACTOR, iteration)
    kept = config.keep_optimizer
    settings = PolicyFit(
        config.learning_rate, config.batch_size, config.epochs, seed, loss, head=True, keep_optimizer=kept
    )
    figures = {"answers": len(answers), "decisions": sum(answer.count for answer in answers)}
    train(session, iteration, ACTOR, examples, settings, figures, head=True)


def state_values(session: Session, iteration: int, states: Sequence[Any]) -> dict[Any, float]:
    """What the value head says of each state, before it learns from these games."""
    assert session.trainer is not None
    role = session.student_roles.policy
    prompts = [role.messages(StateInput(state)) for state in states]
    values, tokens = session.trainer.call("values", ACTOR, prompts).result()
    session.meter.note([Entry(derive_seed("values", iteration), prompt_tokens=tokens)])
    return dict(zip(states, values, strict=True))


def estimated(config: PPOConfig, games: Sequence[Sequence[Decision]], values: dict[Any, float]) -> list[Answer]:
    """The games' answers, each with its mean advantage and the mean return that the value head is to learn."""
    found = []
    for game in games:
        said = [values[decision.state] for decision in game]
        advantages = gae(rewards_of([decision.outcome for decision in game]), said, config.gamma, config.lam)
        found += [(d, (a, a + v)) for d, a, v in zip(game, advantages, said, strict=True)]
    return gathered(found)


def examples_of(session: Session, answers: Sequence[Answer], values: dict[Any, float]) -> list[AnswerExample]:
    """Answers as examples; advantages with mean 0 and spread 1 in each seat."""
    role, counts = session.student_roles.policy, [float(answer.count) for answer in answers]
    scaled = normalised([answer.means[0] for answer in answers], [answer.decision.seat for answer in answers], counts)
    return [
        AnswerExample(
            role.messages(StateInput(answer.decision.state)),
            answer.decision.tokens,
            answer.decision.logprobs,
            advantage,
            count,
            answer.means[1],
            values[answer.decision.state],
        )
        for answer, advantage, count in zip(answers, scaled, counts, strict=True)
        if answer.decision.tokens
    ]


METHOD = Method(
    stages=(("rollout", run_sampled_rollout), ("actor", run_actor), ("evaluation", run_strength)),
    first=(("evaluation", run_strength),),
    gathers=1,
    check=check_sampling,
)
