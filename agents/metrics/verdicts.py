"""Verdicts of texts against exact values, beside baselines that read no text.

A verdict is a number in [-1, 1] from the mover's view, or None where an answer could not be read. Failures stay in
every figure: a method that answers only what it finds easy must not look better for it.

| figure | a failure counts as |
|---|---|
| `sign_accuracy`, `side_accuracy`, `order_accuracy` | wrong |
| `mae`, `brier`, `rank_correlation` | the constant baseline, the mean of the exact values: it is worth none |
| `ece`, `bias`, `positivity_bias`, `covered_mae` | nothing; they are about the verdicts there are |

Signs are three-way: win, about even, loss, with |value| <= `EVEN` as even; sides are two-way, even values left out. The
Brier score reads v as the probability
(v + 1) / 2 of winning a point and is the mean squared difference from the exact (V + 1) / 2 (Brier 1950).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlrl.agents.metrics.calibration import (
    Bin,
    ece,
    order_counts,
    rank_correlation,
    reliability_bins,
    sign_accuracy,
)
from nlrl.envs.game import Game

EVEN = 0.1
"""Values up to this size are even, for the sign accuracy."""
ORDER_GAP = 0.1
"""Actions whose exact values differ by less are no pair of the order accuracy."""
MUST_BLOCK = -0.5
"""The one-step value of a position where some moves, not all, let the opponent win at once."""


@dataclass(frozen=True, slots=True)
class VerdictScores:
    """Figures of one method. NaN where there is nothing to measure (no examples, no pairs, nothing covered)."""

    count: int
    coverage: float
    """Share of examples with a readable verdict."""
    sign_accuracy: float
    side_accuracy: float
    """Of examples whose exact value is not even, the share whose verdict is on the right side of 0."""
    mae: float
    brier: float
    covered_mae: float
    ece: float
    """Expected calibration error of the probabilities (v + 1) / 2, in ten bins."""
    order_accuracy: float
    """Share of pairs of one group in the right order; equal verdicts count half."""
    pairs: int
    rank_correlation: float
    """Spearman's, over all examples."""
    bias: float
    """Mean of verdict - exact value."""
    positivity_bias: float
    """Share of verdicts above `EVEN`, less the share of exact values above it: above 0, the texts flatter the mover."""


class VerdictTable:
    """Verdicts beside exact values, one row an example; see `score_verdicts`."""

    def __init__(
        self, verdicts: Sequence[float | None], exact: Sequence[float], groups: Sequence[Hashable] | None = None
    ):
        self.truth = _checked(exact, "exact")
        self.said = _checked([np.nan if verdict is None else verdict for verdict in verdicts], "verdicts")
        if len(self.said) != len(self.truth) or (groups is not None and len(groups) != len(self.truth)):
            raise ValueError(
                f"{len(self.said)} verdicts, {len(self.truth)} exact values, "
                f"{len(self.truth if groups is None else groups)} groups: not the same"
            )
        self.covered = ~np.isnan(self.said)
        self.filled = np.where(self.covered, self.said, _mean(self.truth))
        self._right, self._pairs = order_counts(self.said, self.truth, groups or (), ORDER_GAP - 1e-9)

    def scores(self, rows: NDArray[np.int64] | None = None) -> VerdictScores:
        """The figures of all examples, or of some: `rows` are indices and may repeat."""
        rows = np.arange(len(self.truth)) if rows is None else rows
        said, truth, filled, covered = (a[rows] for a in (self.said, self.truth, self.filled, self.covered))
        pairs = self._pairs[rows].sum()
        return VerdictScores(
            count=len(truth),
            coverage=_mean(covered),
            sign_accuracy=_mean(covered & (_sign(filled) == _sign(truth))),
            side_accuracy=sign_accuracy(np.where(covered, said, -truth), truth, EVEN),
            mae=_mean(np.abs(filled - truth)),
            brier=_mean(((filled - truth) / 2) ** 2),
            covered_mae=_mean(np.abs(said - truth)[covered]),
            ece=ece((said[covered] + 1) / 2, (truth[covered] + 1) / 2),
            order_accuracy=float(self._right[rows].sum() / pairs) if pairs else float("nan"),
            pairs=int(pairs),
            rank_correlation=rank_correlation(filled, truth),
            bias=_mean((said - truth)[covered]),
            positivity_bias=_mean(said[covered] > EVEN) - _mean(truth[covered] > EVEN),
        )

    def reliability(self) -> list[Bin]:
        """The bars of the reliability diagram, of the verdicts there are, as probabilities (v + 1) / 2."""
        return reliability_bins((self.said[self.covered] + 1) / 2, (self.truth[self.covered] + 1) / 2)


