"""Whom the agent of a run plays against: opponents by name, and the checkpoints among them with their weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

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


class Held:
    """Checkpoints' weights in the model servers, which both halves of an asynchronous run may need: they are put there
    for the first and dropped after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: dict[str, tuple[int, Any]] = {}

    def take(self, name: str, put: Callable[[], Any]) -> Any:
        """What `put` gave when it was first called for this name."""
        with self._lock:
            count, state = self._there.get(name) or (0, put())
            self._there[name] = count + 1, state
        return state

    def release(self, name: str, drop: Callable[[], None]) -> None:
        """Calls `drop` if nobody else needs it."""
        with self._lock:
            count, state = self._there.pop(name)
            if count > 1:
                self._there[name] = count - 1, state
            else:
                drop()


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
            known = max(iteration - 1 - self._session.config.staleness, 0)
            self._resolved = {iteration: resolved(names, self.standing(known))}
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
            self._put(iteration)
        self._held = wanted

    def _put(self, iteration: int) -> None:
        session, name = self._session, weights_name(iteration)

        def put() -> Any:
            weights = session.cluster.put(read_weights(describe(Source(str(session.folder.path), iteration))))
            session.student.router.put_weights(name, name, weights)
            return weights

        session.note_weights(name, name, session.held.take(name, put))

    def _drop(self, name: str) -> None:
        session = self._session
        session.cluster.gather([worker.call("forget_weights", name) for worker in session.workers])
        session.student.router.forget_weights(name)
        session.held.release(name, lambda: session.student.router.drop_weights(name))
        self._made = {known: one for known, one in self._made.items() if not checkpoints_in([known])}
