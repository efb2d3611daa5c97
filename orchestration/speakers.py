"""What a stage that makes texts needs of a run: whom to ask, in which words, and with which sampling.

1. A function of such a stage takes `Speakers`. The run itself is one (`Session`), and so is a rollout worker while it
   does a `TextsJob`: one and the same function makes the same records in the driver or beside it.
2. Whatever a chunk of work depends on is in its arguments, and every seed comes from a record's key or place in the
   run, so how work falls to workers leaves no trace. A prompt that two chunks have is answered once, by the server's
   memory, and stands in the stage's ledger once.
3. `on_workers` of a worker's speakers is the worker itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from nlrl.agents.roles import Roles
from nlrl.backbones.language_model import LanguageModel, Sampling
from nlrl.envs.game import Game
from nlrl.envs.random import derive_seed
from nlrl.orchestration import timings
from nlrl.orchestration.budget import Metered, Notes
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.router import ServedModel
from nlrl.orchestration.trainer import Network
from nlrl.orchestration.weight_sets import BASE, PARTS

ACTOR, CRITIC = PARTS
TARGET: Network = "target"
"""A slow copy of the critic, of methods that keep one."""


class Speakers(ABC):
    """Who is asked, and how."""

    config: RunConfig
    game: Game[Any]
    student_roles: Roles
    teacher_roles: Roles
    student: ServedModel
    teacher: LanguageModel
    meter: Notes
    timings: timings.Notes
    versions: dict[str, str]
    """Which weight version plays which part now."""

    @property
    @abstractmethod
    def opponents(self) -> tuple[str, ...]:
        """Against whom the policy plays in this iteration, one drawn for each game; `none` where it is alone."""

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """Rollout workers that jobs are spread over."""

    @abstractmethod
    def on_workers(self, method: str, jobs: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(index of the job, result) of a method of `RolloutWorker`, as workers finish; costs are taken down first."""

    @property
    def actor(self) -> LanguageModel:
        return self._part(ACTOR)

    @property
    def critic(self) -> LanguageModel:
        return self._part(CRITIC)

    @property
    def target(self) -> LanguageModel:
        """The base until there is one."""
        return self._part(TARGET)

    def _part(self, part: str) -> LanguageModel:
        served = self.student if self.versions.get(part, BASE) == BASE else self.student.with_weights(part)
        return Metered(served, self.meter)

    def seed(self, *keys: int | str) -> int:
        """A seed for a purpose, derived from the run's own."""
        return derive_seed(self.config.name, self.config.seed, *keys)

    def sampling(self, temperature: float, expected_number: bool = False) -> Sampling:
        """Sampling for the student."""
        return Sampling(
            temperature=temperature, max_tokens=self.config.model.max_tokens, expected_number=expected_number
        )

    @property
    def teacher_sampling(self) -> Sampling:
        """Greedy, for G1, G2 and I."""
        return Sampling(temperature=0.0, max_tokens=(self.config.teacher or self.config.model).max_tokens)


def roles_of(config: RunConfig, game: Game[Any]) -> tuple[Roles, Roles]:
    """The student's and the teacher's."""
    return Roles(game, config.model.prompt_style), Roles(game, (config.teacher or config.model).prompt_style)