def score_verdicts(
    verdicts: Sequence[float | None], exact: Sequence[float], groups: Sequence[Hashable] | None = None
) -> VerdictScores:
    """Compares verdicts with exact values.

    Args:
        verdicts: (n,) numbers in [-1, 1]; None for failures.
        exact: (n,) exact values in [-1, 1], from the same view.
        groups: (n,) what an example's actions are compared within, usually its state. None: no pairs.

    Raises:
        ValueError: lengths differ, or a number is not in [-1, 1].
    """
    return VerdictTable(verdicts, exact, groups).scores()


def compare_verdicts(
    verdicts: Sequence[float | None],
    exact: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    baselines: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, VerdictScores]:
    """The scores of the texts ("text"), of the mean of the exact values ("constant") and of each named baseline.

    The constant knows the mean of the very examples it is scored on, which no method does: it is the bar to clear.
    """
    rows: dict[str, Sequence[float | None]] = {"text": verdicts, "constant": [_mean(np.asarray(exact))] * len(exact)}
    rows |= baselines or {}
    return {name: score_verdicts(row, exact, groups) for name, row in rows.items()}


def one_step_value(game: Game, state: Any) -> float:
    """A value of a position, for its player to move, that reads no further than one reply.

    1 where a move wins at once; -1 where every move lets the opponent win at once; `MUST_BLOCK` where some do, so that
    a threat must be met; 0 elsewhere. A chance move wins if it always does.

    Raises:
        ValueError: not a two-player game, or the game is over.
    """
    if game.num_players != 2 or game.is_terminal(state):
        raise ValueError(f"{game.spec}: the one-step baseline is for two players in a game that is not over")
    actions = game.legal_actions(state)
    if any(_wins_at_once(game, state, action) for action in actions):
        return 1.0
    refuted = [_can_win_at_once(game, step.state) for action in actions for step in game.transitions(state, action)]
    if not any(refuted):
        return 0.0
    return -1.0 if all(refuted) else MUST_BLOCK


def one_step_action_value(game: Game, state: Any, action: int) -> float:
    """`one_step_value` of what follows an action, for the player who moves: expectation over chance.

    Raises:
        ValueError: not a two-player game, or the action is illegal.
    """
    player, value = game.current_player(state), 0.0
    for step in game.transitions(state, action):
        if game.is_terminal(step.state):
            outcome = game.returns(step.state)[player]
        else:
            outcome = one_step_value(game, step.state)
            outcome = outcome if game.current_player(step.state) == player else -outcome
        value += step.probability * outcome
    return value


def _wins_at_once(game: Game, state: Any, action: int) -> bool:
    player = game.current_player(state)
    steps = game.transitions(state, action)
    return all(game.is_terminal(step.state) and game.returns(step.state)[player] > 0 for step in steps)


def _can_win_at_once(game: Game, state: Any) -> bool:
    return any(_wins_at_once(game, state, action) for action in game.legal_actions(state))


def _checked(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    outside = np.flatnonzero(np.abs(array) > 1 + 1e-9)
    if outside.size or (name == "exact" and np.isnan(array).any()):
        raise ValueError(
            f"{name}: every value must be a number in [-1, 1]" + "".join(f"; {array[i]}" for i in outside[:1])
        )
    return array


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _sign(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) <= EVEN, 0.0, np.sign(values))
