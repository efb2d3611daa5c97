"""GRPO: answers are reinforced by how much better they turned out than others to the same prompt (or of the same seat),
in units of their seat's spread. A short loop of our own over the engine's samples.

Rollout, actor, evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlrl.agents.roles import StateInput
from nlrl.backbones.advantages import group_advantages
from nlrl.orchestration.config import GRPOConfig
from nlrl.orchestration.fits import AnswerExample, PolicyFit
from nlrl.orchestration.methods import Method
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stages.decisions import Answer, check_sampling, games_of, gathered, run_sampled_rollout
from nlrl.orchestration.stages.strength import run_strength
from nlrl.orchestration.stages.training import checked, restored, train


def run_actor(session: Session, iteration: int) -> None:
    """One round of clipped policy gradients on the iteration's answers."""
    if restored(session, iteration, ACTOR):
        return
    config, role = session.config.grpo, session.student_roles.policy
    answers = gathered((d, (d.outcome,)) for game in games_of(session, iteration) for d in game)
    advantages = relative(config, answers)
    examples = [
        AnswerExample(
            role.messages(StateInput(answer.decision.state)),
            answer.decision.tokens,
            answer.decision.logprobs,
            advantage,
            float(answer.count),
        )
        for answer, advantage in zip(answers, advantages, strict=True)
        if answer.decision.tokens
    ]
    if not (config.kl or config.entropy):  # what is no better than its group teaches nothing
        examples = [example for example in examples if example.advantage] or examples
    loss = {"clip": config.clip, "entropy": config.entropy, "kl": config.kl, "max_kl": config.max_kl}
    seed = session.seed("fit", ACTOR, iteration)
    kept = config.keep_optimizer
    settings = PolicyFit(config.learning_rate, config.batch_size, config.epochs, seed, loss, keep_optimizer=kept)
    figures = {"answers": len(answers), "decisions": sum(answer.count for answer in answers)}
    train(session, iteration, ACTOR, checked(session, iteration, ACTOR, examples), settings, figures)


def relative(config: GRPOConfig, answers: Sequence[Answer]) -> list[float]:
    """The advantage of each answer."""
    seats = [answer.decision.seat for answer in answers]
    states = [(answer.decision.state, answer.decision.seat) for answer in answers]
    groups = states if config.group == "state" else seats
    return group_advantages([a.means[0] for a in answers], groups, seats, [float(a.count) for a in answers])


METHOD = Method(
    stages=(("rollout", run_sampled_rollout), ("actor", run_actor), ("evaluation", run_strength)),
    first=(("evaluation", run_strength),),
    gathers=1,
    check=check_sampling,
)
