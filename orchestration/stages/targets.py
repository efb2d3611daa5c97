"""Stage 2, targets: for each (s, a), samples of what followed, merged by G1 into a text with a verdict.

Monte Carlo samples are games played on from a true reset to (s, a). Temporal-difference samples are look-aheads
whose end the current critic evaluates; G2 joins each look-ahead with that evaluation, and G1 merges the results. G1
and G2 are separate calls. Where look-aheads differ in length, their mixture is the lambda-return.

The critic must not learn to cite evidence it will not have: G1 saw games and said so, the critic will see a
position alone. Sentences that refer to such evidence are cut out of `target`, the text the critic learns; what
cannot be cut is dropped. Both are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nlrl.agents.asking import Reply
from nlrl.agents.metrics.leaks import strip_leaks
from nlrl.agents.roles import Evaluation, SampleKind, SamplesInput
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import Session
from nlrl.orchestration.speakers import ACTOR, CRITIC, Speakers
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.stages import rollout
from nlrl.orchestration.stages.outlooks import ahead_of, fused, merge, outlooks, score_of, told
from nlrl.orchestration.stages.rollout import Visit, chunks, sample_of, visits
from nlrl.orchestration.timings import of_texts
from nlrl.orchestration.trainer import Network
from nlrl.orchestration.worker import Continuation, ContinuationTask, ContinueJob

NAME = "targets"
PAIRS_AT_ONCE = 512
"""(s, a) pairs in one job of a rollout worker."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The texts wanted for one (s, a), or with V for one s."""

    state: Any
    ply: int
    action: int | None
    visits: int
    keys: tuple[str, ...]
    """One record key a text."""
    samples: int
    """Samples that each text merges."""
    seed: int
    against: str = ""
    """The opponent, for a critic that is told."""


def run_targets(session: Session, iteration: int) -> None:
    """Makes the iteration's targets and commits them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    plans = all_plans(session, iteration)
    owed = set(stage.owed([key for plan in plans for key in plan.keys]))
    waiting = [plan for plan in plans if not owed.isdisjoint(plan.keys)]
    size = at_once(session, len(waiting), PAIRS_AT_ONCE)
    with stage.writer("targets") as writer, progress(f"iteration {iteration}: targets", len(plans)) as bar:
        bar.advance(len(plans) - len(waiting))
        groups = list(chunks(waiting, size))
        for index, found in session.texts_of(target_records, groups, iteration, plays=True):
            writer.write_many(found)
            writer.flush()
            bar.advance(len(groups[index]))
    stage.commit(summary(stage) | session.told())


def asked(config: RunConfig) -> tuple[Network, ...]:
    """Networks that games and targets are made with."""
    return (ACTOR,) if config.targets.kind == "mc" else (ACTOR, CRITIC)


def plan_targets(session: Session, iteration: int, visited: dict[Any, Visit], against: str = "") -> list[Plan]:
    """How many texts each (s, a) gets, and with V each s: more where more games go."""
    config, game = session.config.targets, session.game
    plans = []
    for state, visit in visited.items():
        wanted = round(config.texts_per_visit * math.sqrt(visit.count))
        texts = max(config.texts_min, min(config.texts_max, wanted))
        actions: list[int | None] = [None] if config.value != "q" else []
        if config.value != "v":
            actions += game.legal_actions(state) if config.actions == "legal" else sorted(visit.actions)
        for action in actions:
            ends = action is not None and all(game.is_terminal(step.state) for step in game.transitions(state, action))
            names = ("target", iteration, game.to_text(state), "v" if action is None else action)
            names += (against,) if against else ()
            count, samples = (1, 1) if ends else (texts, config.continuations)
            keys = tuple(record_key(session.config.name, session.config.seed, *names, i) for i in range(count))
            seed = session.seed(*names)
            plans.append(Plan(state, visit.ply, action, visit.count, keys, samples, seed, against))
    return plans


def all_plans(session: Session, iteration: int) -> list[Plan]:
    """The plans of an iteration; for a critic that is told the opponent, against each."""
    games, game = list(session.folder.stage(iteration, rollout.NAME).records()), session.game
    chosen = sample_of(session, iteration, visits(game, games), session.config.targets.states)
    if not session.config.targets.opponent_aware:
        return plan_targets(session, iteration, chosen)
    plans = []
    for name in dict.fromkeys(session.opponents):
        met = visits(game, (record for record in games if record["opponent"] == name))
        visited = {state: visit for state, visit in met.items() if state in chosen}
        plans += plan_targets(session, iteration, visited, name)
    return plans


def target_records(session: Speakers, plans: Sequence[Plan], iteration: int) -> list[dict[str, Any]]:
    """Plays on from each plan's (s, a), and makes its texts of that."""
    tasks = [
        ContinuationTask(p.state, p.ply, p.action, p.samples * len(p.keys), p.seed, opponents_of(p.against))
        for p in plans
    ]
    ((_, samples),) = session.on_workers("continue_games", [continue_job(session, tasks)])
    return _records(session, iteration, plans, samples)


