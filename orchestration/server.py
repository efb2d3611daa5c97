"""The inference actor: one engine that stays loaded, several named weight sets, answers remembered.

1. `generate(weights, requests)` answers with a named weight set (`base`, `actor`, `critic`). Sets are swapped in
   place, so that graphs, caches and buffers of the engine live on.
2. Calls that arrive while the engine is busy are merged into one batch: many small callers cost no more than one
   large one.
3. An identical request (same weight version, prompt, sampling and seed) is answered from memory. Answers of
   replaced weights are dropped.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from typing import Any

from nlrl.backbones.language_model import Completion, LanguageModel, Request
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig

BASE = "base"
PARTS = ("actor", "critic")
"""Weight sets that are the base's until they are trained."""


@dataclass
class _Call:
    weights: str
    requests: Sequence[Request]
    future: Future[list[Completion]] = field(default_factory=Future)


@dataclass
class ServerStats:
    """What a server did since it was last asked."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: ServerStats) -> ServerStats:
        return ServerStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class ModelServer:
    """Hosts one language model; made inside its actor."""

    def __init__(self, config: ModelConfig, threads: int = 0):
        from nlrl.orchestration.models import open_model

        self._model: LanguageModel = open_model(config, threads)
        self._sets: dict[str, tuple[str, Any]] = {}
        self._loaded = self._model.weight_version
        if hasattr(self._model, "load_weights"):
            untrained = (self._model.weight_version, weights_of(self._model))
            self._sets = dict.fromkeys((BASE, *PARTS), untrained)
        self._memory: dict[str, dict[Request, Completion]] = {}
        self._waiting: list[_Call] = []
        self._queue, self._engine = threading.Lock(), threading.Lock()
        self._stats = ServerStats()

    # -- what callers use ----------------------------------------------------------------------------------------------
    def describe(self) -> dict[str, Any]:
        """Name and abilities, for proxies."""
        return {"name": self._model.name, "reads_expectations": self._model.reads_expectations}

    def put_weights(self, name: str, version: str, state: Any) -> None:
        """Registers (or replaces) a weight set; nothing is loaded before it is needed.

        Raises:
            NLRLError: this model's weights cannot be replaced.
        """
        if not hasattr(self._model, "load_weights"):
            raise NLRLError(f"model '{self._model.name}' answers with fixed weights; it cannot be trained here")
        with self._engine:
            replaced = self._sets.get(name, ("", None))[0]
            self._sets[name] = (version, state)
            if replaced not in (held for held, _ in self._sets.values()):
                self._memory.pop(replaced, None)

    def generate(self, weights: str, requests: Sequence[Request]) -> list[Completion]:
        """Answers in order, merged with whatever else is waiting.

        Raises:
            LanguageModelError: the model cannot answer.
            NLRLError: no such weight set.
        """
        call = _Call(weights, requests)
        with self._queue:
            self._waiting.append(call)
        if not call.future.done():
            with self._engine:
                self._drain()
        return call.future.result()

    def take_stats(self) -> ServerStats:
        """Counters since the last call."""
        stats, self._stats = self._stats, ServerStats()
        return stats

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _drain(self) -> None:
        with self._queue:
            calls, self._waiting = self._waiting, []
        for weights in dict.fromkeys(call.weights for call in calls):
            self._answer(weights, [call for call in calls if call.weights == weights])

    def _answer(self, weights: str, calls: Sequence[_Call]) -> None:
        try:
            version = self._use(weights)
            answers = self._with_memory(version, [request for call in calls for request in call.requests])
        except BaseException as error:
            for call in calls:
                call.future.set_exception(error)
            return
        for call in calls:
            call.future.set_result(answers[: len(call.requests)])
            answers = answers[len(call.requests) :]

    def _use(self, weights: str) -> str:
        if not self._sets and weights in (BASE, *PARTS):  # weights that cannot be replaced play every part
            return self._model.weight_version
        if weights not in self._sets:
            raise NLRLError(f"the model server has no weights '{weights}'; it has: {', '.join(self._sets)}")
        version, state = self._sets[weights]
        if self._loaded != version:
            self._model.load_weights(state, version)  # type: ignore[attr-defined]
            self._loaded = version
        return version

    def _with_memory(self, version: str, requests: Sequence[Request]) -> list[Completion]:
        memory = self._memory.setdefault(version, {})
        missing = [request for request in dict.fromkeys(requests) if request not in memory]
        if missing:
            started = time.perf_counter()
            for request, completion in zip(missing, self._model.generate(missing), strict=True):
                memory[request] = completion
                self._stats.prompt_tokens += completion.prompt_tokens
                self._stats.completion_tokens += len(completion.tokens)
            self._stats.seconds += time.perf_counter() - started
        self._stats.requests += len(requests)
        self._stats.cached += len(requests) - len(missing)
        answers = [memory[request] for request in requests]
        for request in missing:
            if (
                memory[request].finish_reason == "error"
            ):  # asking again may help; an answer that is merely bad would only repeat
                del memory[request]
        return answers


def weights_of(model: Any) -> dict[str, Any]:
    """A copy of a native model's weights, on the CPU; a scripted model starts with none."""
    if not hasattr(model, "model"):
        return {}
    return {key: tensor.detach().cpu().clone() for key, tensor in model.model.state_dict().items()}


class ServedModel:
    """A `LanguageModel` that answers through the actors of one or more servers with one weight set.

    A prompt always goes to the same server, which therefore remembers it. Several servers of one thread each answer
    more than one of several threads does, where models are small and cores are all there is.
    """

    def __init__(self, handles: Sequence[Any], weights: str = BASE, description: dict[str, Any] | None = None):
        described = description or handles[0].call("describe").result()
        self.name: str = described["name"]
        self.reads_expectations: bool = described["reads_expectations"]
        self._handles, self._weights = list(handles), weights
        self._version = ""

    @property
    def weight_version(self) -> str:
        """Of the last answer."""
        return self._version

    def with_weights(self, weights: str) -> ServedModel:
        """The same servers, another weight set."""
        described = {"name": self.name, "reads_expectations": self.reads_expectations}
        return ServedModel(self._handles, weights, described)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if not requests:
            return []
        shares: list[list[int]] = [[] for _ in self._handles]
        for index, request in enumerate(requests):
            shares[self._server_of(request)].append(index)
        asked = [
            (share, handle.call("generate", self._weights, [requests[i] for i in share]))
            for handle, share in zip(self._handles, shares, strict=True)
            if share
        ]
        answers: dict[int, Completion] = {}
        for share, future in asked:
            answers.update(zip(share, future.result(), strict=True))
        self._version = answers[0].weight_version
        return [answers[i] for i in range(len(requests))]

    def _server_of(self, request: Request) -> int:
        if len(self._handles) == 1:
            return 0
        prompt = request.messages[-1].content if request.messages else repr(request.tokens)
        return zlib.crc32(prompt.encode()) % len(self._handles)
