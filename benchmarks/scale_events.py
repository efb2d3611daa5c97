"""Actors, engines and a driver as a simulation of events, to see what saturates first.

1. An *actor* plays jobs of `games` games in lock-step. Of each job's games a share is still going in each round
   (`alive`). A round is processor time for every turn, then one request for each game, each to the engine that its
   prompt hashes to among those that the actor knows; the next round begins when all have been answered.
2. An *engine* writes at most `rows` answers at once; the rest waits in order. With b under way, each progresses at
   rate(b) / b, the measured rate interpolated between measured b. All answers are equally long.
3. A finished job is a result for a *driver*, which deals with one at a time, in order: it looks at the calls under way
   (in proportion to their number, or once for all that are done), reads and writes records, and sends the next job.
4. On one machine (`cores`), actors and drivers wait for a free core; on a cluster each has its own.

Time is a heap of events; processor sharing of an engine is one virtual clock. Discrete-event libraries have queues for
this, but no shared processor whose speed depends on how many share it, which is all that is special here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

SETTLE = 0.25
"""Share of the simulated time that is left out of figures."""


@dataclass(frozen=True)
class Plan:
    """What is simulated. Times are seconds."""

    actors: int
    engines: int
    games: int
    """Of an actor, at a time."""
    alive: Sequence[float]
    """Share of a job's games that have a turn in round 0, 1, ..."""
    rate: Mapping[int, float]
    """Answers a second of an engine, by how many are under way."""
    rows: int
    """Most answers that an engine writes at once."""
    turn_s: float
    """An actor's processor time for a turn."""
    call_s: float
    """From a call to its arrival, and from the answer back."""
    game_s: float
    """A driver's time for the record and costs of one game."""
    job_s: float
    """A driver's time for a job, whatever it holds."""
    look_s: float = 0.0
    """A driver's time for each call under way, every time it looks which are done."""
    batched: bool = False
    """It takes all calls that are done at one look."""
    spread: int = 0
    """Engines that one actor knows; 0 for all."""
    drivers: int = 1
    cores: int = 0
    """Of the one machine that everything but the engines runs on; 0 for a cluster."""


@dataclass
class Seen:
    """What came of it."""

    seconds: float = 0.0
    turns: int = 0
    answered: int = 0
    engine_busy: float = 0.0
    """Share of the engines' time in which they have something to write."""
    driver_busy: float = 0.0
    longest_driver_queue: int = 0
    longest_engine_queue: int = 0
    engine_calls: int = 0
    job_wait_s: float = 0.0
    """Mean time from the end of a job to the start of the next on that actor."""
    queues: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, jobs waiting for drivers, requests waiting for engines)."""

    @property
    def turns_per_second(self) -> float:
        return self.turns / self.seconds


class Clock:
    """Runs events in order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        heappush(self._events, (self.now + seconds, next(self._numbers), call, args))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, call, args = heappop(self._events)
            call(*args)
        self.now = until


class Engine:
    """Writes answers; see the module."""

    def __init__(self, clock: Clock, rates: Sequence[float], rows: int, seen: Seen):
        self._clock, self._rates, self._rows, self._seen = clock, rates, rows, seen
        self._queue: deque[list[Any]] = deque()
        self._under_way: list[tuple[float, int, int, list[Any]]] = []
        self._numbers = count()
        self._written, self._at, self._ticket = 0.0, 0.0, 0
        self.running = self.waiting = 0
        self.busy = 0.0

    def ask(self, requests: int, done: Callable[..., None], *args: Any) -> None:
        """`done(*args)` is called when so many answers have been written."""
        self.advance()
        self._queue.append([requests, requests, done, args])
        self.waiting += requests
        self._admit()

    def advance(self) -> None:
        """Brings the virtual clock (answers written by each row) up to now."""
        passed, self._at = self._clock.now - self._at, self._clock.now
        if self.running:
            self._written += passed * self._rates[self.running] / self.running
            self.busy += passed

    def _admit(self) -> None:
        while self._queue and self.running < self._rows:
            piece = self._queue[0]
            taken = min(piece[0], self._rows - self.running)
            piece[0] -= taken
            self.running, self.waiting = self.running + taken, self.waiting - taken
            heappush(self._under_way, (self._written + 1.0, next(self._numbers), taken, piece))
            if not piece[0]:
                self._queue.popleft()
        self._ticket += 1
        if self._under_way:
            left = max(0.0, self._under_way[0][0] - self._written)
            self._clock.after(left * self.running / self._rates[self.running], self._finish, self._ticket)

    def _finish(self, ticket: int) -> None:
        if ticket != self._ticket:  # others have come since, and it goes slower
            return
        self.advance()
        first = self._under_way[0][0]
        while self._under_way and self._under_way[0][0] <= first + 1e-9:
            _, _, taken, piece = heappop(self._under_way)
            self.running -= taken
            piece[1] -= taken
            self._seen.answered += taken
            if not piece[1]:
                piece[2](*piece[3])
        self._admit()


