"""Several model servers behind one `LanguageModel`.

1. A request goes to the server that its prompt hashes to, or, where it has marks, the prompt up to the last of them:
   that server remembers the answers and keeps the states of what it has read. (A system message is no such mark: it is
   shared by so many prompts that every server soon holds it.)
2. A server that would get much more than its share gets no more; the rest goes to the least loaded one.
3. No server holds more than `MAX_IN_FLIGHT` requests of one router. What is beyond waits with the caller, who is
   blocked, so no queue grows without bound.
4. Weights are put into all servers, and the router keeps (a reference to) what it has put: every call names the version
   that must answer, and a server that was made anew is given the weights again.

A router may be sent to other processes; each counts the load that it causes itself.
"""

from __future__ import annotations

import logging
import threading
import zlib
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from nlrl.backbones.language_model import Completion, Request
from nlrl.orchestration.cluster import Cluster, Future, Handle, first_done
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.server import ModelServer, ServerStats, StaleWeights
from nlrl.orchestration.weight_sets import BASE

log = logging.getLogger(__name__)
MAX_IN_FLIGHT = 2048
PIECE = 256
"""Requests of one call: a server has several, so that it never waits for the next."""
GROUP = 64
"""Requests with equal prompts that are kept together."""
SLACK, LEAST_SLACK = 1.25, 16
"""A server may get that many times its share, and a few requests more, before affinity gives way."""
RESTARTS = 8
"""How often a server, or a rollout worker, that died is made anew."""
CONCURRENCY = 64
"""Calls that a server takes at once."""

WeightNotes = Mapping[str, tuple[str, tuple[Any]]]
"""Name -> version and what `Cluster.put` gave, in a tuple, so that the reference travels and not the weights."""
Piece = list[int]
"""Numbers of requests that go to one server in one call."""


def start_servers(
    cluster: Cluster,
    model: ModelConfig,
    count: int = 1,
    threads: int = 1,
    num_gpus: float = 0,
    name: str = "model",
    more_sets: int = 0,
    places: Sequence[tuple[float, int | None]] = (),
) -> Router:
    """Starts `count` servers, each an actor with a model of its own.

    Args:
        threads: CPU threads of each.
        num_gpus: share of a GPU that each takes.
        more_sets: weight sets that each will hold besides base, actor and critic.
        places: for each server its share, and the number of the reserved GPU that it is of.
    """
    options = {"num_cpus": 0, "threads": threads, "concurrency": CONCURRENCY, "max_restarts": RESTARTS}
    names = [name] if count == 1 else [f"{name}-{i}" for i in range(count)]
    seats = places or [(num_gpus, None)] * count
    return Router(
        [
            cluster.spawn(
                ModelServer, model, threads, gpus, more_sets, name=each, num_gpus=gpus, place=place, **options
            )
            for each, (gpus, place) in zip(names, seats, strict=True)
        ]
    )