def at_once(session: Speakers, count: int, most: int) -> int:
    """How many of `count` things one job of a worker is about: each worker has its share, if that is not above
    `most`."""
    return min(most, -(-count // session.num_workers) or 1)


def opponents_of(against: str) -> tuple[str, ...]:
    """Whom a task names; empty for those of the run."""
    return (against,) if against else ()


def continue_job(session: Speakers, tasks: Sequence[ContinuationTask], ahead: bool = False) -> ContinueJob:
    """Games to play on with the current policy, as far as the config's targets want.

    Args:
        ahead: look ahead even where targets are whole games.
    """
    config = session.config.targets
    return ContinueJob(
        session.versions[ACTOR],
        session.config.rollout.temperature,
        session.opponents,
        tasks,
        steps=None if config.kind == "mc" and not ahead else config.lookahead,
        decay=config.trace if config.kind == "lambda" else 0.0,
        next_actions=config.value == "q",
        horizon="full" if ahead else config.horizon,
    )


def _records(
    session: Speakers, iteration: int, plans: Sequence[Plan], samples: Sequence[Sequence[Continuation]]
) -> list[dict[str, Any]]:
    found = [
        ahead_of(session.game, plan.state, one, plan.against)
        for plan, ones in zip(plans, samples, strict=True)
        for one in ones
    ]
    kind: SampleKind = "games" if session.config.targets.kind == "mc" else "outlooks"
    language = session.teacher_roles.g1.language
    joined = [] if kind == "games" else outlooks(session, found)
    lines = iter([one.text for one in joined] or [told(language, one) for one in found])
    measured = kind == "games" and session.config.critic.replay.kind == "prioritised"
    scores = iter([score_of(language, one) for one in found] if measured else ())
    given, inputs, owners, more = iter(joined), [], [], []
    for plan in plans:
        for key in plan.keys:
            inputs.append(SamplesInput(plan.state, plan.action, tuple(islice(lines, plan.samples)), kind))
            owners.append((plan, key))
            outcome = {"outcome": math.fsum(islice(scores, plan.samples)) / plan.samples} if measured else {}
            more.append(outcome | ({"fused": fused(islice(given, plan.samples))} if joined else {}))
    replies = merge(session, inputs, [session.seed("g1", key) for _, key in owners])
    session.timings.note(of_texts([key for _, key in owners], replies))
    return [
        _record(session, iteration, plan, key, inp, reply) | extra
        for (plan, key), inp, reply, extra in zip(owners, inputs, replies, more, strict=True)
    ]


def _record(
    session: Speakers, iteration: int, plan: Plan, key: str, inp: SamplesInput, reply: Reply[Evaluation]
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
        **({"against": plan.against} if plan.against else {}),
    }


def summary(stage: Stage) -> dict[str, Any]:
    """How many texts there are, and how many cannot be learned."""
    texts = failed = leaked = dropped = 0
    pairs = set()
    for record in stage.records():
        texts += 1
        failed += record["verdict"] is None
        leaked += record["verdict"] is not None and record["target"] != record["text"]
        dropped += record["verdict"] is not None and record["target"] is None
        pairs.add((record["state"], record["action"]))
    return {"texts": texts, "pairs": len(pairs), "failed": failed, "leaked": leaked, "dropped": dropped}
