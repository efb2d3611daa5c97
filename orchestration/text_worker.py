"""The rollout actor of a run: it also makes texts, so that prompts are written and answers read on as many cores as
there are workers.

It imports the stages whose functions it is given, but never PyTorch: that is a second and hundreds of megabytes for
each worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nlrl.orchestration.budget import Entry, Metered
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.frozen import FrozenModel, Source
from nlrl.orchestration.router import ServedModel
from nlrl.orchestration.speakers import ACTOR, Speakers, roles_of
from nlrl.orchestration.weight_sets import BASE
from nlrl.orchestration.worker import RolloutWorker


class TextsJob(NamedTuple):
    """Texts for one worker: `make(speakers, *arguments)`."""

    make: Callable[..., Any]
    """A function of a module: processes know it by its name."""
    arguments: tuple[Any, ...]
    versions: Mapping[str, str]
    """`Speakers.versions`."""
    opponents: tuple[str, ...] = ()
    """`Speakers.opponents`, where games are played."""


class TextWorker(RolloutWorker):
    """Plays games and makes texts; made inside its actor.

    Args:
        spec: of the game.
        student: any weight set of it.
        teacher: None is the student.
        run_seed, frozen: see `RolloutWorker`.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: str,
        student: ServedModel,
        teacher: ServedModel | None,
        run_seed: int,
        frozen: Mapping[Source, FrozenModel] | None = None,
    ):
        model = config.model
        actor = student.with_weights(ACTOR)
        super().__init__(spec, actor, model.prompt_style, model.max_tokens, config.rollout, run_seed, frozen)
        self.config = config
        self.student = student.with_weights(BASE)
        self.student_roles, self.teacher_roles = roles_of(config, self.game)
        self.teacher = Metered(teacher or self.student, self)

    def texts(self, job: TextsJob) -> Any:
        """What the job's function returns."""
        return job.make(_Here(self, job), *job.arguments)

    def note(self, entries: Iterable[Entry]) -> None:
        """Takes costs down; `metered` returns them with the result."""
        self._steps += entries


class _Here(Speakers):
    """The speakers that a worker is for a job."""

    def __init__(self, worker: TextWorker, job: TextsJob):
        self._worker, self._opponents = worker, job.opponents
        self.config, self.game = worker.config, worker.game
        self.student_roles, self.teacher_roles = worker.student_roles, worker.teacher_roles
        self.student, self.teacher = worker.student, worker.teacher
        self.meter, self.timings, self.versions = worker, worker.timings, dict(job.versions)

    @property
    def opponents(self) -> tuple[str, ...]:
        return self._opponents

    @property
    def num_workers(self) -> int:
        return 1

    def on_workers(self, method: str, jobs: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        for index, job in enumerate(jobs):
            yield index, getattr(self._worker, method)(job)
