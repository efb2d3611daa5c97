"""Past checkpoints of a run as opponents: `checkpoint(last)`, the agent as an earlier iteration left it.

    checkpoint(last)     the newest one before the current agent
    checkpoint(best)     the one that did best in the evaluations so far, the current agent among them
    checkpoint(random)   a past one, drawn for each game among `POOL` of them that each iteration draws
    checkpoint(all)      every past one (in a league)
    checkpoint(3)        the agent of iteration 3; 0 is the untrained base
    checkpoint(last,temperature=1)    sampled answers; without it the greedy one

1. Which checkpoints a name means is decided by committed records and the run's seed, so a run that was killed decides
   it again. Records name what really played: `checkpoint(3)`, never `checkpoint(last)`.
2. The agent that plays in iteration n is that of iteration n - 1, and past ones are those of 0 to n - 2. In the first
   iteration there is the base alone, and every name means it. `checkpoint(3)` is the current agent until then.
3. Weights come from the run's own folder and lie in its model servers beside base, actor and critic, as long as an
   iteration needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from nlrl.envs.game import Game
from nlrl.envs.opponent import Opponent, is_number
from nlrl.envs.opponents import Inner, Maker, bound
from nlrl.envs.random import Rng, derive_seed
from nlrl.envs.spec import Call, parse_call
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RolloutConfig
from nlrl.orchestration.frozen import NAME as AGENT
from nlrl.orchestration.frozen import FrozenAgent, FrozenModel
from nlrl.orchestration.weight_sets import BASE

NAME = "checkpoint"
USAGE = "checkpoint(last), checkpoint(best), checkpoint(random), checkpoint(3) or checkpoint(last,temperature=1)"
WORDS = ("last", "best", "random", "all")
POOL = 4
"""Past checkpoints that `checkpoint(random)` draws among in one iteration: so many weight sets are held for it."""
MOST = 4
"""Different names of checkpoints among the opponents of a run, for the same reason."""


class Checkpoint(NamedTuple):
    """What a name says."""

    which: str | int
    temperature: float | None = None
    """None where nothing is said."""

    def at(self, iteration: int) -> str:
        """The name of one checkpoint: `checkpoint(3,temperature=1)`."""
        return f"{NAME}({iteration}{'' if not self.temperature else f',temperature={self.temperature:g}'})"


class Standing(NamedTuple):
    """Where a run stands when names are resolved."""

    current: int
    """The iteration that made the current agent."""
    scores: dict[int, float]
    """What evaluated agents scored, by iteration."""
    seed: int

    @property
    def past(self) -> list[int]:
        return list(range(self.current)) or [0]

    def meant(self, one: Checkpoint) -> list[int]:
        """The iterations of the checkpoints that a name stands for; several where one of them is drawn."""
        if isinstance(one.which, int):
            return [min(one.which, self.current)]
        if one.which == "all":
            return self.past
        if one.which == "random":
            return sorted(Rng(self.seed, self.current).shuffled(self.past)[:POOL])
        return [self._best() if one.which == "best" else self.past[-1]]

    def _best(self) -> int:
        known = {i: score for i, score in self.scores.items() if i <= self.current}
        return max(known, key=lambda i: (known[i], i), default=self.past[-1])


def score(metrics: dict[str, Any]) -> float | None:
    """Mean share of the points in an evaluation, exact where that is known; None where nothing was played."""
    exact = [row["win"] + row["draw"] / 2 for row in metrics["exact"]["against"].values() if "draw" in row]
    sampled = metrics["sampled"].get("greedy", {}).values()
    shares = exact or [row["win"]["share"] + row["draw"]["share"] / 2 for row in sampled if "draw" in row]
    return sum(shares) / len(shares) if shares else None


# -- names -------------------------------------------------------------------------------------------------------------
def checkpoints_in(names: Iterable[str]) -> list[Checkpoint]:
    """The checkpoints in opponents' names, also those inside others, once each."""
    return list(dict.fromkeys(one for name in names for one in _inside(name)))


def resolved(names: Sequence[str], standing: Standing) -> tuple[str, ...]:
    """Opponents' names with numbers for words. A name that may mean several is all of them, and the others are
    repeated, so that each name is still drawn as often."""
    groups = [meanings(name, standing.meant) for name in names]
    often = math.lcm(*map(len, groups))
    return tuple(one for group in groups for one in group for _ in range(often // len(group)))


def meanings(name: str, meant: Callable[[Checkpoint], Sequence[int]], temperature: float | None = None) -> list[str]:
    """All that a name may mean.

    Args:
        temperature: of checkpoints whose name says none.
    """
    call = parse_call(name)
    if call.name == NAME:
        one = read(call)
        told = one if one.temperature is not None else one._replace(temperature=temperature)
        return [told.at(iteration) for iteration in meant(one)]
    if not checkpoints_in([name]):
        return [name]
    parts = [meanings(a, meant, temperature) if isinstance(a, str) else [str(a)] for a in call.args]
    return [f"{call.name}({','.join(each)})" for each in product(*parts)]


def read(call: Call) -> Checkpoint:
    """The checkpoint of a parsed name.

    Raises:
        NLRLError: the arguments do not fit.
    """
    given = bound(call, ("which",), ("temperature",)) or {"which": None}
    which, temperature = given["which"], given.get("temperature")
    number = isinstance(which, int) and not isinstance(which, bool) and which >= 0
    if not (number or which in WORDS):
        raise NLRLError(f"a checkpoint is {USAGE}, not {NAME}({', '.join(map(str, call.args))})")
    if temperature is not None and not (is_number(temperature) and 0 <= temperature < math.inf):
        raise NLRLError(f"{NAME}({which}): temperature must be a number of at least 0, not {temperature!r}")
    return Checkpoint(which, temperature)


def _inside(name: str) -> Iterator[Checkpoint]:
    call = parse_call(name)
    if call.name == NAME:
        yield read(call)
    elif call.name != AGENT:
        for inner in call.args:
            if isinstance(inner, str):
                yield from _inside(inner)


# -- opponents ---------------------------------------------------------------------------------------------------------
def checkpoint_maker(served: Callable[[Any], FrozenModel], config: RolloutConfig, seed: int) -> dict[str, Maker]:
    """What `make_opponent` needs to know checkpoints.

    Args:
        served: the model that answers for the agent of an iteration.
        config: its samples and retries hold for checkpoints, too.
        seed: of sampled answers.
    """

    def make(call: Call, game: Game[Any], inner: Inner) -> Opponent | None:
        one = read(call)
        name = one.at(one.which) if isinstance(one.which, int) else f"{NAME}({one.which})"
        own_seed, samples = derive_seed(seed, "opponent", name), config.samples_per_state
        return FrozenAgent(name, game, served(one.which), one.temperature or 0.0, samples, config.retries, own_seed)

    return {USAGE: make}


def weights_name(iteration: int) -> str:
    """The weight set of an iteration's agent, which is its version, too."""
    return f"actor@{iteration}" if iteration else BASE


def most_held(names: Sequence[str]) -> int:
    """Weight sets that opponents of these names need at most at a time."""
    return sum(POOL if one.which == "random" else one.which != 0 for one in checkpoints_in(names))
