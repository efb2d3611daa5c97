"""What a choice among candidates costs, by exact values: the regret of I, or of whatever picks one of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

CLOSE = 1e-9


class ChoiceRegret(NamedTuple):
    """One choice, beside a uniformly random one among the same candidates."""

    state: Any
    regret: float
    """How much less than the best candidate the chosen one is worth. A choice that could not be read costs what a
    random one costs: it is worth none."""
    best: bool
    """Whether no candidate is worth more. A failure is not."""
    random_regret: float
    random_best: float
    """How often a random choice is best."""


def choice_regrets(
    choices: Iterable[tuple[Any, int | None]], values: Mapping[Any, Mapping[int, float]]
) -> list[ChoiceRegret]:
    """Regrets in the units of `values`; states with one candidate, where nothing is chosen, are left out.

    Args:
        choices: (state, chosen action); None where it could not be read.
        values: state -> candidate -> exact value, from the chooser's view.

    Raises:
        ValueError: an action is none of its state's candidates.
    """
    found = []
    for state, action in choices:
        worth = values[state]
        if action is not None and action not in worth:
            raise ValueError(f"action {action} is none of the candidates {sorted(worth)} in {state!r}")
        if len(worth) < 2:
            continue
        top, mean = max(worth.values()), sum(worth.values()) / len(worth)
        regret = top - (mean if action is None else worth[action])
        among_best = sum(value >= top - CLOSE for value in worth.values())
        best = action is not None and regret <= CLOSE
        found.append(ChoiceRegret(state, regret, best, top - mean, among_best / len(worth)))
    return found
