"""Whom the agent of a run plays against: opponents by name, and the checkpoints among them with their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.orchestration.budget import Meter, Metered
from nlrl.orchestration.checkpoints import (
    Standing,
    checkpoint_maker,
    checkpoints_in,
    resolved,
    score,
    weights_name,
)
from nlrl.orchestration.frozen import FrozenModel, Source, agent_maker, describe, read_weights

if TYPE_CHECKING:
    from nlrl.orchestration.session import Session


class Opposition:
    """The opponents of a session."""

    def __init__(self, session: Session):
        self._session = session
        self._made: dict[str, Opponent] = {}
        self._held: set[int] = set()
        self._resolved: dict[int, tuple[str, ...]] = {}

    def drawn(self, iteration: int) -> tuple[str, ...]:
        """The names that an iteration's games draw among, `rollout.opponents` with numbers for words; their weights are
        there when this returns."""
        names = self._session.config.rollout.opponents
        if not checkpoints_in(names):
            return names
        if iteration not in self._resolved:
            self._resolved = {iteration: resolved(names, self.standing(max(iteration - 1, 0)))}
        self.hold(self._resolved[iteration])
        return self._resolved[iteration]

    def named(self, name: str) -> Opponent:
        """The opponent of that name, made once; it plays as it does in the rollout workers."""
        if name not in self._made:
            self._made[name] = self.make(name)
        return self._made[name]

    def make(self, name: str, meter: Meter | None = None) -> Opponent:
        """A new opponent; meter: where the answers of its checkpoints are entered."""
        session, rollout = self._session, self._session.config.rollout

        def checkpoint(iteration: int) -> FrozenModel:
            served = session.student.with_weights(weights_name(iteration))
            settings = session.config.model
            model = Metered(served, meter) if meter else served
            return FrozenModel(model, settings.prompt_style, settings.max_tokens)

        seed = session.seed("policy")
        makers = agent_maker(session.frozen.__getitem__, rollout, seed)
        return make_opponent(name, session.game, makers | checkpoint_maker(checkpoint, rollout, seed))

    def standing(self, current: int) -> Standing:
        """Where the run stands when the current agent is that of an iteration."""
        stages = [s for s in self._session.folder.stages() if s.name == "evaluation" and s.iteration <= current]
        scores = {s.iteration: score(s.load()["metrics"]) for s in stages if s.is_committed()}
        known = {iteration: found for iteration, found in scores.items() if found is not None}
        return Standing(current, known, self._session.seed("checkpoints"))

    def hold(self, names: Iterable[str]) -> None:
        """Puts the weights of the checkpoints in (resolved) names into the model servers, and drops all others."""
        wanted = {int(one.which) for one in checkpoints_in(names)} - {0}
        for iteration in sorted(self._held - wanted):
            self._drop(weights_name(iteration))
        for iteration in sorted(wanted - self._held):
            state = read_weights(describe(Source(str(self._session.folder.path), iteration)))
            self._session.put_weights(weights_name(iteration), weights_name(iteration), state)
        self._held = wanted

    def _drop(self, name: str) -> None:
        session = self._session
        session.cluster.gather([worker.call("forget_weights", name) for worker in session.workers])
        session.student.router.drop_weights(name)
        self._made = {known: one for known, one in self._made.items() if not checkpoints_in([known])}
