"""What a worker's calls tell its metrics, whatever the worker is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from nlrl.orchestration.instruments import instruments

FIT = "fit"
"""The method of trainers that fine-tunes: its first argument is the network, its result what came of it."""
_log = logging.getLogger(__name__)


def note_call(method: str, args: Sequence[Any], seconds: float, result: Any) -> None:
    """Counts a call that has been answered."""
    instruments.count("nlrl_calls_total", 1, method)
    instruments.count("nlrl_call_seconds_total", seconds, method)
    if method == FIT and args and isinstance(result, Mapping):
        _note_fit(str(args[0]), seconds, result)


def _note_fit(network: str, seconds: float, result: Mapping[str, Any]) -> None:
    instruments.count("nlrl_train_seconds_total", seconds, network)
    for figure in ("tokens", "steps"):
        instruments.count(f"nlrl_train_{figure}_total", float(result.get(figure) or 0), network)
    if isinstance(loss := result.get("loss"), int | float):
        instruments.set("nlrl_train_loss", float(loss), network)
    _log.info("%s fine-tuned: %s examples, %.1f s, loss %s", network, result.get("examples"), seconds, loss)