class Servers:
    """So many at once, in order: cores, or a driver."""

    def __init__(self, clock: Clock, places: int):
        self._clock, self._free = clock, places
        self._queue: deque[tuple[float | Callable[[], float], Callable[..., None], tuple[Any, ...]]] = deque()
        self.busy = 0.0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def serve(self, seconds: float | Callable[[], float], done: Callable[..., None], *args: Any) -> None:
        self._queue.append((seconds, done, args))
        self._next()

    def _next(self) -> None:
        while self._free and self._queue:
            seconds, done, args = self._queue.popleft()
            self._free -= 1
            took = seconds() if callable(seconds) else seconds
            self.busy += took
            self._clock.after(took, self._done, done, args)

    def _done(self, done: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._free += 1
        done(*args)
        self._next()


class _Run:
    """One simulation."""

    def __init__(self, plan: Plan):
        self.plan, self.clock, self.seen = plan, Clock(), Seen()
        rates = rates_of(plan.rate, plan.rows)
        self.engines = [Engine(self.clock, rates, plan.rows, self.seen) for _ in range(plan.engines)]
        self.drivers = [Servers(self.clock, 1) for _ in range(plan.drivers)]
        self.cores = Servers(self.clock, plan.cores) if plan.cores else None
        self.rounds = [round(share * plan.games) for share in plan.alive if round(share * plan.games)]
        self._jobs_waited, self._waited = 0, 0.0
        self._random = Random(0)

    def go(self, seconds: float, samples: int = 100) -> Seen:
        for actor in range(self.plan.actors):  # they start one after the other, and in different rounds of a job
            self.clock.after(0.0, self._round, actor, actor % len(self.rounds))
        self.clock.run(seconds * SETTLE)
        before = self._counters()
        for step in range(samples):
            self.clock.run(seconds * (SETTLE + (1 - SETTLE) * (step + 1) / samples))
            self._sample()
        return self._figures(before, seconds * (1 - SETTLE))

    # -- actors --------------------------------------------------------------------------------------------------------
    def _round(self, actor: int, number: int) -> None:
        if number == len(self.rounds):
            self._report(actor)
            return
        self._compute(self.rounds[number] * self.plan.turn_s, self._ask, actor, number)

    def _compute(self, seconds: float, then: Callable[..., None], *args: Any) -> None:
        if self.cores is None:
            self.clock.after(seconds, then, *args)
        else:
            self.cores.serve(seconds, then, *args)

    def _ask(self, actor: int, number: int) -> None:
        known, draw = self.plan.spread or self.plan.engines, self._random.randrange
        pieces = Counter(draw(known) for _ in range(self.rounds[number]))
        self.seen.engine_calls += len(pieces)
        self.clock.after(self.plan.call_s, self._arrive, pieces, actor, number)

    def _arrive(self, pieces: Counter[int], actor: int, number: int) -> None:
        first, left = actor * (self.plan.spread or self.plan.engines), [len(pieces)]
        for at, requests in pieces.items():
            self.engines[(first + at) % len(self.engines)].ask(requests, self._answered, actor, number, left)

    def _answered(self, actor: int, number: int, left: list[int]) -> None:
        left[0] -= 1
        if not left[0]:
            self.seen.turns += self.rounds[number]
            self.clock.after(self.plan.call_s, self._round, actor, number + 1)

    # -- the driver ----------------------------------------------------------------------------------------------------
    def _report(self, actor: int) -> None:
        number = actor % self.plan.drivers
        work = self._work(number)
        if self.cores is None:
            self.drivers[number].serve(work, self._again, actor, self.clock.now)
        else:
            self.drivers[number].serve(0.0, self.cores.serve, work(), self._again, actor, self.clock.now)

    def _work(self, number: int) -> Callable[[], float]:
        plan, driver = self.plan, self.drivers[number]
        looks = plan.look_s * plan.actors / plan.drivers

        def seconds() -> float:
            shared = 1 + driver.waiting if plan.batched else 1
            return plan.job_s + plan.games * plan.game_s + looks / shared

        return seconds

    def _again(self, actor: int, since: float) -> None:
        self._jobs_waited, self._waited = self._jobs_waited + 1, self._waited + self.clock.now - since
        self.clock.after(self.plan.call_s, self._round, actor, 0)

    # -- figures -------------------------------------------------------------------------------------------------------
    def _sample(self) -> None:
        drivers, engines = sum(d.waiting for d in self.drivers), sum(e.waiting for e in self.engines)
        self.seen.queues.append((self.clock.now, drivers, engines))
        self.seen.longest_driver_queue = max(self.seen.longest_driver_queue, drivers)
        self.seen.longest_engine_queue = max(self.seen.longest_engine_queue, engines)

    def _counters(self) -> dict[str, float]:
        for engine in self.engines:
            engine.advance()
        return {
            "turns": self.seen.turns,
            "answered": self.seen.answered,
            "engine_calls": self.seen.engine_calls,
            "engine_busy": sum(engine.busy for engine in self.engines),
            "driver_busy": sum(driver.busy for driver in self.drivers),
            "jobs": self._jobs_waited,
            "waited": self._waited,
        }

    def _figures(self, before: Mapping[str, float], seconds: float) -> Seen:
        did = {name: value - before[name] for name, value in self._counters().items()}
        self.seen.seconds, self.seen.turns = seconds, int(did["turns"])
        self.seen.answered, self.seen.engine_calls = int(did["answered"]), int(did["engine_calls"])
        self.seen.engine_busy = did["engine_busy"] / seconds / len(self.engines)
        self.seen.driver_busy = min(1.0, did["driver_busy"] / seconds / len(self.drivers))
        self.seen.job_wait_s = did["waited"] / max(1, did["jobs"])
        return self.seen


def simulate(plan: Plan, seconds: float) -> Seen:
    """Figures of the last three quarters of so many seconds."""
    return _Run(plan).go(seconds)


def rates_of(measured: Mapping[int, float], rows: int) -> list[float]:
    """Answers a second with 0, 1, ... `rows` under way: straight lines between what was measured, level beyond."""
    known = sorted(measured)
    rates = [0.0]
    for under_way in range(1, rows + 1):
        at = bisect_left(known, under_way)
        low, high = known[max(0, at - 1)], known[min(at, len(known) - 1)]
        share = 0.0 if high == low else (under_way - low) / (high - low)
        if under_way < known[0]:
            low, high, share = 0, known[0], under_way / known[0]
        rates.append((measured[low] if low else 0.0) * (1 - share) + measured[high] * share)
    return rates
