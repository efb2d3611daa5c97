"""The refinement policy of NLAC (arXiv 2512.04601): a proposal, its critique, and what comes of it.

1. The policy proposes one move. The successor model tells k summaries of its future, and the evaluator, which is G1,
   makes one critique of them.
2. A chat model is shown its proposal with the critique (role `refinement`) and keeps it or names another move.
3. Bundled models have no such role. Their policy is asked a second time; if it now names another move, that is
   critiqued, too, and I chooses between the two. If not, the proposal stays with the words it was made with.
4. That is one of m rounds. What the last one chose is critiqued as well, so that records tell what was gained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nlrl.agents.asking import Reply, ask
from nlrl.agents.metrics.leaks import strip_leaks
from nlrl.agents.roles import (
    ActionInput,
    CandidatesInput,
    Choice,
    Evaluation,
    RefinementInput,
    SamplesInput,
    StateInput,
)
from nlrl.envs.random import Rng
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import Record, record_key
from nlrl.orchestration.session import CRITIC, Session
from nlrl.orchestration.stages import improvement, targets
from nlrl.orchestration.stages.opinions import Pair, evaluate_moves
from nlrl.orchestration.stages.outlooks import ask_once, without_leaks
from nlrl.orchestration.stages.rollout import Visit, chunks, sample_of

PROPOSALS_AT_ONCE = 1024


class Task(NamedTuple):
    """A proposal that is to be made and refined."""

    key: str
    state: Any
    number: int
    visit: Visit


@dataclass(slots=True)
class Draft:
    """A proposal on its way."""

    task: Task
    reply: Reply[Choice]
    """The last answer: what the actor may learn."""
    action: int | None
    """None where the policy named no move, or the last answer could not be read."""
    proposal: int | None = None
    seen: list[int] = field(default_factory=list)
    """Every move that was critiqued."""

    def take(self, reply: Reply[Choice]) -> None:
        self.reply, self.action = reply, reply.output.action if reply.output else None


def run_refinement(session: Session, iteration: int) -> None:
    """Refines proposals in the states of the replay and commits what came of them."""
    stage = session.folder.stage(iteration, improvement.NAME)
    if stage.is_committed():
        return
    tasks = all_tasks(session, iteration)
    owed = set(stage.owed(task.key for task in tasks))
    waiting = [task for task in tasks if task.key in owed]
    with stage.writer("choices") as writer, progress(f"iteration {iteration}: refinement", len(tasks)) as bar:
        bar.advance(len(tasks) - len(waiting))
        for group in chunks(waiting, PROPOSALS_AT_ONCE):
            writer.write_many(_refined(session, iteration, group))
            writer.flush()
            bar.advance(len(group))
    stage.commit(_summary(list(stage.records())))


def all_tasks(session: Session, iteration: int) -> list[Task]:
    """The proposals of an iteration: in the states that its transitions begin in, more where more of them do."""
    config, found = session.config, dict[str, Visit]()
    counts = Counter[str]()
    for record in session.folder.stage(iteration, targets.NAME).records():
        counts[record["state"]] += record["weight"]
        found[record["state"]] = Visit(record["ply"], max(1, round(counts[record["state"]])), Counter())
    visited = {session.game.parse_text(text): visit for text, visit in sorted(found.items())}
    return [
        Task(_key(session, iteration, state, number), state, number, visit)
        for state, visit in sample_of(session, iteration, visited, config.improvement.states).items()
        for number in range(min(config.nlac.proposals, visit.count))
    ]


def _key(session: Session, iteration: int, state: Any, number: int) -> str:
    place = session.game.to_text(state)
    return record_key("refinement", session.config.name, session.config.seed, iteration, place, number)


# -- the evaluator -----------------------------------------------------------------------------------------------------
def critiques(session: Session, pairs: Iterable[Pair]) -> dict[Pair, Evaluation | None]:
    """The critique of each (state, action); None where there is none that can be read."""
    different, k = list(dict.fromkeys(pairs)), session.config.nlac.summaries
    if k == 0:
        return evaluate_moves(session, different)
    asked = [ActionInput(*pair) for pair in different for _ in range(k)]
    seeds = [session.seed("summary", i) for _ in different for i in range(k)]
    replies = ask(session.critic, session.student_roles.q, asked, session.sampling(1.0), seeds)
    summaries: dict[Pair, tuple[str, ...]] = {
        pair: tuple(reply.output.text for reply in replies[i * k : (i + 1) * k] if reply.output)
        for i, pair in enumerate(different)
    }
    inputs = [SamplesInput(*pair, texts, "outlooks") for pair, texts in summaries.items() if texts]
    merged = ask_once(session.teacher, session.teacher_roles.g1, inputs, session.teacher_sampling)
    said = {(inp.state, inp.action): without_leaks(reply) for inp, reply in zip(inputs, merged, strict=True)}
    return {pair: said.get(pair) for pair in different}


# -- refinement --------------------------------------------------------------------------------------------------------
def _refined(session: Session, iteration: int, tasks: Sequence[Task]) -> list[Record]:
    drafts = [Draft(task, reply, None) for task, reply in zip(tasks, proposed(session, tasks, "proposal"), strict=True)]
    said: dict[Pair, Evaluation | None] = {}
    for draft in drafts:
        draft.take(draft.reply)
        draft.proposal = draft.action
    revise = _revise if session.teacher_roles.refinement.is_known else _choose
    for turn in range(session.config.nlac.rounds):
        _critique(session, drafts, said)
        revise(session, [draft for draft in drafts if draft.action is not None], said, turn)
    _critique(session, drafts, said)
    return [_record(session, iteration, draft, said) for draft in drafts]


def proposed(session: Session, tasks: Sequence[Task], purpose: str) -> list[Reply[Choice]]:
    """The policy's answers, each with a seed of its own."""
    inputs, rollout = [StateInput(task.state) for task in tasks], session.config.rollout
    seeds = [session.seed(purpose, task.key) for task in tasks]
    sampling, role = session.sampling(rollout.temperature), session.student_roles.policy
    return ask(session.actor, role, inputs, sampling, seeds, rollout.retries)


