"""Stage 2, targets: for each (s, a), samples of what followed, merged by G1 into a text with a verdict.

Monte Carlo samples are games played on from a true reset to (s, a). Temporal-difference samples are look-aheads
whose end the current critic evaluates; G2 joins each look-ahead with that evaluation, and G1 merges the results. G1
and G2 are separate calls.

The critic must not learn to cite evidence it will not have: G1 saw games and said so, the critic will see a
position alone. Sentences that refer to such evidence are cut out of `target`, the text the critic learns; what
cannot be cut is dropped. Both are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nlrl.agents.asking import Reply, ask
from nlrl.agents.metrics.leaks import strip_leaks
from nlrl.agents.roles import GAME_OVER, ActionInput, Evaluation, SamplesInput, TransitionInput
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.stages import rollout
from nlrl.orchestration.stages.rollout import Visit, chunks, visits
from nlrl.orchestration.worker import Continuation, ContinuationTask, ContinueJob

NAME = "targets"
PAIRS_AT_ONCE = 512
"""(s, a) pairs in one job of a rollout worker."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The texts wanted for one (s, a)."""

    state: Any
    ply: int
    action: int
    visits: int
    keys: tuple[str, ...]
    """One record key a text."""
    samples: int
    """Samples that each text merges."""
    seed: int


def run_targets(session: Session, iteration: int) -> None:
    """Makes the iteration's targets and commits them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    games = session.folder.stage(iteration, rollout.NAME).records()
    plans = plan_targets(session, iteration, visits(session.game, games))
    owed = set(stage.owed([key for plan in plans for key in plan.keys]))
    waiting = [plan for plan in plans if not owed.isdisjoint(plan.keys)]
    size = min(PAIRS_AT_ONCE, -(-len(waiting) // len(session.workers)) or 1)
    with stage.writer("targets") as writer, progress(f"iteration {iteration}: targets", len(plans)) as bar:
        bar.advance(len(plans) - len(waiting))
        for group, samples in _samples(session, list(chunks(waiting, size))):
            writer.write_many(_records(session, iteration, group, samples))
            writer.flush()
            bar.advance(len(group))
    stage.commit(_summary(stage))


def plan_targets(session: Session, iteration: int, visited: dict[Any, Visit]) -> list[Plan]:
    """How many texts each (s, a) gets: more where more games go."""
    config, game = session.config.targets, session.game
    plans = []
    for state, visit in visited.items():
        wanted = round(config.texts_per_visit * math.sqrt(visit.count))
        texts = max(config.texts_min, min(config.texts_max, wanted))
        actions = game.legal_actions(state) if config.actions == "legal" else sorted(visit.actions)
        for action in actions:
            ends = all(game.is_terminal(step.state) for step in game.transitions(state, action))
            names = ("target", iteration, game.to_text(state), action)
            keys = tuple(
                record_key(session.config.name, session.config.seed, *names, i) for i in range(1 if ends else texts)
            )
            samples = 1 if ends else config.continuations
            plans.append(Plan(state, visit.ply, action, visit.count, keys, samples, session.seed(*names)))
    return plans


def _samples(session: Session, groups: list[list[Plan]]) -> Iterator[tuple[list[Plan], list[list[Continuation]]]]:
    """Games played on from each plan's (s, a), group by group as workers finish them."""
    config = session.config
    steps = config.targets.lookahead if config.targets.kind == "td" else None
    jobs = [
        ContinueJob(
            session.versions[ACTOR],
            config.rollout.temperature,
            config.rollout.opponents,
            [ContinuationTask(p.state, p.ply, p.action, p.samples * len(p.keys), p.seed) for p in group],
            steps,
        )
        for group in groups
    ]
    for index, samples in session.cluster.map_unordered(session.workers, "continue_games", jobs):
        yield groups[index], samples


