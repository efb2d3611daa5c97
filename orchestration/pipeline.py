"""Asynchronous iteration: games and targets of later iterations are made while networks learn from those of earlier
ones.

1. An iteration has two halves. *Gathering* asks models and writes down what is learned from (rollout, targets, policy
   table: the first `Method.gathers` stages); *learning* is the rest, evaluation included.
2. With staleness s, gathering of iteration i uses the weights that learning left in iteration i - 1 - s (the base
   before the first): those and no others, however fast either half is. So records depend on their keys alone, as in
   lock-step, and a run that was killed goes on with the same bytes.
3. Each half is a thread with a session of its own: its ledger, its workers, its versions. Learning runs in the thread
   of the caller; both ask the same model servers, where older weights lie beside the newest ones under names of their
   own (`weight_sets.BEHIND`).
4. Gathering of i begins when that of i - 1 and learning of i - 1 - s are committed; learning of i when gathering of i
   and learning of i - 1 are. So gathering is at most s iterations ahead, which is a bound for what waits on disk, too.
5. What fails in one half ends the other at its next job; committed stages and written records stay.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from nlrl.orchestration.budget import Meter, Metered
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.methods import NamedStage, method_of, stages_of
from nlrl.orchestration.session import Session, Stopped, start_workers
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.timings import Timings
from nlrl.orchestration.weight_sets import BEHIND

log = logging.getLogger(__name__)
Seconds = dict[str, float]
Noted = dict[str, tuple[str, Any]]
"""Version and weights of each part that is asked."""


def halves(config: RunConfig, iteration: int) -> tuple[tuple[NamedStage, ...], tuple[NamedStage, ...]]:
    """The stages of an iteration that gather, and those that learn."""
    count, stages = method_of(config).gathers, stages_of(config, iteration)
    return stages[:count], stages[count:]


def surely_done(config: RunConfig, stages: Iterable[Stage], iteration: int) -> list[Stage]:
    """The stages that are committed whenever an iteration begins, whatever else may be."""
    gathers = {name for name, _ in halves(config, iteration)[0]}
    learned = iteration - 1 - config.staleness
    return [s for s in stages if s.iteration <= learned or (s.iteration < iteration and s.name in gathers)]


def gathering(session: Session) -> Session:
    """The session of the gathering half: the same run and servers, with workers, ledger and versions of its own."""
    own_teacher: Any = None if session.teacher.inner is session.student else session.teacher.inner  # type: ignore[attr-defined]
    student, meter = session.student.apart(BEHIND), Meter()
    teacher = Metered(own_teacher or student, meter)
    versions = dict(session.versions)
    own: dict[str, Any] = {"meter": meter, "versions": versions, "timings": Timings(), "doing": None}
    half = replace(session, student=student, teacher=teacher, workers=[], trainer=None, **own)
    half.workers = start_workers(half, own_teacher, "gather")
    return half


class Pipeline:
    """Both halves of a run's iterations from 1 on: `with Pipeline(...) as both: for iteration, seconds in both: ...`

    Args:
        session: of the run, whose iteration 0 is done; it becomes that of learning.
        run_stages: does the stages of an iteration and returns how long each took.
        is_spent: whether the budget is spent before an iteration.
    """

    def __init__(
        self,
        session: Session,
        run_stages: Callable[[Session, int, Sequence[NamedStage]], Seconds],
        is_spent: Callable[[Session, int], bool],
    ):
        self._learner, self._gatherer = session, gathering(session)
        self._config, self._run, self._is_spent = session.config, run_stages, is_spent
        self._asked = method_of(session.config).asked(session.config)
        self._changed = threading.Condition()
        self._weights: dict[int, Noted] = {}
        self._seconds: dict[int, Seconds] = {}
        self._times = [time.monotonic()]
        self._over, self._error = False, None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._gather,), name="gathering", daemon=True)

    def __enter__(self) -> Pipeline:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Waits for the gathering half; what failed first is what is raised."""
        if error is not None:
            self._stop()
            for worker in self._gatherer.workers:
                worker.close()  # what they are at is not waited for
        self._thread.join()
        if self._error is not None and (error is None or isinstance(error, Stopped)):
            raise self._error

    def __iter__(self) -> Iterator[tuple[int, Seconds]]:
        """(iteration, seconds by stage) as iterations end."""
        for iteration in range(1, self._config.iterations + 1):
            seconds = self._gathered(iteration)
            if seconds is None:
                return
            seconds = seconds | self._run(self._learner, iteration, halves(self._config, iteration)[1])
            self._learned(iteration)
            yield iteration, seconds

    # -- the learning half ---------------------------------------------------------------------------------------------
    def _gathered(self, iteration: int) -> Seconds | None:
        """Waits until an iteration is gathered; None where gathering has ended before it."""
        with self._changed:
            self._changed.wait_for(lambda: iteration in self._seconds or self._over)
            if self._error is not None:
                raise Stopped("gathering has failed")
            return self._seconds.pop(iteration, None)

    def _learned(self, iteration: int) -> None:
        router = self._learner.student.router
        left = {part: noted for part in self._asked if (noted := router.last_put(part)) is not None}
        with self._changed:
            self._weights[iteration] = left
            self._times.append(time.monotonic())
            self._changed.notify_all()

    # -- the gathering half --------------------------------------------------------------------------------------------
    def _gather(self) -> None:
        try:
            for iteration in range(1, self._config.iterations + 1):
                weights = self._left_by(iteration - 1 - self._config.staleness)
                if self._ends_before(iteration):
                    break
                stages = halves(self._config, iteration)[0]
                if not all(self._gatherer.folder.stage(iteration, name).is_committed() for name, _ in stages):
                    self._take(weights)
                seconds = self._run(self._gatherer, iteration, stages)
                with self._changed:
                    self._seconds[iteration] = seconds
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
            self._stop()
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _left_by(self, iteration: int) -> Noted:
        """Waits for what learning left in an iteration; nothing before the first."""
        if iteration < 1:
            return {}
        with self._changed:
            self._changed.wait_for(lambda: iteration in self._weights or self._learner.stopping.is_set())
            if iteration not in self._weights:
                raise Stopped("learning has failed")
            return self._weights.pop(iteration)

    def _take(self, weights: Noted) -> None:
        for part, (version, state) in weights.items():
            self._gatherer.hand_out(BEHIND[part], version, state)
            self._gatherer.versions[part] = version

    def _ends_before(self, iteration: int) -> bool:
        """Whether the run is to end before an iteration, by its budget or its time. At the pace so far, an iteration
        ends as many paces from now as there are unfinished ones up to it."""
        if self._is_spent(self._gatherer, iteration):
            log.info("stopping before iteration %d: the budget is spent", iteration)
            return True
        limit, times = self._config.max_minutes, list(self._times)
        if not limit or len(times) < 2:
            return False
        pace, unfinished = max(b - a for a, b in pairwise(times)), iteration - (len(times) - 1)
        projected = (time.monotonic() - times[0] + unfinished * pace) / 60
        if projected > limit:
            log.info("stopping before iteration %d: it would end after %.1f minutes", iteration, projected)
        return projected > limit

    def _stop(self) -> None:
        self._learner.stopping.set()
        with self._changed:
            self._changed.notify_all()