def _critique(session: Session, drafts: Iterable[Draft], said: dict[Pair, Evaluation | None]) -> None:
    """Has every draft's move critiqued that is not yet; all in one batch."""
    due = [draft for draft in drafts if draft.action is not None and draft.action not in draft.seen]
    pairs = [(draft.task.state, action) for draft in due if (action := draft.action) is not None]
    for draft, (_, action) in zip(due, pairs, strict=True):
        draft.seen.append(action)
    said |= critiques(session, [pair for pair in pairs if pair not in said])


def _revise(session: Session, drafts: Sequence[Draft], said: dict[Pair, Evaluation | None], turn: int) -> None:
    """Shows each draft its critique; one without keeps its move."""
    due, inputs = [], []
    for draft in drafts:
        assert draft.action is not None
        if critique := said[draft.task.state, draft.action]:
            due.append(draft)
            inputs.append(RefinementInput(draft.task.state, draft.action, critique))
    role = session.teacher_roles.refinement
    for draft, reply in zip(due, ask_once(session.teacher, role, inputs, session.teacher_sampling), strict=True):
        draft.take(reply)


def _choose(session: Session, drafts: Sequence[Draft], said: dict[Pair, Evaluation | None], turn: int) -> None:
    """Has I choose between each draft and what the policy says when it is asked again."""
    others = proposed(session, [draft.task for draft in drafts], f"alternative {turn}")
    pairs = [(draft, reply.output.action) for draft, reply in zip(drafts, others, strict=True) if reply.output]
    due = [(draft, action) for draft, action in pairs if action != draft.action]
    said |= critiques(session, [pair for d, a in due if (pair := (d.task.state, a)) not in said])
    waiting, inputs = [], []
    for draft, action in due:
        assert draft.action is not None
        if action not in draft.seen:
            draft.seen.append(action)
        found = [(each, said[draft.task.state, each]) for each in (draft.action, action)]
        offer = [(each, critique) for each, critique in found if critique]
        if len(offer) == 2:
            waiting.append(draft)
            order = Rng(session.seed("order", turn, draft.task.key))
            inputs.append(CandidatesInput(draft.task.state, tuple(order.shuffled(offer))))
    role = session.teacher_roles.improvement
    for draft, reply in zip(waiting, ask_once(session.teacher, role, inputs, session.teacher_sampling), strict=True):
        draft.take(reply)


# -- records -----------------------------------------------------------------------------------------------------------
def _record(session: Session, iteration: int, draft: Draft, said: dict[Pair, Evaluation | None]) -> Record:
    task, text = draft.task, draft.reply.completion.text
    found = [(action, said[task.state, action]) for action in draft.seen]
    return {
        "schema": 1,
        "kind": "improvement",
        "key": task.key,
        "iteration": iteration,
        "state": session.game.to_text(task.state),
        "ply": task.visit.ply,
        "visits": task.visit.count,
        "critic": session.versions[CRITIC],
        "proposal": draft.proposal,
        "candidates": [{"action": a, "text": e.text, "verdict": e.verdict} for a, e in found if e],
        "unread": [action for action, critique in found if critique is None],
        "action": draft.action,
        "text": text,
        "target": strip_leaks(text) if draft.action is not None else None,
        "failures": [failure.reason for failure in draft.reply.failures],
    }


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    kept = [record for record in records if record["action"] is not None]
    verdicts = [{c["action"]: c["verdict"] for c in record["candidates"]} for record in kept]
    both = [(v, r) for v, r in zip(verdicts, kept, strict=True) if r["action"] in v and r["proposal"] in v]
    gains = [found[record["action"]] - found[record["proposal"]] for found, record in both]
    return {
        "states": len({record["state"] for record in records}),
        "proposals": len(records),
        "failed": len(records) - len(kept),
        "unread": sum(len(record["unread"]) for record in records),
        "critiques": sum(len(record["candidates"]) for record in records),
        "revised": sum(r["action"] != r["proposal"] for r in kept) / max(len(kept), 1),
        "gain": sum(gains) / max(len(gains), 1),
        "leaked": sum(record["target"] != record["text"] for record in kept),
        "dropped": sum(record["target"] is None for record in kept),
    }
