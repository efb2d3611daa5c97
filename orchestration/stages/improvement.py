"""Stage 4, improvement: in each visited state the critic evaluates candidate moves, and I argues and chooses among
them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nlrl.agents.asking import Reply, ask
from nlrl.agents.metrics.leaks import find_leaks, strip_leaks
from nlrl.agents.roles import CandidatesInput, Choice, Evaluation
from nlrl.envs.random import Rng
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import Session
from nlrl.orchestration.speakers import ACTOR, CRITIC, Speakers
from nlrl.orchestration.stages import rollout
from nlrl.orchestration.stages.opinions import Weights, evaluate_moves, nearest_to_mean
from nlrl.orchestration.stages.rollout import chunks, sample_of, visits
from nlrl.orchestration.stages.targets import at_once
from nlrl.orchestration.timings import of_texts
from nlrl.orchestration.worker import TableJob

__all__ = ["evaluate_moves", "nearest_to_mean", "run_improvement"]
NAME = "improvement"
STATES_AT_ONCE = 1024


class Seen(NamedTuple):
    """A state whose policy is to be improved."""

    state: Any
    key: str
    ply: int
    visits: int
    met: Mapping[str, int] | None
    """How often each opponent was met there, where the critic is told."""


def run_improvement(session: Session, iteration: int) -> None:
    """Improves the policy in every visited state and commits the choices."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    every = visits(session.game, session.folder.stage(iteration, rollout.NAME).records())
    visited = sample_of(session, iteration, every, session.config.improvement.states)
    keys = {state: _key(session, iteration, state) for state in visited}
    owed = set(stage.owed(keys.values()))
    waiting = [state for state in visited if keys[state] in owed]
    with stage.writer("choices") as writer, progress(f"iteration {iteration}: improvement", len(visited)) as bar:
        bar.advance(len(visited) - len(waiting))
        met = _opponents_met(session, iteration) or {}
        seen = [Seen(state, keys[state], visited[state].ply, visited[state].count, met.get(state)) for state in waiting]
        groups = list(chunks(seen, at_once(session, len(seen), STATES_AT_ONCE)))
        for index, found in session.texts_of(choice_records, groups, iteration, plays=True):
            writer.write_many(found)
            writer.flush()
            bar.advance(len(groups[index]))
    stage.commit(_summary(list(stage.records())))


def _key(session: Session, iteration: int, state: Any) -> str:
    return record_key("improvement", session.config.name, session.config.seed, iteration, session.game.to_text(state))


def choice_records(session: Speakers, seen: Sequence[Seen], iteration: int) -> list[dict[str, Any]]:
    """What the critic says of the candidates in each state, and what I makes of it."""
    candidates = dict(zip([one.state for one in seen], _candidates(session, seen), strict=True))
    pairs = [(state, action) for state, actions in candidates.items() for action in actions]
    met = {one.state: one.met for one in seen if one.met is not None}
    said = evaluate_moves(session, pairs, met)
    read = {state: [(a, e) for a in actions if (e := said[state, a])] for state, actions in candidates.items()}
    offers = {state: _offer(session, iteration, state, found) for state, found in read.items()}
    inputs = [CandidatesInput(state, offer) for state, offer in offers.items() if offer]
    replies = ask(session.teacher, session.teacher_roles.improvement, inputs, session.teacher_sampling)
    answers = {inp.state: reply for inp, reply in zip(inputs, replies, strict=True)}
    session.timings.note(of_texts([one.key for one in seen if one.state in answers], answers.values()))
    return [
        {
            "schema": 1,
            "kind": "improvement",
            "key": one.key,
            "iteration": iteration,
            "state": session.game.to_text(one.state),
            "ply": one.ply,
            "visits": one.visits,
            "critic": session.versions[CRITIC],
            "candidates": [{"action": a, "text": e.text, "verdict": e.verdict} for a, e in offers[one.state]],
            "unread": [a for a in candidates[one.state] if said[one.state, a] is None],
        }
        | _answer(answers.get(one.state))
        for one in seen
    ]


def _opponents_met(session: Session, iteration: int) -> Weights | None:
    """Whom the games met in each state, where the critic is told."""
    if not session.config.targets.opponent_aware:
        return None
    met: dict[Any, Counter[str]] = {}
    for record in session.folder.stage(iteration, rollout.NAME).records():
        for state in line_of_record(session.game, record).states:
            met.setdefault(state, Counter())[record["opponent"]] += 1
    return met


def _offer(
    session: Speakers, iteration: int, state: Any, found: list[tuple[int, Evaluation]]
) -> tuple[tuple[int, Evaluation], ...]:
    """The candidates as I sees them: in an order that tells nothing, under a control with each other's evaluations. Of
    too many the best-evaluated stay."""
    rng = Rng(session.seed("candidates", iteration, session.game.to_text(state)))
    shuffled = rng.shuffled(found)
    best = {action for action, _ in sorted(shuffled, key=lambda c: -c[1].verdict)[: session.config.improvement.offered]}
    shuffled = [candidate for candidate in shuffled if candidate[0] in best]
    if session.config.control == "shuffled_evaluations":
        texts = rng.shuffled([evaluation for _, evaluation in shuffled])
        shuffled = [(action, text) for (action, _), text in zip(shuffled, texts, strict=True)]
    return tuple(shuffled)


def _answer(reply: Reply[Choice] | None) -> dict[str, Any]:
    """What I said, and what the actor may learn of it; `reply` is None where no evaluation could be read to ask I
    about."""
    if reply is None:
        return {"action": None, "text": "", "target": None, "failures": []}
    text = reply.completion.text
    return {
        "action": reply.output.action if reply.output else None,
        "text": text,
        "target": strip_leaks(text) if reply.output else None,
        "failures": [failure.reason for failure in reply.failures],
    }


def _candidates(session: Speakers, seen: Sequence[Seen]) -> list[tuple[int, ...]]:
    config, states = session.config.improvement, [one.state for one in seen]
    if config.candidates == "legal":
        return [session.game.legal_actions(state) for state in states]
    plies, temperature = [one.ply for one in seen], session.config.rollout.temperature
    job = TableJob(session.versions[ACTOR], temperature, states, plies, config.mask_samples)
    ((_, tables),) = session.on_workers("policy_table", [job])
    return [tuple(a for a, _ in table.most_common() if a is not None)[: config.mask_keep] for table in tables]


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    texts = [candidate["text"] for record in records for candidate in record["candidates"]]
    best = [max((c["verdict"] for c in r["candidates"]), default=0.0) for r in records]
    chosen = [next((c["verdict"] for c in r["candidates"] if c["action"] == r["action"]), None) for r in records]
    regrets = [b - c for b, c in zip(best, chosen, strict=True) if c is not None]
    return {
        "states": len(records),
        "evaluations": len(texts),
        "unread": sum(len(record["unread"]) for record in records),
        "failed": sum(record["action"] is None for record in records),
        "leaked": sum(r["action"] is not None and r["target"] != r["text"] for r in records),
        "dropped": sum(r["action"] is not None and r["target"] is None for r in records),
        "chose_best": sum(r < 0.005 for r in regrets) / max(len(records), 1),
        "regret": sum(regrets) / max(len(regrets), 1),
        "critic_leaks": sum(bool(find_leaks(text)) for text in texts),
    }
