"""A sweep of language generalised policy iteration by prompting (Algorithm 1 of arXiv 2411.14251): a choice in every
state, and nothing is trained.

1. In each state and for each action, K look-aheads of N moves are played by a fixed policy; V says what it thinks of
   where each ends, d retells it, G2 joins both, G1 merges the K, and I chooses among the actions.
2. A *plan* is one such choice. Each state has several, from look-aheads of their own; a walk that comes back to a state
   goes on with the next. All plans of a sweep are made together, one batch a role, equal prompts asked once.
3. In the first sweep the model itself is V. In later ones V of a state is the text of the action that was chosen there:
   value iteration in texts, which a model that knows no values can do, too. One sweep is the paper's algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nlrl.agents.corpus.states import states_by_ply
from nlrl.agents.roles import GAME_OVER, CandidatesInput, Evaluation, SamplesInput, StateInput
from nlrl.envs.random import Rng
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages.opinions import nearest_to_mean
from nlrl.orchestration.stages.outlooks import Ahead, ahead_of, ask_once, fuse, text_of, without_leaks
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.worker import ContinuationTask, LookAheadJob

NAME = "improvement"
PLANS_AT_ONCE = 256
"""Plans in one batch."""


class Plan(NamedTuple):
    """A choice that is to be made."""

    key: str
    repeat: int
    number: int
    state: Any


class Known(NamedTuple):
    """A choice that was made: what it plays (None if I's answer could not be read), and the text of that action."""

    action: int | None
    value: Evaluation | None


def run_sweep(session: Session, iteration: int) -> None:
    """Makes every plan of an iteration and commits them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    plans, values = list(all_plans(session, iteration)), known_values(session, iteration - 1)
    owed = set(stage.owed(plan.key for plan in plans))
    waiting = [plan for plan in plans if plan.key in owed]
    with stage.writer("choices") as writer, progress(f"iteration {iteration}: sweep", len(plans)) as bar:
        bar.advance(len(plans) - len(waiting))
        for group in chunks(waiting, PLANS_AT_ONCE):
            writer.write_many(_made(session, iteration, group, values))
            writer.flush()
            bar.advance(len(group))
    records = list(stage.records())
    stage.commit(
        {
            "plans": len(records),
            "evaluations": sum(len(record["candidates"]) for record in records),
            "unread": sum(len(record["unread"]) for record in records),
            "failed": sum(record["action"] is None for record in records),
        }
    )


def all_plans(session: Session, iteration: int) -> Iterator[Plan]:
    """The plans of an iteration."""
    config, game = session.config, session.game
    for repeat in range(config.gpi.repeats):
        for layer in states_by_ply(game.spec).values():
            for state in layer:
                for number in range(config.gpi.plans):
                    names = (iteration, repeat, number, game.to_text(state))
                    yield Plan(record_key("plan", config.name, config.seed, *names), repeat, number, state)


def known_values(session: Session, iteration: int) -> dict[tuple[int, Any], str]:
    """(repeat, state) -> its text after a sweep: of the chosen action, by the plan whose verdict is nearest to the mean
    of the plans'. Empty before the first."""
    found = plans_made(session, iteration) if iteration else {}
    said = {place: [plan.value for plan in plans if plan.value] for place, plans in found.items()}
    return {place: spoken.text for place, texts in said.items() if (spoken := nearest_to_mean(texts))}


def plans_made(session: Session, iteration: int) -> dict[tuple[int, Any], list[Known]]:
    """(repeat, state) -> its plans, in order."""
    found: dict[tuple[int, Any], list[tuple[int, Known]]] = {}
    for record in session.folder.stage(iteration, NAME).records():
        chosen = next((c for c in record["candidates"] if c["action"] == record["action"]), None)
        value = Evaluation(chosen["text"], chosen["verdict"]) if chosen else None
        place = record["repeat"], session.game.parse_text(record["state"])
        found.setdefault(place, []).append((record["plan"], Known(record["action"], value)))
    return {place: [known for _, known in sorted(plans, key=lambda p: p[0])] for place, plans in found.items()}


def _made(
    session: Session, iteration: int, plans: Sequence[Plan], values: Mapping[tuple[int, Any], str]
) -> list[dict[str, Any]]:
    pairs = [(plan, action) for plan in plans for action in session.game.legal_actions(plan.state)]
    aheads = _look_ahead(session, pairs)
    found = [(plan, one) for (plan, _), ones in zip(pairs, aheads, strict=True) for one in ones]
    texts = iter(_joined(session, found, values))
    inputs = [
        SamplesInput(plan.state, action, tuple(next(texts) for _ in ones), "outlooks")
        for (plan, action), ones in zip(pairs, aheads, strict=True)
    ]
    replies = ask_once(session.teacher, session.teacher_roles.g1, inputs, session.teacher_sampling)
    said: dict[Plan, list[tuple[int, Evaluation | None]]] = {}
    for (plan, action), reply in zip(pairs, replies, strict=True):
        said.setdefault(plan, []).append((action, without_leaks(reply)))
    return _chosen(session, iteration, said)


def _look_ahead(session: Session, pairs: Sequence[tuple[Plan, int]]) -> list[list[Ahead]]:
    config, game = session.config.gpi, session.game
    tasks = [
        ContinuationTask(plan.state, 0, action, config.variations, session.seed("gpi", plan.key, action))
        for plan, action in pairs
    ]
    jobs = [
        LookAheadJob(config.policy, part, config.lookahead)
        for part in chunks(tasks, -(-len(tasks) // len(session.workers)))
    ]
    parts = dict(session.on_workers("look_ahead", jobs))
    found = [samples for index in range(len(jobs)) for samples in parts[index]]
    return [[ahead_of(game, plan.state, one) for one in ones] for (plan, _), ones in zip(pairs, found, strict=True)]


def _joined(session: Session, found: Sequence[tuple[Plan, Ahead]], values: Mapping[tuple[int, Any], str]) -> list[str]:
    """G2's texts: the end of a look-ahead is evaluated by what was said of it before, or by the model."""
    unknown = [one.line.end for plan, one in found if one.is_open and (plan.repeat, one.line.end) not in values]
    inputs = [StateInput(state) for state in dict.fromkeys(unknown)]
    sampling = session.sampling(0.0, expected_number=session.critic.reads_expectations)
    replies = ask_once(session.critic, session.student_roles.v, inputs, sampling)
    said = {inp.state: text_of(reply) for inp, reply in zip(inputs, replies, strict=True)}
    successors = [
        (values.get((plan.repeat, one.line.end)) or said[one.line.end]) if one.is_open else GAME_OVER
        for plan, one in found
    ]
    return fuse(session, [one for _, one in found], successors)


def _chosen(
    session: Session, iteration: int, said: Mapping[Plan, list[tuple[int, Evaluation | None]]]
) -> list[dict[str, Any]]:
    offers = {
        plan: tuple(Rng(session.seed("candidates", plan.key)).shuffled([(a, e) for a, e in found if e]))
        for plan, found in said.items()
    }
    asked = {plan: CandidatesInput(plan.state, offer) for plan, offer in offers.items() if offer}
    role, sampling = session.teacher_roles.improvement, session.teacher_sampling
    replies = dict(zip(asked, ask_once(session.teacher, role, list(asked.values()), sampling), strict=True))
    return [
        {
            "schema": 1,
            "kind": "improvement",
            "key": plan.key,
            "iteration": iteration,
            "state": session.game.to_text(plan.state),
            "repeat": plan.repeat,
            "plan": plan.number,
            "candidates": [{"action": action, "text": e.text, "verdict": e.verdict} for action, e in offers[plan]],
            "unread": [action for action, evaluation in found if evaluation is None],
            "action": reply.output.action if (reply := replies.get(plan)) and reply.output else None,
            "text": reply.completion.text if reply else "",
            "failures": [failure.reason for failure in reply.failures] if reply else [],
        }
        for plan, found in said.items()
    ]
