"""An endless, seeded stream of corpus examples in fixed proportions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nlrl.agents.corpus.writers import Example, Writer
from nlrl.envs import make_from_spec
from nlrl.envs.random import derive_seed

MIXTURE = {
    "policy": 0.13,
    "q": 0.13,
    "v": 0.06,
    "g1_games": 0.22,
    "g1_outlooks": 0.06,
    "g2": 0.09,
    "improvement": 0.26,
    "descriptor": 0.02,
    "reader": 0.03,
}
"""Share of each role in the examples. I is the role that needs the most practice, and has the longest prompts."""


@dataclass(frozen=True)
class CorpusSettings:
    """What the corpus is about."""

    game: str = "tictactoe"
    facts: bool = True
    held_out: bool = False
    roles: tuple[str, ...] = ()
    """Only these roles, in the mixture's proportions; empty for all."""


def examples(settings: CorpusSettings, seed: int, worker: int = 0) -> Iterator[Example]:
    """Examples without end; equal (settings, seed, worker) give equal streams."""
    writer = Writer(
        make_from_spec(settings.game), derive_seed(seed, "corpus", worker), settings.held_out, facts=settings.facts
    )
    roles = {role: share for role, share in MIXTURE.items() if not settings.roles or role in settings.roles}
    methods, shares = [getattr(writer, role) for role in roles], list(roles.values())
    while True:
        for method in writer.rng.choices(methods, shares, k=256):
            yield method()
