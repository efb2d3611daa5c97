"""Prioritised replay of texts: which of all that was written is trained on again, and how much each counts.

1. Equal texts about the same thing are one item; its newest version stands for all, and their weights are added.
2. At most `per_state` items speak about the same thing, the newest ones.
3. Every iteration gets places in proportion to its items and how fresh they are, the newest at least its share.
4. Within an iteration an item's priority is a product of two factors: how far its verdict is from what was measured,
   and how few items speak about the same thing. Items are drawn without replacement, by systematic sampling in random
   order (Madow 1949), which gives each exactly the odds that its priority asks for.
5. An item that was drawn with odds q where plain sampling would have had odds f counts (f / q) ** `importance` times
   (the correction of Schaul et al. 2016, arXiv 1511.05952, section 3.4). With 1, weighted sums over what was drawn are
   in the mean f times those over all items of the iterations that got places.

Nothing here knows a session: the choice depends on the items and a seed, not on their order.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from pydantic import Field

from nlrl.envs.random import Rng
from nlrl.orchestration.section import Section

FLOOR = 0.05
"""Added to a disagreement, so that items without any can still be drawn."""


class ReplayConfig(Section):
    """Which texts of former iterations a network is trained on."""

    kind: Literal["recent", "prioritised"] = "recent"
    """recent: all of the last `buffer_iterations` iterations. prioritised: a choice among all iterations since the
    policy settled (`short_buffer_until`), as the fields below say; with recent they say nothing."""
    size: int = Field(default=0, ge=0)
    """Texts chosen in an iteration; 0 for as many as recent would take. Fewer if there are not so many."""
    disagreement: float = Field(default=0.5, ge=-8, le=8)
    """Exponent of the disagreement between a text's verdict and the measured mean score of the games behind it; for the
    actor, between the verdicts of the best candidate and of the chosen one. Below 0 what disagrees is drawn less."""
    staleness: float = Field(default=1.0, ge=0, le=8)
    """Texts that are n iterations old get (1 + n) ** staleness times fewer places."""
    novelty: float = Field(default=0.5, ge=0, le=8)
    """A text that is one of n about the same thing is drawn n ** novelty times less."""
    newest_share: float = Field(default=0.5, ge=0, le=1)
    """Least share of the chosen texts that are of the newest iteration, while it has so many."""
    per_state: int = Field(default=0, ge=0)
    """Most different texts about the same thing (critic: a state and a move; actor: a state), the newest; 0 for all."""
    importance: float = Field(default=0.4, ge=0, le=1)
    """How far weights make up for the odds of being chosen: 0 not at all, 1 wholly."""


@dataclass(frozen=True, slots=True)
class Item:
    """A text that may be trained on."""

    state: str
    action: int | None
    """None for texts about the state."""
    text: str
    iteration: int
    """Version of the policy that it speaks of."""
    verdict: float | None = None
    outcome: float | None = None
    """What the verdict should have been as far as it was measured; None where nothing was."""
    against: str = ""
    """The opponent, for a critic that is told."""
    weight: float = 1.0

    @property
    def about(self) -> tuple[str, str, str]:
        """What it speaks about; items that agree in this answer the same prompt."""
        return self.state, "" if self.action is None else str(self.action), self.against


class Chosen(NamedTuple):
    """An item to train on, and how much it counts."""

    item: Item
    weight: float


class Choice(NamedTuple):
    """What is trained on, by iteration, and figures about it."""

    chosen: list[Chosen]
    figures: dict[str, Any]


def choose(items: Iterable[Item], config: ReplayConfig, size: int, newest: int, seed: int) -> Choice:
    """Chooses what to train on.

    Args:
        size: items to choose; all if there are fewer.
        newest: the current iteration, from which ages count.
    """
    every, rng = list(items), Rng(seed)
    different = deduplicated(every)
    pool = limited(different, config.per_state, rng.spawn("limit"))
    size = min(size, len(pool))
    strata: dict[int, list[tuple[Item, float]]] = defaultdict(list)
    for item, priority in zip(pool, priorities(pool, config), strict=True):
        strata[item.iteration].append((item, priority))
    places = allocated({it: len(found) for it, found in strata.items()}, size, newest, config)
    chosen = list[Chosen]()
    for it, found in strata.items():
        odds = inclusion_odds([priority for _, priority in found], places[it])
        for index in drawn(odds, rng.spawn("draw", it)):
            item = found[index][0]
            chosen.append(Chosen(item, item.weight * (size / len(pool) / odds[index]) ** config.importance))
    figures = {"pool": len(pool), "duplicates": len(every) - len(different), "crowded": len(different) - len(pool)}
    return Choice(chosen, figures | told(chosen, newest))


def told(chosen: Sequence[Chosen], newest: int) -> dict[str, Any]:
    """Figures for the manifest: how many there are of each iteration, how old they are, and how many equally heavy ones
    would make means as exact (Kish's effective sample size)."""
    counts = Counter(one.item.iteration for one in chosen)
    total, squares = sum(one.weight for one in chosen), sum(one.weight**2 for one in chosen)
    return {
        "chosen": len(chosen),
        "by_iteration": {str(iteration): counts[iteration] for iteration in sorted(counts)},
        "mean_age": round(sum(newest - one.item.iteration for one in chosen) / max(len(chosen), 1), 6),
        "effective": round(total**2 / squares, 3) if squares else 0.0,
    }


# -- what can be chosen ------------------------------------------------------------------------------------------------
def deduplicated(items: Iterable[Item]) -> list[Item]:
    """Equal texts about the same thing once, as the newest version has it, with their weights added; ordered by
    iteration, then by what they say."""
    found: dict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        found[*item.about, item.text].append(item)
    merged = [_merged(versions) for versions in found.values()]
    return sorted(merged, key=lambda item: (item.iteration, item.about, item.text))


def _merged(versions: Sequence[Item]) -> Item:
    newest = [item for item in versions if item.iteration == max(each.iteration for each in versions)]
    outcomes = [item.outcome for item in newest if item.outcome is not None]
    outcome = math.fsum(outcomes) / len(outcomes) if outcomes else None
    return replace(newest[0], outcome=outcome, weight=math.fsum(item.weight for item in versions))


def limited(items: Sequence[Item], most: int, rng: Rng) -> list[Item]:
    """At most so many items about the same thing (0: all), the newest, of one iteration a random choice; in order."""
    if most == 0:
        return list(items)
    kept, counts = set(), Counter[tuple[str, str, str]]()
    for index in sorted(rng.shuffled(range(len(items))), key=lambda index: -items[index].iteration):
        counts[items[index].about] += 1
        if counts[items[index].about] <= most:
            kept.add(index)
    return [item for index, item in enumerate(items) if index in kept]


# -- how likely each is ------------------------------------------------------------------------------------------------
def priorities(items: Sequence[Item], config: ReplayConfig) -> list[float]:
    """How likely each item is to be drawn among those of its iteration, up to a factor."""
    surprises, alike = _surprises(items, config.disagreement), Counter(item.about for item in items)
    return [one * alike[item.about] ** -config.novelty for item, one in zip(items, surprises, strict=True)]


def _surprises(items: Sequence[Item], exponent: float) -> list[float]:
    """The factor of the disagreement, in [0, 1] before the floor; where nothing was measured, the mean of the others,
    so that it decides nothing."""
    found = [
        None if item.outcome is None or item.verdict is None else (abs(item.verdict - item.outcome) / 2 + FLOOR)
        for item in items
    ]
    known = [value**exponent for value in found if value is not None]
    mean = sum(known) / len(known) if known else 1.0
    return [mean if value is None else value**exponent for value in found]


def allocated(sizes: dict[int, int], count: int, newest: int, config: ReplayConfig) -> dict[int, int]:
    """How many places each iteration gets: in proportion to its items and how fresh they are (largest remainders), the
    newest at least its share; none more than it has items.

    Args:
        sizes: items of each iteration.
        count: places, at most as many as there are items.
    """
    freshness = {it: (1 + max(newest - it, 0)) ** -config.staleness for it in sizes}
    places = _proportional(sizes, freshness, count)
    least = min(math.ceil(config.newest_share * count), sizes.get(newest, 0))
    if places.get(newest, 0) >= least:
        return places
    others = {iteration: size for iteration, size in sizes.items() if iteration != newest}
    return _proportional(others, freshness, count - least) | {newest: least}


def _proportional(sizes: dict[int, int], freshness: dict[int, float], count: int) -> dict[int, int]:
    """Places in proportion to size x freshness; what an iteration cannot fill goes to the others."""
    quotas: dict[int, float] = {}
    for it in sorted(sizes, key=lambda it: (-freshness[it], it)):  # the freshest are the first to be full
        mass = sum(sizes[each] * freshness[each] for each in sizes if each not in quotas)
        quotas[it] = min(sizes[it], (count - sum(quotas.values())) * sizes[it] * freshness[it] / mass)
    places = {iteration: int(quotas[iteration] + 1e-9) for iteration in sizes}  # 2.9999999999 are 3
    rest = sorted(sizes, key=lambda iteration: (round(places[iteration] - quotas[iteration], 6), -iteration))
    for iteration in rest[: count - sum(places.values())]:
        places[iteration] += 1
    return places


def inclusion_odds(priorities: Sequence[float], count: int) -> list[float]:
    """The odds of each to be among `count` drawn without replacement: in proportion to the priorities, those that would
    exceed 1 being certain. They sum to `count`."""
    if count >= len(priorities):
        return [1.0] * len(priorities)
    order = sorted(range(len(priorities)), key=lambda index: (priorities[index], index))
    masses = list(accumulate(priorities[index] for index in order))  # of each and of all that are smaller
    certain = 0
    while certain < count and priorities[order[-1 - certain]] * (count - certain) >= masses[-1 - certain]:
        certain += 1
    odds = [priority * (count - certain) / masses[-1 - certain] for priority in priorities]
    for index in order[len(order) - certain :]:
        odds[index] = 1.0
    return odds


def drawn(odds: Sequence[float], rng: Rng) -> list[int]:
    """Indexes drawn with these odds (which sum to how many are drawn), in order.

    All odds are laid end to end in random order; whatever covers one of the points u, u + 1, ... is drawn.
    """
    certain = [index for index, each in enumerate(odds) if each >= 1]
    uncertain = rng.shuffled([index for index, each in enumerate(odds) if each < 1])
    found, wanted = list[int](), round(math.fsum(odds)) - len(certain)
    reach, point = 0.0, rng.random()
    for index in uncertain:
        reach += odds[index]
        if reach > point + len(found) and len(found) < wanted:
            found.append(index)
    if len(found) < wanted:  # rounding left the last point just out of reach
        found.append(next(index for index in reversed(uncertain) if index not in found))
    return sorted(certain + found)
