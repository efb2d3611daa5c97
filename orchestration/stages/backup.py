"""The language Bellman backup of NLAC (arXiv 2512.04601), the successor model that learns it, and the target weights.

The publication trains the successor model with the reverse KL divergence to the distribution of backed-up texts. Here
it is fine-tuned on the texts themselves, which is the forward KL divergence up to a constant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nlrl.agents.metrics.leaks import strip_leaks
from nlrl.agents.roles import ActionInput, SamplesInput
from nlrl.envs.random import Rng
from nlrl.orchestration.exact import Turn
from nlrl.orchestration.fits import TextExample
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import Record, record_key
from nlrl.orchestration.session import ACTOR, CRITIC, Session
from nlrl.orchestration.speakers import TARGET
from nlrl.orchestration.stages import targets
from nlrl.orchestration.stages.outlooks import Ahead, ask_once, fused, outlooks
from nlrl.orchestration.stages.policy_table import tabulate
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.stages.training import fine_tune, restored, weight
from nlrl.orchestration.stages.transitions import Replayed, Transition, outcome_text, replayed
from nlrl.orchestration.trainer import WEIGHTS_FILE
from nlrl.orchestration.weight_sets import BASE

AVERAGE = "average"
BACKUPS_AT_ONCE = 1024
"""Transitions in one batch."""


class Backup(NamedTuple):
    """A target that is to be made: of a transition and one next action."""

    key: str
    of: Replayed
    number: int
    share: float
    """Of the transition's weight."""


# -- targets -----------------------------------------------------------------------------------------------------------
def run_backup(session: Session, iteration: int) -> None:
    """Backs up the iteration's choice of transitions and commits the targets."""
    stage = session.folder.stage(iteration, targets.NAME)
    if stage.is_committed():
        return
    chosen, figures = replayed(session, iteration)
    backups = [backup for one in chosen for backup in _backups(session, iteration, one)]
    owed = set(stage.owed(backup.key for backup in backups))
    waiting = [backup for backup in backups if backup.key in owed]
    with stage.writer("targets") as writer, progress(f"iteration {iteration}: backups", len(backups)) as bar:
        bar.advance(len(backups) - len(waiting))
        for group in chunks(waiting, BACKUPS_AT_ONCE):
            writer.write_many(_records(session, iteration, group))
            writer.flush()
            bar.advance(len(group))
    stage.commit(targets.summary(stage) | {"replay": figures} | session.told())


def _backups(session: Session, iteration: int, one: Replayed) -> Iterator[Backup]:
    """One for each next action that is drawn; an ended game has none to draw."""
    found, config = one.transition, session.config
    count = max(1, min(config.nlac.draws, round(one.seen))) if found.is_open else 1
    place = session.game.to_text(found.line.start), outcome_text(session.game, found)
    for number in range(count):
        key = record_key("backup", config.name, config.seed, iteration, *place, number)
        yield Backup(key, one, number, 1 / count)


def _records(session: Session, iteration: int, group: Sequence[Backup]) -> list[Record]:
    aheads = [
        _ahead(backup, action) for backup, action in zip(group, _next_actions(session, iteration, group), strict=True)
    ]
    found = outlooks(session, aheads, session.target)
    inputs = [
        SamplesInput(ahead.line.start, ahead.line.actions[0], (outlook.text,), "outlooks")
        for ahead, outlook in zip(aheads, found, strict=True)
    ]
    replies = ask_once(session.teacher, session.teacher_roles.g1, inputs, session.teacher_sampling)
    return [
        {
            "schema": 1,
            "kind": "target",
            "key": backup.key,
            "iteration": iteration,
            "state": session.game.to_text(inp.state),
            "ply": backup.of.transition.ply,
            "action": inp.action,
            "visits": round(backup.of.seen),
            "weight": round(backup.of.weight * backup.share, 6),
            "policy": session.versions[ACTOR],
            "successor": session.versions.get(TARGET, BASE),
            "moves": list(ahead.line.actions),
            "next": ahead.next_action,
            "evidence": inp.kind,
            "samples": list(inp.samples),
            "fused": fused([outlook]),
            "text": reply.completion.text,
            "target": strip_leaks(reply.completion.text) if reply.output else None,
            "verdict": reply.output.verdict if reply.output else None,
            "failures": [failure.reason for failure in reply.failures],
        }
        for backup, ahead, outlook, inp, reply in zip(group, aheads, found, inputs, replies, strict=True)
    ]


def _next_actions(session: Session, iteration: int, group: Sequence[Backup]) -> list[int | None]:
    """What the current policy plays where each transition leads; None where it forfeits, or the game is over."""
    turns = {b.of.transition.line.end: _next_turn(session, b.of.transition) for b in group if b.of.transition.is_open}
    tables = dict(zip(turns, tabulate(session, list(turns.values())), strict=True))
    found = []
    for backup in group:
        sampled = sorted((tables.get(backup.of.transition.line.end) or {None: 1}).items(), key=str)
        moves = [move for move, count in sampled for _ in range(count)]
        names = session.game.to_text(backup.of.transition.line.start), outcome_text(session.game, backup.of.transition)
        order = Rng(session.seed("next action", iteration, *names)).shuffled(moves)
        found.append(order[backup.number % len(order)])
    return found


def _next_turn(session: Session, found: Transition) -> Turn:
    return Turn(found.line.end, session.game.current_player(found.line.end), found.ply + len(found.line.actions))


def _ahead(backup: Backup, action: int | None) -> Ahead:
    """A transition as G2 is told of it. Where the policy would forfeit, the game ends by that."""
    found = backup.of.transition
    return Ahead(found.line, found.is_open and action is not None, action)


# -- the successor model -----------------------------------------------------------------------------------------------
def run_successor(session: Session, iteration: int) -> None:
    """Trains the successor model on the iteration's targets: those of former iterations tell what was known then."""
    if not restored(session, iteration, CRITIC):
        fine_tune(session, iteration, CRITIC, session.config.critic, examples_of(session, iteration))


def examples_of(session: Session, iteration: int) -> list[TextExample]:
    """The targets of an iteration. What is told of one (s, a) weighs as much as its transitions were frequent, and all
    of it as `critic.visit_weight` says."""
    stage, role = session.folder.stage(iteration, targets.NAME), session.student_roles.q
    found = [record for record in stage.records() if record["target"] is not None]
    totals: dict[Any, float] = defaultdict(float)
    for record in found:
        totals[record["state"], record["action"]] += record["weight"]
    examples = []
    for record in found:
        total = totals[record["state"], record["action"]]
        inp = ActionInput(session.game.parse_text(record["state"]), record["action"])
        heavy = weight(session.config.critic, round(total)) * record["weight"] / total
        examples.append(TextExample(role.messages(inp), record["target"], heavy))
    return examples


# -- the target weights ------------------------------------------------------------------------------------------------
def run_average(session: Session, iteration: int) -> None:
    """Moves the target weights towards the successor model's, and commits and installs them."""
    stage, trainer = session.folder.stage(iteration, AVERAGE), session.trainer
    assert trainer is not None
    if stage.is_committed():
        if session.versions.get(TARGET) != f"{TARGET}@{iteration}":
            session.restore(TARGET, iteration, stage.dir)
        return
    trainer.call("average", CRITIC, TARGET, 1 - session.config.nlac.decay).result()
    with stage.file(WEIGHTS_FILE) as path:
        trainer.call("save", TARGET, str(path)).result()
    stage.commit({}, [WEIGHTS_FILE])
    session.install(TARGET, iteration)
