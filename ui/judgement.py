"""Judges moves by what they cost against best play, in units of verdicts (a win is +1, a loss -1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nlrl.envs.game import Game
from nlrl.ui.exact import Exact

BEST, GOOD, INACCURACY, MISTAKE, BLUNDER, ILLEGAL = "best", "good", "inaccuracy", "mistake", "blunder", "no legal move"
BOUNDS = ((0.3, BLUNDER), (0.2, MISTAKE), (0.1, INACCURACY))
"""Least regret of each, from the worst down; what costs less is good, what costs nothing is best."""
GLYPHS = {BEST: "★", GOOD: "", INACCURACY: "?!", MISTAKE: "?", BLUNDER: "??", ILLEGAL: "✗"}
"""As in annotated games: shape, not colour, tells them apart."""
ROUNDING = 1e-6


class Judgement(NamedTuple):
    """What a move cost."""

    label: str
    regret: float | None
    """None for a reply that named no legal move: no value says what that is worth."""
    best: tuple[str, ...]
    """The moves that were best, as people write them."""

    @property
    def sentence(self) -> str:
        """`Blunder: b2c3 was best.`"""
        if self.label == BEST:
            return "Best."
        word = self.label.capitalize()
        if not self.best:
            return f"{word}."
        *others, last = self.best
        names = f"{', '.join(others)} and {last} were" if others else f"{last} was"
        return f"{word}: {names} best."


def judge(game: Game[Any], state: Any, action: int | None, exact: Exact) -> Judgement | None:
    """What a move cost; None where that is not known.

    Args:
        action: None for a reply that named no legal move.
    """
    best = tuple(game.action_text(state, one) for one in exact.best)
    if action is None:
        return Judgement(ILLEGAL, None, best)
    value = exact.q.get(action)
    if value is None or exact.value is None:
        return None
    regret = max(0.0, exact.value - value)
    return Judgement(label_of(regret), regret, best)


def label_of(regret: float) -> str:
    """The word for a regret."""
    if regret <= ROUNDING:
        return BEST
    return next((label for bound, label in BOUNDS if regret >= bound - ROUNDING), GOOD)


class Accuracy(NamedTuple):
    """How one player moved, as far as it is known."""

    judged: int
    best: float | None
    """Share of the judged moves that cost nothing; None where none was judged."""
    regret: float | None
    """Mean."""
    counts: dict[str, int]
    """Moves by label."""


def accuracy(judgements: Iterable[Judgement | None]) -> Accuracy:
    """Of one player's moves. A reply without a legal move counts as not best; its regret is not known."""
    found = [one for one in judgements if one is not None]
    regrets = [one.regret for one in found if one.regret is not None]
    counts = Counter(one.label for one in found)
    share = counts[BEST] / len(found) if found else None
    return Accuracy(len(found), share, sum(regrets) / len(regrets) if regrets else None, dict(counts))


def next_blunder(judgements: Sequence[Judgement | None], ply: int) -> int | None:
    """The ply of the next blunder after `ply`; after the last one the first again; None where there is none."""
    plies = [at for at, one in enumerate(judgements) if one is not None and one.label in (BLUNDER, ILLEGAL)]
    return next((at for at in plies if at > ply), plies[0] if plies else None)
