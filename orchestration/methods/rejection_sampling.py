"""Rejection sampling: the actor is fine-tuned on its own answers of the games it won, weighed by result.

Rollout, actor, evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlrl.agents.roles import StateInput
from nlrl.orchestration.fits import TextExample
from nlrl.orchestration.methods import Method
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stages.decisions import games_of, gathered
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.strength import run_strength
from nlrl.orchestration.stages.training import buffer, run_fine_tuning


def run_actor(session: Session, iteration: int) -> None:
    """Trains the actor on what it said in games that went well."""

    def examples() -> Iterator[TextExample]:
        for each in buffer(session.config.actor, iteration):
            yield from accepted(session, each)

    run_fine_tuning(session, iteration, ACTOR, session.config.actor, examples())


def accepted(session: Session, iteration: int) -> Iterator[TextExample]:
    """An iteration's answers, each as heavy as it was successful and often given."""
    drawn, role = session.config.rejection_sampling.draw_weight, session.student_roles.policy
    found = [d for game in games_of(session, iteration) for d in game if d.action is not None]
    for answer in gathered((d, (float(d.outcome > 0), float(d.outcome == 0))) for d in found):
        won, level = answer.means
        if weight := answer.count * (won + drawn * level):
            yield TextExample(role.messages(StateInput(answer.decision.state)), answer.decision.text, weight)


METHOD = Method(
    stages=(("rollout", run_rollout), ("actor", run_actor), ("evaluation", run_strength)),
    first=(("evaluation", run_strength),),
    gathers=1,
)
