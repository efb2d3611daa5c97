"""From a config to a finished run: the stages of its method, iteration by iteration.

Each stage commits before the next begins, and a committed stage is never done again, so running the same config on the
same folder finishes whatever is missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from nlrl.orchestration.budget import spent_by
from nlrl.orchestration.checks import check
from nlrl.orchestration.config import VOLATILE, RunConfig, to_toml
from nlrl.orchestration.logs import log_context
from nlrl.orchestration.methods import NamedStage, method_of, stages_of
from nlrl.orchestration.pipeline import Pipeline, surely_done
from nlrl.orchestration.report import headline
from nlrl.orchestration.run_folder import CONFIG_FILE, RunFolder
from nlrl.orchestration.session import Session, open_session
from nlrl.orchestration.tracking import METRICS_FILE, Tracker, make_tracker, read_metrics
from nlrl.orchestration.watch import Watcher, discard

log = logging.getLogger(__name__)
AGENT_FOLDER = "agent"


def run(config: RunConfig) -> RunFolder:
    """Runs (or resumes) a config; returns the run's folder, unlocked.

    Raises:
        NLRLError: the config and the folder do not agree, a model cannot be opened, an actor died, the disk is full.
    """
    check(config)
    values = config.model_dump(mode="json", exclude_none=True)
    folder = RunFolder.open(config.out, values, to_toml(config), ignore=VOLATILE, store=config.store)
    try:
        session = open_session(config, folder)
    except BaseException:
        if not any(folder.stages()):  # nothing was begun, so the mended config need not be the same
            (folder.path / CONFIG_FILE).unlink(missing_ok=True)
            discard(folder.path)
        folder.close()
        raise
    try:
        tracker = make_tracker(config.trackers, folder.path, config=values)
        try:
            with log_context(run=config.name), Watcher(session):
                _iterate(session, tracker)
        finally:
            tracker.close()
    finally:
        session.close()
    return folder


def _iterate(session: Session, tracker: Tracker) -> None:
    method = method_of(session.config)
    _one(session, 0, method.first)
    with log_context(iteration=0):
        _track(session, tracker, 0, {})
    ahead = Pipeline(session, _one, _is_spent) if session.config.staleness else nullcontext(_lock_step(session))
    with ahead as iterations:
        for iteration, seconds in iterations:
            with log_context(iteration=iteration):
                _track(session, tracker, iteration, seconds)
    if method.exports is not None:
        assert session.trainer is not None
        session.trainer.call("export", method.exports, str(session.folder.path / AGENT_FOLDER)).result()


def _lock_step(session: Session) -> Iterator[tuple[int, dict[str, float]]]:
    """(iteration, seconds by stage), all stages of one iteration after those of the one before."""
    config, started, paces = session.config, time.monotonic(), list[float]()
    for iteration in range(1, config.iterations + 1):
        if config.max_minutes and paces:
            projected = (time.monotonic() - started + max(paces)) / 60
            if projected > config.max_minutes:
                log.info("stopping before iteration %d: it would end after %.1f minutes", iteration, projected)
                break
        if _is_spent(session, iteration):
            log.info("stopping before iteration %d: the budget is spent", iteration)
            break
        begun = time.monotonic()
        seconds = _one(session, iteration, stages_of(config, iteration))
        paces.append(time.monotonic() - begun)
        yield iteration, seconds


def _is_spent(session: Session, iteration: int) -> bool:
    """Whether the budget is spent before an iteration, by what is committed then in every run."""
    limit = session.config.budget
    spent = spent_by(surely_done(session.config, session.folder.stages(), iteration))
    steps, tokens = spent.environment_steps, sum(spent) - spent.environment_steps
    return any(
        most is not None and used >= most for most, used in ((limit.environment_steps, steps), (limit.tokens, tokens))
    )


def _one(session: Session, iteration: int, stages: Sequence[NamedStage]) -> dict[str, float]:
    """All stages of one iteration; seconds by stage."""
    seconds = {}
    for name, stage in stages:
        begun = time.monotonic()
        with session.spending(iteration, name):
            stage(session, iteration)
        seconds[f"seconds/{name}"] = time.monotonic() - begun
    return seconds


def _track(session: Session, tracker: Tracker, iteration: int, seconds: dict[str, float]) -> None:
    from nlrl.orchestration.diary import FILE

    if any(entry["step"] == iteration for entry in read_metrics(session.folder.path / METRICS_FILE)):
        return  # a rerun would overwrite what the iteration cost when it was done
    metrics = {f"{s.name}/{k}": v for s in session.folder.stages() if s.iteration == iteration for k, v in _flat(s)}
    stats = session.student.router.take_stats()
    metrics |= {f"model/{key}": value for key, value in vars(stats).items()}
    metrics |= {f"engine/{key}": value for key, value in session.student.router.metrics().items()}
    tracker.log(iteration, metrics | session.transfers | seconds)
    if (diary := session.folder.path / FILE).is_file():
        tracker.text(iteration, "evaluations", diary.read_text())
    evaluation = session.folder.stage(iteration, "evaluation")
    summary = headline(evaluation.load()["metrics"]) if evaluation.is_committed() else "done"
    log.info("iteration %d: %s; %.0f s", iteration, summary, sum(seconds.values()))


def _flat(stage: Any) -> list[tuple[str, float]]:
    """A stage's numbers under dotted names."""
    out: list[tuple[str, float]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}/{key}" if prefix else key, inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out.append((prefix, value))

    walk("", stage.load()["metrics"] if stage.is_committed() else {})
    return out
