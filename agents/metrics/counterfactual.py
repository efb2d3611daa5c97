"""Does I choose because of the evaluations it is given?

1. In a prompt of I the evaluations of two candidates are exchanged: of the best one and of another. An I that reads
   them now chooses the other: it *follows*. An I that has an opinion of its own, or reads the board alone, *stays*.
2. The null: the candidates in another order, each with its own evaluation. Nothing has changed, so the choice must not.
3. Only prompts in which one candidate is strictly the best, and I chose it at first, can say anything; what I chose
   elsewhere is counted as `first_best`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from nlrl.agents.roles import CandidatesInput
from nlrl.envs.random import Rng

GAP = 0.1
"""How much worse the other candidate's verdict must be than the best one's."""


class Swap(NamedTuple):
    """A prompt of I as it was, with two evaluations exchanged, and in another order."""

    given: CandidatesInput
    swapped: CandidatesInput
    reordered: CandidatesInput
    best: int
    other: int


class Choices(NamedTuple):
    """What I chose in each of the three; None where its answer could not be read."""

    given: int | None
    swapped: int | None
    reordered: int | None


class SwapScores(NamedTuple):
    """Counts of prompts."""

    prompts: int
    first_best: int
    """I chose the best candidate at first; the others are about these."""
    follows: int
    """Exchanged: it chose the candidate that now has the best evaluation."""
    stays: int
    """Exchanged: it chose the same candidate as before."""
    elsewhere: int
    """Exchanged: it chose a third one."""
    unread: int
    """Exchanged: its answer could not be read."""
    unmoved: int
    """Reordered: it chose the same candidate as before, as it must."""


def make_swap(given: CandidatesInput, rng: Rng) -> Swap | None:
    """The three prompts; None where no candidate is strictly the best, or none is worse by `GAP`."""
    ranked = sorted(given.candidates, key=lambda candidate: -candidate[1].verdict)
    if len(ranked) < 2 or ranked[0][1].verdict <= ranked[1][1].verdict:
        return None
    best, top = ranked[0]
    worse = [action for action, evaluation in ranked[1:] if top.verdict - evaluation.verdict >= GAP - 1e-9]
    if not worse:
        return None
    other, said = rng.choice(worse), dict(given.candidates)
    said[best], said[other] = said[other], said[best]
    swapped = tuple((action, said[action]) for action, _ in given.candidates)
    return Swap(
        given, replace(given, candidates=swapped), replace(given, candidates=_reordered(given, rng)), best, other
    )


def choose_all(swaps: Sequence[Swap], choose: Callable[[list[CandidatesInput]], Sequence[int | None]]) -> list[Choices]:
    """Asks I all prompts, in one batch."""
    prompts = [prompt for swap in swaps for prompt in (swap.given, swap.swapped, swap.reordered)]
    answers = iter(choose(prompts))
    return [Choices(next(answers), next(answers), next(answers)) for _ in swaps]


def score_swaps(swaps: Sequence[Swap], choices: Iterable[Choices]) -> SwapScores:
    """Counts what I did."""
    pairs = list(zip(swaps, choices, strict=True))
    about = [(swap, chosen) for swap, chosen in pairs if chosen.given == swap.best]
    follows = sum(chosen.swapped == swap.other for swap, chosen in about)
    stays = sum(chosen.swapped == swap.best for swap, chosen in about)
    unread = sum(chosen.swapped is None for _, chosen in about)
    return SwapScores(
        prompts=len(pairs),
        first_best=len(about),
        follows=follows,
        stays=stays,
        elsewhere=len(about) - follows - stays - unread,
        unread=unread,
        unmoved=sum(chosen.reordered == chosen.given for _, chosen in about),
    )


def _reordered(given: CandidatesInput, rng: Rng) -> tuple:
    """The candidates in another order than they are in."""
    order = list(given.candidates)
    while order == list(given.candidates):
        order = rng.shuffled(order)
    return tuple(order)