def _records(
    session: Session, iteration: int, plans: Sequence[Plan], samples: Sequence[Sequence[Continuation]]
) -> list[dict[str, Any]]:
    if session.config.targets.kind == "td":
        texts = _fused(session, plans, samples)
        kind = "outlooks"
    else:
        texts = [[_retold(session, plan, one) for one in ones] for plan, ones in zip(plans, samples, strict=True)]
        kind = "games"
    inputs, owners = [], []
    for plan, lines in zip(plans, texts, strict=True):
        for key, start in zip(plan.keys, range(0, len(lines), plan.samples), strict=True):
            inputs.append(SamplesInput(plan.state, plan.action, tuple(lines[start : start + plan.samples]), kind))
            owners.append((plan, key))
    roles, seeds = session.teacher_roles, [session.seed("g1", key) for _, key in owners]
    replies = ask(session.teacher, roles.g1, inputs, session.teacher_sampling, seeds)
    return [
        _record(session, iteration, plan, key, inp, reply)
        for (plan, key), inp, reply in zip(owners, inputs, replies, strict=True)
    ]


def _retold(session: Session, plan: Plan, sample: Continuation) -> str:
    """The descriptor: one game from (s, a) as text."""
    language = session.teacher_roles.g1.language
    if session.game.is_terminal(_end(session, plan, sample)):
        return language.moves(plan.state, sample.actions)
    return language.forfeit(plan.state, sample.actions)


def _end(session: Session, plan: Plan, sample: Continuation) -> Any:
    state = plan.state
    for action in sample.actions:
        state = session.game.apply(state, action).state
    return state


def _fused(session: Session, plans: Sequence[Plan], samples: Sequence[Sequence[Continuation]]) -> list[list[str]]:
    """G2's text for every look-ahead: the critic evaluates where it led, G2 joins both."""
    flat = [(plan, one) for plan, ones in zip(plans, samples, strict=True) for one in ones]
    cut = [i for i, (_, one) in enumerate(flat) if one.result is None]
    successors = _evaluate_ends(session, [flat[i][1] for i in cut])
    texts = dict(zip(cut, successors, strict=True))
    roles = session.teacher_roles
    inputs = [
        TransitionInput(plan.state, _retold_part(session, plan, one), texts.get(i, GAME_OVER))
        for i, (plan, one) in enumerate(flat)
    ]
    replies = ask(session.teacher, roles.g2, inputs, session.teacher_sampling)
    fused = iter(reply.output.text if reply.output else reply.completion.text for reply in replies)
    return [[next(fused) for _ in ones] for ones in samples]


def _retold_part(session: Session, plan: Plan, sample: Continuation) -> str:
    if sample.result is None:
        return session.teacher_roles.g2.language.moves(plan.state, sample.actions)
    return _retold(session, plan, sample)


def _evaluate_ends(session: Session, samples: Sequence[Continuation]) -> list[str]:
    inputs = [ActionInput(sample.state, sample.next_action) for sample in samples]  # type: ignore[arg-type]
    sampling = session.sampling(0.0, expected_number=session.critic.reads_expectations)
    replies: list[Reply[Evaluation]] = ask(session.critic, session.student_roles.q, inputs, sampling)
    return [reply.output.text if reply.output else reply.completion.text for reply in replies]


def _record(
    session: Session, iteration: int, plan: Plan, key: str, inp: SamplesInput, reply: Reply[Evaluation]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "target",
        "key": key,
        "iteration": iteration,
        "state": session.game.to_text(plan.state),
        "ply": plan.ply,
        "action": plan.action,
        "visits": plan.visits,
        "policy": session.versions[ACTOR],
        "evidence": inp.kind,
        "samples": list(inp.samples),
        "text": reply.completion.text,
        "target": strip_leaks(reply.completion.text) if reply.output else None,
        "verdict": reply.output.verdict if reply.output else None,
        "failures": [failure.reason for failure in reply.failures],
    }


def _summary(stage: Stage) -> dict[str, Any]:
    texts = failed = leaked = dropped = 0
    pairs = set()
    for record in stage.records():
        texts += 1
        failed += record["verdict"] is None
        leaked += record["verdict"] is not None and record["target"] != record["text"]
        dropped += record["verdict"] is not None and record["target"] is None
        pairs.add((record["state"], record["action"]))
    return {"texts": texts, "pairs": len(pairs), "failed": failed, "leaked": leaked, "dropped": dropped}
