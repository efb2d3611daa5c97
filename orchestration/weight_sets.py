"""The weight sets of one model, and who answers with which.

An engine holds its sets side by side, and calls go straight to it: it merges and bounds them itself. Any other model
holds one set at a time; calls for it that arrive while it is busy wait and are merged into one batch, and sets are
swapped in place between batches.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from nlrl.backbones.language_model import Completion, Request
from nlrl.errors import NLRLError

BASE = "base"
PARTS = ("actor", "critic")
"""Weight sets that are the base's until they are trained."""
BEHIND = {part: f"{part}-behind" for part in (*PARTS, "target")}
"""Names under which asynchronous runs keep older weights beside those that are learning."""
_UNTRAINED = (*PARTS, BEHIND["actor"])


class WeightSets(Protocol):
    """Named, versioned weights of one model. Thread-safe."""

    def has(self, name: str) -> bool:
        """Whether there are weights of that name."""
        ...

    def find(self, name: str) -> tuple[str, str]:
        """Where the weights of that name are, for `generate`, and which they are now.

        Raises:
            NLRLError: there are none.
        """
        ...

    def put(self, name: str, version: str, state: Any) -> None:
        """Registers a weight set, or replaces it.

        Raises:
            NLRLError: the model's weights cannot be replaced, or these do not fit.
        """
        ...

    def drop(self, name: str) -> None:
        """Forgets a weight set, which nobody asks for any more; its memory is free for another."""
        ...

    def generate(self, place: str, requests: Sequence[Request]) -> list[Completion]:
        """Answers in order, with what `find` has found.

        Raises:
            LanguageModelError: the model cannot answer.
        """
        ...

    def versions(self) -> set[str]:
        """All there are."""
        ...

    def by_name(self) -> dict[str, str]:
        """The version of each set."""
        ...


def weight_sets_of(model: Any) -> WeightSets:
    return Resident(model) if hasattr(model, "weight_versions") else Swapped(model)


def _known(names: dict[str, Any], name: str) -> str:
    """Where a set is found: an untrained part is the base."""
    if name in names:
        return name
    if name in _UNTRAINED:
        return BASE
    raise NLRLError(f"the model server has no weights '{name}'; it has: {', '.join(dict.fromkeys((*names, *PARTS)))}")


class Resident:
    """Sets that lie side by side in an engine."""

    def __init__(self, engine: Any):
        self._engine = engine
        self._lanes: dict[str, str] = {BASE: "default"}
        self._free: list[str] = []
        self._putting = threading.Lock()

    def has(self, name: str) -> bool:
        return name in self._lanes or name in _UNTRAINED

    def find(self, name: str) -> tuple[str, str]:
        lane = self._lanes[_known(self._lanes, name)]
        return lane, self._engine.weight_versions()[lane]

    def versions(self) -> set[str]:
        versions = self._engine.weight_versions()
        return {versions[lane] for lane in self._lanes.values()}

    def by_name(self) -> dict[str, str]:
        versions = self._engine.weight_versions()
        return {name: versions[lane] for name, lane in dict(self._lanes).items() if lane in versions}

    def put(self, name: str, version: str, state: Any) -> None:
        with self._putting:
            lane = self._lanes.get(name) or self._new_lane(name)
            self._engine.load_weights(state, version, lane)
            self._lanes[name] = lane
            self._free = [one for one in self._free if one != lane]

    def _new_lane(self, name: str) -> str:
        """One that is free, or else a name that no lane has: a set may come back while another is in its old one."""
        if self._free:
            return self._free[-1]
        return name if name in PARTS else f"set-{len(self._lanes)}"

    def drop(self, name: str) -> None:
        with self._putting:
            self._free.append(self._lanes.pop(name))

    def generate(self, place: str, requests: Sequence[Request]) -> list[Completion]:
        return self._engine.generate(requests, place)


@dataclass
class _Call:
    name: str
    requests: Sequence[Request]
    future: Future[list[Completion]] = field(default_factory=Future)


class Swapped:
    """Sets that take turns in a model; nothing is loaded before it is needed."""

    def __init__(self, model: Any):
        self._model = model
        self._loaded = model.weight_version
        self._sets: dict[str, tuple[str, Any]] = {BASE: (self._loaded, weights_of(model))}
        self._waiting: list[_Call] = []
        self._queue, self._busy = threading.Lock(), threading.Lock()

    def has(self, name: str) -> bool:
        return name in self._sets or name in _UNTRAINED

    def find(self, name: str) -> tuple[str, str]:
        place = _known(self._sets, name)
        return place, self._sets[place][0]

    def versions(self) -> set[str]:
        return {version for version, _ in self._sets.values()}

    def by_name(self) -> dict[str, str]:
        return {name: version for name, (version, _) in dict(self._sets).items()}

    def put(self, name: str, version: str, state: Any) -> None:
        if not hasattr(self._model, "load_weights"):
            raise NLRLError(f"model '{self._model.name}' answers with fixed weights; it cannot be trained here")
        with self._busy:
            self._sets[name] = (version, state)

    def drop(self, name: str) -> None:
        with self._busy:
            del self._sets[name]

    def generate(self, place: str, requests: Sequence[Request]) -> list[Completion]:
        call = _Call(place, requests)
        with self._queue:
            self._waiting.append(call)
        if not call.future.done():
            with self._busy:
                self._drain()
        return call.future.result()

    def _drain(self) -> None:
        with self._queue:
            calls, self._waiting = self._waiting, []
        for name in dict.fromkeys(call.name for call in calls):
            self._answer(name, [call for call in calls if call.name == name])

    def _answer(self, name: str, calls: Sequence[_Call]) -> None:
        try:
            self._use(*self._sets[name])
            answers = self._model.generate([request for call in calls for request in call.requests])
        except BaseException as error:
            for call in calls:
                call.future.set_exception(error)
            return
        for call in calls:
            call.future.set_result(answers[: len(call.requests)])
            answers = answers[len(call.requests) :]

    def _use(self, version: str, state: Any) -> None:
        if self._loaded != version:
            self._model.load_weights(state, version)
            self._loaded = version


def weights_of(model: Any) -> dict[str, Any]:
    """A copy of a model's weights, on the CPU; a scripted model starts with none."""
    if not hasattr(model, "model") or not hasattr(model, "load_weights"):
        return {}
    return {key: tensor.detach().cpu().clone() for key, tensor in model.model.state_dict().items()}
