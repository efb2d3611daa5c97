"""Verdicts that nothing supports, for roles that must learn the form alone."""

from __future__ import annotations

import random


def random_verdict(rng: random.Random) -> float:
    """In [-1, 1] with two decimals: certainties, the fractions that counting gives, and anything between."""
    kind = rng.random()
    if kind < 0.25:
        return float(rng.choice((-1, 1)))
    if kind < 0.5:
        n = rng.randint(1, 9)
        return round(rng.randint(-n, n) / n, 2)
    return round(rng.randint(-50, 50) / 50, 2)


def random_verdicts(rng: random.Random, count: int) -> list[float]:
    """Verdicts of several candidates: spread, clustered, eighths or all equal, so that near ties are common."""
    kind = rng.random()
    if kind < 0.4:
        return [random_verdict(rng) for _ in range(count)]
    if kind < 0.8:
        centre, width = rng.randint(-50, 50), rng.choice((2, 5, 10, 20))
        return [max(-50, min(50, centre + rng.randint(-width, width))) / 50 for _ in range(count)]
    if kind < 0.97:
        return [round(rng.randint(-8, 8) / 8, 2) for _ in range(count)]
    return [random_verdict(rng)] * count
