"""The few figures that stand for a run in a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

FIGURES: tuple[tuple[str, str], ...] = (
    ("win (greedy)", r"evaluation/sampled/greedy/(random|[^/]+)/win/share"),
    ("win (exact)", r"evaluation/exact/against/(random|[^/]+)/win"),
    ("return (exact)", r"evaluation/exact/against/none/return"),
    ("exploitability", r"evaluation/exact/exploitability"),
    ("rating", r"league/agent/rating"),
    ("verdict error", r"evaluation/texts/against_policy/text/mae"),
    ("true claims", r"evaluation/texts/true_claims"),
    ("unread turns", r"evaluation/turns/failed_first"),
)
"""Columns of the table of runs and the metrics they show; of several that fit, the random player's, else the first."""


def last_figures(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest value of each column of `FIGURES` that has one."""
    out: dict[str, float] = {}
    for entry in reversed(metrics):
        for column, pattern in FIGURES:
            if column not in out and (value := _figure(entry["metrics"], pattern)) is not None:
                out[column] = value
    return {column: out[column] for column, _ in FIGURES if column in out}


def _figure(numbers: Mapping[str, Any], pattern: str) -> float | None:
    found = {name: match for name in numbers if (match := re.fullmatch(pattern, name))}
    chosen = next((name for name, match in found.items() if "random" in match.groups()), next(iter(found), None))
    value = numbers[chosen] if chosen is not None else None
    return float(value) if isinstance(value, int | float) else None
