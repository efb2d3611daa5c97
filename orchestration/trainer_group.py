"""The training actor of native models: one, or several on GPUs of their own that train as one.

1. Every actor holds all networks. Each call that changes something goes to all of them, in the same order, so they stay
   equal; what is only read (weights, scores, files) is asked of the first.
2. Examples travel once; each actor reads its share of a step's tokens (`nlrl.backbones.ranks`).
3. The actors meet at a port that the first one's machine gives away and that nobody else can take in between.
4. Where one fails, the others wait for it in vain, so the run ends at the first failure, and its end ends them all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Cluster, Future, Handle, first_done
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.placement import Seat
from nlrl.orchestration.trainer import TrainerActor

ASKED_OF_ONE = ("weights", "score", "values", "save", "save_head", "save_optimizer", "export")
PATIENCE = 5.0
"""Seconds that a failure waits for a better explanation: where one process dies, the others complain, too."""


def start_trainer(cluster: Cluster, config: RunConfig, threads: int, seats: Sequence[Seat]) -> Handle:
    """The actor, or the group of them, that trains a run's native model.

    Args:
        threads: CPU threads of all of them together.
        seats: of each.
    """
    model, count = config.model, len(seats)
    each = max(1, threads // count)

    def start(rank: int, name: str) -> Handle:
        given = (model.name, model.device, each, model.dtype, rank, count)
        place = {"num_gpus": seats[rank].gpus, "place": seats[rank].bundle}
        return cluster.spawn(TrainerActor, *given, num_cpus=0, threads=each, name=name, **place)

    if count == 1:
        return start(0, "trainer")
    return TrainerGroup(cluster, [start(rank, f"trainer-{rank}") for rank in range(count)])


class TrainerGroup:
    """Several `TrainerActor`s behind one handle.

    Args:
        actors: of ranks 0, 1, ..., on a Ray cluster: inline, the first call would wait for the second for ever.
    """

    name = "trainer"

    def __init__(self, cluster: Cluster, actors: Sequence[Handle]):
        self._cluster, self._actors = cluster, list(actors)
        self._met = False

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Future:
        if method in ASKED_OF_ONE:
            return self._actors[0].call(method, *args, **kwargs)
        self._meet()
        given = [self._cluster.put(arg) if isinstance(arg, list) else arg for arg in args]
        return AllOf([actor.call(method, *given, **kwargs) for actor in self._actors])

    def processes(self) -> list[int]:
        """Their ids, each on its machine."""
        return [actor.call("process").result() for actor in self._actors]

    def sees(self, path: str) -> bool:
        """Whether every one of them sees a file as this process does."""
        return all(actor.sees(path) for actor in self._actors)

    def close(self) -> None:
        for actor in self._actors:
            actor.close()

    def _meet(self) -> None:
        if self._met:
            return
        address = self._actors[0].call("address").result()
        port = self._actors[0].call("host", address).result()
        AllOf([actor.call("join", address, port) for actor in self._actors]).result()
        self._met = True


class AllOf:
    """The answer of the first of several workers that do the same, when all have done it."""

    def __init__(self, futures: Sequence[Future]):
        self._futures = list(futures)

    @staticmethod
    def wait(futures: list[AllOf], block: bool) -> list[AllOf]:
        done = set(first_done([future._futures[0] for future in futures], block))
        return [future for future in futures if future._futures[0] in done]

    @property
    def reference(self) -> Any:
        return self._futures[0].reference

    def result(self, timeout: float | None = None) -> Any:
        """Waits for all.

        Raises:
            Exception: what a worker raised; of several the one that says most.
        """
        running = list(self._futures)
        while running:
            for future in first_done(running):
                running.remove(future)
                if (error := _failure(future, timeout)) is not None:
                    raise self._better(error, running)
        return self._futures[0].result()

    def _better(self, error: Exception, running: list[Future]) -> Exception:
        """The error, or that of another worker if it is one of ours."""
        until = time.monotonic() + PATIENCE
        while not isinstance(error, NLRLError) and running and time.monotonic() < until:
            for future in first_done(running, block=False):
                running.remove(future)
                other = _failure(future, None)
                error = other if isinstance(other, NLRLError) else error
            time.sleep(0.05)
        return error


def _failure(future: Future, timeout: float | None) -> Exception | None:
    try:
        future.result(timeout)
    except Exception as error:
        return error
    return None
