"""Labels of iterated language TD (Algorithm 2 of arXiv 2411.14251): what the critic learns about positions under a
fixed policy.

1. `run_look_aheads`, once: for each position of the training set, games of at most l moves by the fixed policy; the
   first K different ones are kept.
2. `run_labels`, every iteration: the current critic says what it thinks of where each leads, G2 joins both, G1 merges
   the K. The look-aheads stay; only what is said of their ends changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.agents.metrics.leaks import strip_leaks
from nlrl.agents.roles import SamplesInput
from nlrl.errors import NLRLError
from nlrl.orchestration.lines import replay
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import Record, record_key
from nlrl.orchestration.session import Session, cores_of
from nlrl.orchestration.speakers import CRITIC, Speakers
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.stages import targets
from nlrl.orchestration.stages.imported import held_out_of, look_aheads_of
from nlrl.orchestration.stages.outlooks import Ahead, fused, merge, outlooks
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.state_sets import StateSet, StateSetConfig, state_set
from nlrl.orchestration.worker import Continuation, ContinuationTask, LookAheadJob

LOOK_AHEADS = "lookaheads"
STATES_AT_ONCE = 64
"""Positions in one job of a rollout worker: searches are slow, and what is done is kept job by job."""
LABELS_AT_ONCE = 2048
"""Positions in one batch of labels."""


def positions(session: Session) -> StateSet:
    """The positions of a run, made once and kept in the folder of the runs."""
    folder = session.folder.path.resolve().parent
    described = session.config.value_td.states.model_dump_json()
    return _positions(session.game.spec, described, folder, cores_of(session.config))


@lru_cache(maxsize=2)
def _positions(spec: str, described: str, folder: Path, cores: int) -> StateSet:
    return state_set(spec, StateSetConfig.model_validate_json(described), folder, cores)


def held_out(session: Session) -> Sequence[Any]:
    """The positions that are never trained on."""
    folder = session.config.value_td.imported_held_out
    return positions(session).held_out if folder is None else held_out_of(folder, session.game)


# -- look-aheads, once -------------------------------------------------------------------------------------------------
def run_look_aheads(session: Session, iteration: int) -> None:
    """Plays the look-aheads and commits those that are kept."""
    stage = session.folder.stage(iteration, LOOK_AHEADS)
    if stage.is_committed():
        return
    config, game = session.config, session.game
    if config.value_td.imported is not None:
        _import_look_aheads(session, stage, config.value_td.imported)
        return
    keys = {
        record_key("look ahead", config.name, config.seed, game.to_text(state)): state
        for state in positions(session).train
    }
    owed = stage.owed(keys)
    groups = list(chunks([(key, keys[key]) for key in owed], STATES_AT_ONCE))
    jobs = [
        LookAheadJob(config.value_td.policy, [_task(session, *one) for one in group], config.value_td.lookahead)
        for group in groups
    ]
    with stage.writer("lookaheads") as writer, progress("look-aheads", len(keys), len(keys) - len(owed)) as bar:
        for index, found in session.on_workers("look_ahead", jobs):
            group = groups[index]
            writer.write_many(_kept(session, *one, samples) for one, samples in zip(group, found, strict=True))
            writer.flush()
            bar.advance(len(group))
    counts = [len(record["lines"]) for record in stage.records()]
    stage.commit({"states": len(counts), "lines": sum(counts)})


def _import_look_aheads(session: Session, stage: Stage, folder: Path) -> None:
    """Commits the look-aheads of an imported folder; nothing is played."""
    records = list(look_aheads_of(session, folder, frozenset(held_out(session))))
    if not records:
        raise NLRLError(f"value_td.imported: every position of {folder} is held out, so nothing is left to train on")
    with stage.writer("lookaheads") as writer:
        writer.write_many(records)
    stage.commit({"states": len(records), "lines": sum(len(record["lines"]) for record in records)})


def _task(session: Session, key: str, state: Any) -> ContinuationTask:
    return ContinuationTask(state, 0, None, session.config.value_td.collected, session.seed("look ahead", key))


def _kept(session: Session, key: str, state: Any, samples: Sequence[Continuation]) -> Record:
    """The first different ones."""
    lines = [{"actions": one.actions, "open": one.result is None} | _outcomes(one) for one in samples]
    different = list({(one.actions, one.outcomes): line for one, line in zip(samples, lines, strict=True)}.values())
    return {
        "schema": 1,
        "kind": "lookahead",
        "key": key,
        "state": session.game.to_text(state),
        "policy": session.config.value_td.policy,
        "lines": different[: session.config.value_td.variations],
    }


def _outcomes(one: Continuation) -> dict[str, Any]:
    return {} if one.outcomes is None else {"outcomes": one.outcomes}


# -- labels, every iteration -------------------------------------------------------------------------------------------
class Labelled(NamedTuple):
    """A position and its look-aheads."""

    key: str
    state: Any
    aheads: list[Ahead]


def run_labels(session: Session, iteration: int) -> None:
    """Makes the iteration's labels and commits them."""
    stage = session.folder.stage(iteration, targets.NAME)
    if stage.is_committed():
        return
    found = {_label_key(session, iteration, r): r for r in session.folder.stage(0, LOOK_AHEADS).records()}
    waiting = [found[key] for key in stage.owed(found)]
    with stage.writer("targets") as writer, progress(f"iteration {iteration}: labels", len(found)) as bar:
        bar.advance(len(found) - len(waiting))
        groups = list(chunks(waiting, targets.at_once(session, len(waiting), LABELS_AT_ONCE)))
        for index, labels in session.texts_of(label_records, groups, iteration):
            writer.write_many(labels)
            writer.flush()
            bar.advance(len(groups[index]))
    stage.commit(targets.summary(stage) | session.told())


def _label_key(session: Speakers, iteration: int, look_ahead: Record) -> str:
    return record_key("label", session.config.name, session.config.seed, iteration, look_ahead["state"])


def _labelled(session: Speakers, iteration: int, look_ahead: Record) -> Labelled:
    game = session.game
    state = game.parse_text(look_ahead["state"])
    lines = [(replay(game, state, one["actions"], one.get("outcomes")), one["open"]) for one in look_ahead["lines"]]
    key = _label_key(session, iteration, look_ahead)
    return Labelled(key, state, [Ahead(line, is_open) for line, is_open in lines])


def label_records(session: Speakers, look_aheads: Sequence[Record], iteration: int) -> list[Record]:
    """The labels of positions, given the records of their look-aheads."""
    group = [_labelled(session, iteration, one) for one in look_aheads]
    found = iter(outlooks(session, [ahead for one in group for ahead in one.aheads]))
    samples = [[next(found) for _ in one.aheads] for one in group]
    texts = (tuple(outlook.text for outlook in ones) for ones in samples)
    inputs = [SamplesInput(one.state, None, said, "outlooks") for one, said in zip(group, texts, strict=True)]
    replies = merge(session, inputs, [session.seed("g1", one.key) for one in group])
    return [
        {
            "schema": 1,
            "kind": "target",
            "key": one.key,
            "iteration": iteration,
            "state": session.game.to_text(one.state),
            "ply": 0,
            "action": None,
            "visits": 1,
            "policy": session.versions[CRITIC],
            "evidence": inp.kind,
            "samples": list(inp.samples),
            "fused": fused(ones),
            "text": reply.completion.text,
            "target": strip_leaks(reply.completion.text) if reply.output else None,
            "verdict": reply.output.verdict if reply.output else None,
            "failures": [failure.reason for failure in reply.failures],
        }
        for one, ones, inp, reply in zip(group, samples, inputs, replies, strict=True)
    ]
