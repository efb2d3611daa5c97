"""The rule-following model with the time that a real one would take: calls sleep, training sleeps, and the processor is
free meanwhile. For measuring what overlaps with what.

It holds its weight sets side by side, as an engine does: calls for several sets are answered at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nlrl.backbones.language_model import Completion, Request
from nlrl.testing.by_rules import LookupTrainer, RuleModel

PER_CALL, PER_ANSWER = 0.005, 0.0005
"""Seconds."""
PER_EXAMPLE = 0.0025
"""Seconds of training for each example, so that learning takes about as long as gathering does in small runs."""


class DelayedModel:
    """Answers as `RuleModel` does, later.

    Args:
        speed: so many times faster than the constants say.
    """

    name, reads_expectations = "delayed", False

    def __init__(self, speed: float = 1.0):
        self._speed, self._lock = speed, threading.Lock()
        self._sets = {"default": RuleModel()}

    @property
    def weight_version(self) -> str:
        return self._sets["default"].weight_version

    def weight_versions(self) -> dict[str, str]:
        return {name: model.weight_version for name, model in self._sets.items()}

    def load_weights(self, state: Mapping[str, str], version: str, name: str = "default") -> None:
        with self._lock:
            self._sets.setdefault(name, RuleModel()).load_weights(state, version)

    def generate(self, requests: Sequence[Request], weights: str = "default") -> list[Completion]:
        time.sleep((PER_CALL + PER_ANSWER * len(requests)) / self._speed)
        with self._lock:
            return self._sets[weights].generate(requests)


class DelayedTrainer(LookupTrainer):
    """Learns by heart, slowly."""

    def fit(self, network: str, examples: Sequence[Any], settings: Any) -> dict[str, Any]:
        time.sleep(PER_EXAMPLE * len(examples))
        return super().fit(network, examples, settings)


def make_model(speed: float = 1.0) -> DelayedModel:
    return DelayedModel(speed)


def make_trainer() -> DelayedTrainer:
    return DelayedTrainer()
