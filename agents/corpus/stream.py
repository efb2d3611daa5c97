"""An endless, seeded stream of corpus examples in fixed proportions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from nlrl.agents.corpus.example import Example
from nlrl.agents.corpus.states import StateSampler
from nlrl.agents.corpus.writers import Writer
from nlrl.envs import make_from_spec
from nlrl.envs.random import derive_seed
from nlrl.errors import NLRLError

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
ANY_SEED = "*"
EXAMPLES_A_SEED = 1024
"""Examples about one member of a family of games before the next is drawn."""
SEEDS = 10**9


@dataclass(frozen=True)
class CorpusSettings:
    """What the corpus is about."""

    game: str = "tictactoe"
    """A spec. Where it says `seed=*` it stands for a family: game after game, each with a seed drawn anew."""
    facts: bool = True
    held_out: bool = False
    roles: tuple[str, ...] = ()
    """Only these roles, in the mixture's proportions; empty for all."""
    games: tuple[tuple[str, float], ...] = ()
    """Several specs with their shares of the examples, in place of `game`."""

    @property
    def specs(self) -> tuple[str, ...]:
        return tuple(spec for spec, _ in self.games) or (self.game,)

    def of_game(self, name: str) -> CorpusSettings:
        """The part about the game of this name."""
        return replace(self, games=tuple((spec, share) for spec, share in self.games if name_of(spec) == name))


def name_of(spec: str) -> str:
    """The name of the game that a spec (or a family's) names."""
    return spec.partition("(")[0].strip()


def member(spec: str, seed: int = 0) -> str:
    """The spec of one member of a family; any other spec is its own."""
    return spec.replace(ANY_SEED, str(seed))


def examples(settings: CorpusSettings, seed: int, worker: int = 0) -> Iterator[Example]:
    """Examples without end; equal (settings, seed, worker) give equal streams.

    Raises:
        NLRLError: when the first is asked for, there is no position to write about (nothing held out of a tiny game).
    """
    if not settings.games:
        return _examples_of(settings, settings.game, derive_seed(seed, "corpus", worker))
    return _mixed(settings, seed, worker)


def _mixed(settings: CorpusSettings, seed: int, worker: int) -> Iterator[Example]:
    rng = random.Random(derive_seed(seed, "games", worker))
    games = [(spec, share) for spec, share in settings.games if _has_positions(settings, spec)]
    if not games:
        raise NLRLError(f"{', '.join(settings.specs)}: no position is {'held out' if settings.held_out else 'left'}")
    specs, shares = zip(*games, strict=True)
    streams = [_examples_of(settings, spec, derive_seed(seed, "corpus", worker, spec)) for spec in specs]
    while True:
        yield next(rng.choices(streams, shares)[0])


def _has_positions(settings: CorpusSettings, spec: str) -> bool:
    """Whether there is anything to write about: of a small game it may be that no position is held out."""
    try:
        return ANY_SEED in spec or bool(StateSampler(make_from_spec(spec), settings.held_out))
    except NLRLError:
        return False


def _examples_of(settings: CorpusSettings, spec: str, seed: int) -> Iterator[Example]:
    if ANY_SEED not in spec:
        yield from _from(_writer(settings, spec, seed), settings)
    rng = random.Random(seed)
    while True:
        number = rng.randrange(SEEDS)
        try:
            writer = _writer(settings, member(spec, number), derive_seed(seed, number))
        except NLRLError:  # as in `_has_positions`
            continue
        yield from islice(_from(writer, settings), EXAMPLES_A_SEED)


def _writer(settings: CorpusSettings, spec: str, seed: int) -> Writer:
    return Writer(make_from_spec(spec), seed, settings.held_out, facts=settings.facts)


def _from(writer: Writer, settings: CorpusSettings) -> Iterator[Example]:
    roles = {role: share for role, share in MIXTURE.items() if not settings.roles or role in settings.roles}
    methods, shares = [getattr(writer, role) for role in roles], list(roles.values())
    while True:
        for method in writer.rng.choices(methods, shares, k=256):
            yield method()
