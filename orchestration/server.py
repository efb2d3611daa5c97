"""The inference actor: one engine that stays loaded, several named weight sets, answers remembered.

1. `generate(weights, requests)` answers with a named weight set (`base`, `actor`, `critic`); see `weight_sets`. A call
   that names a version is answered by that version or not at all: a server that was made anew has the base only, and
   says so.
2. An identical request (same weight version, prompt, sampling and seed) is answered once: from memory, or together
   with the call that is just asking it. Answers of replaced weights are dropped, and beyond `REMEMBERED` tokens the
   oldest, so that a long iteration does not fill the machine: asked again, they come out the same.
3. A server whose model has failed for good says that it is `Unusable`, and is replaced.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Any

from nlrl.backbones.language_model import Completion, LanguageModel, Request, Timing, stamp
from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Unusable, was_restarted
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.instruments import instruments
from nlrl.orchestration.weight_sets import weight_sets_of

_log = logging.getLogger(__name__)
Memory = dict[Request, "Future[Completion]"]
REMEMBERED = 1 << 22
"""Generated tokens of remembered answers, at about seventy bytes each."""


class StaleWeights(NLRLError):
    """The server has other weights than the caller wants, or none of that name."""


@dataclass
class ServerStats:
    """What a server did since it was last asked."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """In which the model was answering something."""
    restarts: int = 0
    """Servers that took the place of one that died. What that one had counted is lost."""

    def __add__(self, other: ServerStats) -> ServerStats:
        return ServerStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class ModelServer:
    """Hosts one language model; made inside its actor. Calls may run at once."""

    def __init__(self, config: ModelConfig, threads: int = 0, gpu_share: float = 0, more_sets: int = 0):
        from nlrl.orchestration.models import open_model

        self._model: LanguageModel = open_model(config, threads, gpu_share, more_sets)
        self._sets = weight_sets_of(self._model)
        self._lock = threading.Lock()
        self._memory: dict[str, Memory] = {}
        self._oldest: deque[tuple[Memory, Request, int]] = deque()
        self._remembered = 0
        self.remembers = REMEMBERED
        """Tokens of answers that are kept."""
        self._stats = ServerStats(restarts=int(was_restarted()))
        self._asking, self._since = 0, 0.0
        instruments.read_from(self.metrics, self._sets.by_name)
        instruments.count("nlrl_model_restarts_total", self._stats.restarts)

    def describe(self) -> dict[str, Any]:
        """Name and abilities, for proxies."""
        return {"name": self._model.name, "reads_expectations": self._model.reads_expectations}

    def put_weights(self, name: str, version: str, state: Any) -> None:
        """Registers a weight set, or replaces it.

        Raises:
            NLRLError: this model's weights cannot be replaced.
        """
        self._sets.put(name, version, state)
        self._forget_replaced()
        _log.info("%s are now %s", name, version)

    def drop_weights(self, name: str) -> None:
        """Forgets a weight set; it may be gone already, where the server was made anew."""
        if self._sets.has(name):
            self._sets.drop(name)
            self._forget_replaced()

    def generate(self, weights: str, requests: Sequence[Request], version: str = "") -> list[Completion]:
        """Answers in order.

        Args:
            version: of the weights that must answer; any, if empty.
        Raises:
            StaleWeights: they are not here.
            LanguageModelError: the model cannot answer.
            NLRLError: no such weight set.
            Unusable: the model has failed for good.
        """
        if version and not self._sets.has(weights):
            raise StaleWeights(f"the model server has no '{weights}', wanted as {version}")
        place, found = self._sets.find(weights)
        if version and found != version:
            raise StaleWeights(f"the model server has '{weights}' as {found}, not as {version}")
        with self._lock:
            memory = self._memory.setdefault(found, {})
            missing = {request: Future() for request in dict.fromkeys(requests) if request not in memory}
            memory.update(missing)
            answers = [memory[request] for request in requests]
            self._stats.requests += len(requests)
            self._stats.cached += len(requests) - len(missing)
        instruments.count("nlrl_model_requests_total", len(requests))
        instruments.count("nlrl_model_cached_requests_total", len(requests) - len(missing))
        if missing:
            self._ask(place, memory, missing)
        return [answer.result() for answer in answers]

    def take_stats(self) -> ServerStats:
        """Counters since the last call."""
        with self._lock:
            stats, self._stats = self._stats, ServerStats()
        return stats

    def totals(self) -> dict[str, float]:
        """What this process has counted since it began, by the names of metrics."""
        return instruments.totals()

    def metrics(self) -> dict[str, float]:
        """What the engine counts; nothing, where the model is none."""
        return self._model.metrics() if hasattr(self._model, "metrics") else {}  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        """Ends the model's threads and processes, where it has some."""
        if hasattr(self._model, "close"):
            self._model.close()  # pyright: ignore[reportAttributeAccessIssue]

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _forget_replaced(self) -> None:
        """Drops the answers of weights that are gone."""
        with self._lock:
            kept = self._sets.versions()
            self._memory = {version: memory for version, memory in self._memory.items() if version in kept}
            here = {id(memory) for memory in self._memory.values()}
            self._oldest = deque(entry for entry in self._oldest if id(entry[0]) in here)
            self._remembered = sum(tokens for _, _, tokens in self._oldest)

    def _ask(self, place: str, memory: Memory, missing: Memory) -> None:
        self._clock(+1)
        instruments.count("nlrl_model_open_requests", len(missing))
        asked, began = time.time(), time.perf_counter()
        try:
            completions = self._sets.generate(place, list(missing))
        except BaseException as error:
            self._forget(memory, list(missing))
            if getattr(self._model, "failed", False):
                error = Unusable(str(error))
            for answer in missing.values():
                answer.set_exception(error)
            return
        finally:
            self._clock(-1)
            instruments.count("nlrl_model_open_requests", -len(missing))
            instruments.count("nlrl_model_busy_seconds_total", time.perf_counter() - began)
        stamp(completions, Timing(asked, time.perf_counter() - began))
        # Asking again may help where an answer failed; one that is merely bad would only repeat.
        self._forget(memory, [r for r, c in zip(missing, completions, strict=True) if c.finish_reason == "error"])
        for answer, completion in zip(missing.values(), completions, strict=True):
            answer.set_result(completion)
        read = sum(completion.prompt_tokens for completion in completions)
        written = sum(len(completion.tokens) for completion in completions)
        with self._lock:
            self._stats.prompt_tokens += read
            self._stats.completion_tokens += written
            self._remember(memory, missing, completions)
        _count(completions, read, written)

    def _remember(self, memory: Memory, asked: Iterable[Request], completions: Iterable[Completion]) -> None:
        """Notes how much room answers take, and forgets the oldest where that is too much."""
        for request, completion in zip(asked, completions, strict=True):
            if request in memory:
                self._oldest.append((memory, request, len(completion.tokens)))
                self._remembered += len(completion.tokens)
        while self._remembered > self.remembers:
            old, request, tokens = self._oldest.popleft()
            self._remembered -= tokens
            old.pop(request, None)

    def _forget(self, memory: Memory, requests: Sequence[Request]) -> None:
        with self._lock:
            for request in requests:
                del memory[request]

    def _clock(self, change: int) -> None:
        """Counts the calls that the model is answering, and the time in which there are any."""
        with self._lock:
            if self._asking:
                self._stats.seconds += time.perf_counter() - self._since
            self._since = time.perf_counter()
            self._asking += change


def _count(completions: Sequence[Completion], read: int, written: int) -> None:
    """For metrics: what one call of the model has brought."""
    instruments.observe("nlrl_model_batch_requests", (len(completions),))
    first, last = completions[0].timing, completions[-1].timing
    if first is last and first is not None:  # the model keeps no clock, so all have one time
        instruments.observe("nlrl_model_request_seconds", (first.seconds,), len(completions))
    else:
        seconds = [one.timing.seconds for one in completions if one.timing is not None]
        instruments.observe("nlrl_model_request_seconds", seconds)
    instruments.count("nlrl_model_prompt_tokens_total", read)
    instruments.count("nlrl_model_generated_tokens_total", written)
    if failed := sum(one.finish_reason == "error" for one in completions):
        instruments.count("nlrl_model_failed_requests_total", failed)
