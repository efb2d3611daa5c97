"""A sweep of language generalised policy iteration by prompting (Algorithm 1 of arXiv 2411.14251): a choice in every
state, and nothing is trained.

1. In each state and for each action, K look-aheads of N moves are played by a fixed policy; V says what it thinks of
   where each ends, d retells it, G2 joins both, G1 merges the K, and I chooses among the actions.
2. A *plan* is one such choice. Each state has several, from look-aheads of their own; a walk leaves a state as most of
   them would, and if it comes back, goes on with one after the other. All plans of a sweep are made together, one batch
   a role, equal prompts asked once.
3. In the first sweep the model itself is V. In later ones V of a state is the text of the action that was chosen there:
   value iteration in texts, which a model that knows no values can do, too. One sweep is the paper's algorithm.
4. `gpi.following` of the K look-aheads of later sweeps go on by the plans of the sweep before, as policy iteration
   does: what a plan is worth is what the next one must beat, where random moves must find it anew each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nlrl.agents.corpus.states import states_by_ply
from nlrl.agents.roles import GAME_OVER, CandidatesInput, Evaluation, SamplesInput, StateInput
from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.orchestration.lines import kept
from nlrl.orchestration.players import NONE, Play, move_or_forfeit
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages.opinions import nearest_to_mean
from nlrl.orchestration.stages.outlooks import Ahead, ahead_of, ask_once, fuse, text_of, without_leaks
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.worker import Continuation, ContinuationTask, LookAheadJob

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


Before = Mapping[tuple[int, Any], Sequence[Known]]
"""(repeat, state) -> the plans of the sweep before; empty in the first."""


def run_sweep(session: Session, iteration: int) -> None:
    """Makes every plan of an iteration and commits them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    plans, before = list(all_plans(session, iteration)), plans_made(session, iteration - 1) if iteration > 1 else {}
    owed = set(stage.owed(plan.key for plan in plans))
    waiting = [plan for plan in plans if plan.key in owed]
    with stage.writer("choices") as writer, progress(f"iteration {iteration}: sweep", len(plans)) as bar:
        bar.advance(len(plans) - len(waiting))
        for group in chunks(waiting, PLANS_AT_ONCE):
            writer.write_many(_made(session, iteration, group, before))
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


def known_values(before: Before) -> dict[tuple[int, Any], str]:
    """(repeat, state) -> its text after a sweep: of the chosen action, by the plan whose verdict is nearest to the mean
    of the plans'."""
    said = {place: [plan.value for plan in plans if plan.value] for place, plans in before.items()}
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


def _made(session: Session, iteration: int, plans: Sequence[Plan], before: Before) -> list[dict[str, Any]]:
    pairs = [(plan, action) for plan in plans for action in session.game.legal_actions(plan.state)]
    followed = [_followed(session, plan, action, before) for plan, action in pairs]
    drawn = _look_ahead(session, pairs, session.config.gpi.variations - max(map(len, followed), default=0))
    aheads = [[*one, *other] for one, other in zip(followed, drawn, strict=True)]
    found = [(plan, one) for (plan, _), ones in zip(pairs, aheads, strict=True) for one in ones]
    texts = iter(_joined(session, found, known_values(before)))
    inputs = [
        SamplesInput(plan.state, action, tuple(next(texts) for _ in ones), "outlooks")
        for (plan, action), ones in zip(pairs, aheads, strict=True)
    ]
    replies = ask_once(session.teacher, session.teacher_roles.g1, inputs, session.teacher_sampling)
    said: dict[Plan, list[tuple[int, Evaluation | None]]] = {}
    for (plan, action), reply in zip(pairs, replies, strict=True):
        said.setdefault(plan, []).append((action, without_leaks(reply)))
    return _chosen(session, iteration, said)


def _followed(session: Session, plan: Plan, action: int, before: Before) -> list[Ahead]:
    """Look-aheads that go on by the plans of the sweep before, each from another plan of every state on."""
    if not before:
        return []
    game, found = session.game, []
    for number in range(session.config.gpi.following):
        play = Play(plan.state, 0, NONE, Rng(session.seed("following", plan.key, action, number)))
        move_or_forfeit(game, play, action)
        walk_on(game, play, plan.repeat, before, session.config.gpi.lookahead, plan.number + number)
        result = play.result(game) if play.is_over(game) else None
        end = play.state if result is None else None
        ahead = Continuation(tuple(play.actions), result, end, outcomes=kept(play.outcomes))
        found.append(ahead_of(game, plan.state, ahead))
    return found


def walk_on(
    game: Game[Any], walk: Play, repeat: int, plans: Before, longest: int | None = None, first: int | None = None
) -> None:
    """Walks by plans, to the end of the game or up to so many moves in all: each time by the next plan of a state.

    Args:
        first: number of the plan that a state is left by at first; by default as most of its plans would.
    """
    visits: dict[Any, int] = {}
    while not walk.is_over(game) and (longest is None or len(walk.actions) < longest):
        actions = [plan.action for plan in plans[repeat, walk.state]]
        visit = visits.get(walk.state, 0)
        visits[walk.state] = visit + 1
        if first is None:
            actions.insert(0, Counter(actions).most_common(1)[0][0])
        move_or_forfeit(game, walk, actions[((first or 0) + visit) % len(actions)])


def _look_ahead(session: Session, pairs: Sequence[tuple[Plan, int]], count: int) -> list[list[Ahead]]:
    """`count` of each by `gpi.policy`."""
    if not count:
        return [[] for _ in pairs]
    config, game = session.config.gpi, session.game
    tasks = [
        ContinuationTask(plan.state, 0, action, count, session.seed("gpi", plan.key, action)) for plan, action in pairs
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