class Router:
    """Spreads requests over servers; thread-safe.

    Args:
        servers: handles of `ModelServer`s of the same model.
        max_in_flight: requests that one server may have from this router.
    """

    def __init__(self, servers: Sequence[Handle], max_in_flight: int = MAX_IN_FLIGHT):
        self._servers, self._most = list(servers), max_in_flight
        self._weights: dict[str, tuple[str, Any]] = {}
        self._load = [0] * len(self._servers)
        self._room = threading.Condition()

    def __reduce__(self):
        return _restored, (self._servers, self._most, self._weights)

    def describe(self) -> dict[str, Any]:
        return self._servers[0].call("describe").result()

    def generate(self, weights: str, requests: Sequence[Request]) -> list[Completion]:
        """Answers in order.

        Raises:
            LanguageModelError: a model cannot answer.
            NLRLError: no such weight set; a server died too often.
        """
        answers: dict[int, Completion] = {}
        queues, running = self._plan(requests), dict[Future, tuple[int, Piece]]()
        try:
            while running or any(queues):
                for server, queue in enumerate(queues):
                    while queue and self._reserve(server, len(queue[0]), wait=not running):
                        piece = queue.popleft()
                        running[self._call(server, weights, [requests[i] for i in piece])] = server, piece
                for future in first_done(list(running)):
                    server, piece = running[future]
                    done = self._result(future, server, weights, [requests[i] for i in piece])
                    answers.update(zip(piece, done, strict=True))
                    self._release(*running.pop(future))
        finally:
            for server, piece in running.values():
                self._release(server, piece)
        return [answers[i] for i in range(len(requests))]

    def generate_everywhere(self, weights: str, requests: Sequence[Request]) -> list[list[Completion]]:
        """The answers of each server to all of a few requests, in order. Raises: as `generate`."""
        futures = [self._call(server, weights, list(requests)) for server in range(len(self._servers))]
        return [self._result(future, server, weights, list(requests)) for server, future in enumerate(futures)]

    def put_weights(self, name: str, version: str, state: Any) -> None:
        """Swaps a weight set in all servers.

        Args:
            state: what `Cluster.put` gave.
        """
        self.note_weights(name, version, (state,))
        for done in [server.call("put_weights", name, version, state) for server in self._servers]:
            done.result()

    def note_weights(self, name: str, version: str, state: tuple[Any]) -> None:
        """Tells a copy of the router, in another process, what was put. state: in a tuple, so that the reference
        travels and not the weights."""
        self._weights[name] = version, state[0]

    def noted(self) -> WeightNotes:
        """What was put, for `note_weights` of a copy."""
        return {name: (version, (state,)) for name, (version, state) in self._weights.items()}

    def last_put(self, name: str) -> tuple[str, Any] | None:
        """Version and weights (a reference, where `Cluster.put` gave one) that were last put under a name."""
        return self._weights.get(name)

    def copy(self) -> Router:
        """Another router to the same servers, with a load and notes of weights of its own."""
        return _restored(self._servers, self._most, self._weights)

    def drop_weights(self, name: str) -> None:
        """Frees the memory of a weight set in all servers."""
        self.forget_weights(name)
        for done in [server.call("drop_weights", name) for server in self._servers]:
            done.result()

    def forget_weights(self, name: str) -> None:
        """Tells a copy of the router, in another process, what was dropped."""
        self._weights.pop(name, None)

    def take_stats(self) -> ServerStats:
        """Of all servers since the last call."""
        return sum((f.result() for f in [s.call("take_stats") for s in self._servers]), ServerStats())

    def totals(self, patience: float = 2.0) -> dict[str, float]:
        """What all servers have counted since they were started; those that do not answer at once are left out."""
        found: dict[str, float] = {}
        for asked in [server.call("totals") for server in self._servers]:
            with suppress(Exception):
                for name, value in asked.result(patience).items():
                    found[name] = found.get(name, 0.0) + value
        return found

    def metrics(self) -> dict[str, float]:
        """`Engine.metrics` of all servers, added up; empty for models that count nothing."""
        found = [future.result() for future in [server.call("metrics") for server in self._servers]]
        total = {name: sum((metrics[name] for metrics in found), 0.0) for name in found[0]}
        if "prefix_hit_rate" in total:
            hits = total["prefix_hit_tokens_total"]
            total["prefix_hit_rate"] = hits / max(1.0, hits + total["prompt_tokens_read_total"])
        return total

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _plan(self, requests: Sequence[Request]) -> list[deque[Piece]]:
        """Pieces for each server."""
        with self._room:
            load = list(self._load)
        limit = SLACK * (sum(load) + len(requests)) / len(load) + LEAST_SLACK
        shares: list[Piece] = [[] for _ in load]
        for group in _equal_prompts(requests):
            server = affinity(requests[group[0]]) % len(load)
            if load[server] + len(group) > limit:
                server = min(range(len(load)), key=load.__getitem__)
            load[server] += len(group)
            shares[server] += group
        size = min(PIECE, self._most)
        return [deque(share[at : at + size] for at in range(0, len(share), size)) for share in shares]

    def _reserve(self, server: int, count: int, wait: bool) -> bool:
        with self._room:
            while self._load[server] + count > self._most:
                if not wait:
                    return False
                self._room.wait()
            self._load[server] += count
            return True

    def _release(self, server: int, piece: Piece) -> None:
        with self._room:
            self._load[server] -= len(piece)
            self._room.notify_all()

    def _call(self, server: int, weights: str, requests: list[Request]) -> Future:
        version, _ = self._weights.get(weights, ("", None))
        return self._servers[server].call("generate", weights, requests, version)

    def _result(self, future: Future, server: int, weights: str, requests: list[Request]) -> list[Completion]:
        try:
            return future.result()
        except StaleWeights:
            handle, (version, state) = self._servers[server], self._weights[weights]
            log.warning("%s was made anew; it gets %s again", handle.name, version)
            handle.call("put_weights", weights, version, state).result()
            return self._result(self._call(server, weights, requests), server, weights, requests)


def _restored(servers: Sequence[Handle], most: int, weights: dict[str, tuple[str, Any]]) -> Router:
    router = Router(servers, most)
    router._weights = dict(weights)
    return router


def _equal_prompts(requests: Sequence[Request]) -> list[Piece]:
    """Requests with the same prompt, which is read once where they are together."""
    groups: dict[Any, Piece] = {}
    for index, request in enumerate(requests):
        groups.setdefault((request.messages, request.tokens), []).append(index)
    return [group[at : at + GROUP] for group in groups.values() for at in range(0, len(group), GROUP)]


def affinity(request: Request) -> int:
    """Equal, in every process, for requests that had better meet on one server."""
    if request.messages:
        return zlib.crc32("\0".join(message.content for message in request.messages).encode())
    shared = max((mark for mark in request.marks if 0 < mark < len(request.tokens)), default=len(request.tokens))
    return zlib.crc32(array("q", request.tokens[:shared]).tobytes())


class ServedModel:
    """A `LanguageModel` that answers through a router with one weight set.

    Args:
        places: the servers' names of weight sets that go by others here.
    """

    def __init__(
        self,
        router: Router,
        weights: str = BASE,
        description: dict[str, Any] | None = None,
        places: Mapping[str, str] | None = None,
    ):
        described = description or router.describe()
        self.name: str = described["name"]
        self.reads_expectations: bool = described["reads_expectations"]
        self.places = dict(places or {})
        self.router, self._weights = router, self.places.get(weights, weights)
        self._version = ""

    @property
    def weight_version(self) -> str:
        """Of the last answer."""
        return self._version

    def with_weights(self, weights: str) -> ServedModel:
        """The same servers, another weight set."""
        return ServedModel(self.router, weights, self._description, self.places)

    def apart(self, places: Mapping[str, str]) -> ServedModel:
        """The base of the same servers through a router of its own, with other names for weight sets."""
        return ServedModel(self.router.copy(), BASE, self._description, places)

    @property
    def _description(self) -> dict[str, Any]:
        return {"name": self.name, "reads_expectations": self.reads_expectations}

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if not requests:
            return []
        answers = self.router.generate(self._weights, requests)
        self._version = answers[0].weight_version
        return answers
