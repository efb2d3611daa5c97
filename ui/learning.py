"""What the Learning page draws: curves from metrics, the optimum beside them, costs and reliability from manifests.

1. A *point* is one number at one iteration, with the ends of its 95% interval where the run measured one.
2. Metrics are read by their names' shapes, so a figure that a stage adds later is drawn without a change here.
3. The optimum against an opponent is the most games that anybody can win from it, by the game's table; it is worked out
   once per process, and is unknown for games too large for a table and opponents that are not exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.envs import make, make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import TabularOracle, oracle_for
from nlrl.errors import NLRLError
from nlrl.orchestration.exact import is_small
from nlrl.orchestration.run_folder import RunFolder
from nlrl.ui.reading import game_spec

SMALL = 20_000
"""Positions of a game whose optimum is worked out: a second or two."""

Metrics = Sequence[Mapping[str, Any]]


class Point(NamedTuple):
    """One number of one curve."""

    iteration: int
    curve: str
    value: float
    low: float
    high: float
    """Ends of the 95% interval; both equal `value` where there is none."""


class Spent(NamedTuple):
    """What one stage of one iteration cost."""

    iteration: int
    stage: str
    unit: str
    """"seconds", "prompt tokens", "generated tokens", "trained tokens", "environment steps"."""
    amount: float


# -- curves ------------------------------------------------------------------------------------------------------------
_FAILURES = {
    r"evaluation/turns/failed_first": "greedy answers unread or illegal at first",
    r"evaluation/turns/forfeits": "greedy answers that forfeit",
    r"rollout/failures_per_turn": "failures a turn, rollout",
    r"evaluation/sampled/(\w+)/(.+)/forfeit/share": "forfeits, {0} against {1}",
}
_QUALITY = {
    r"evaluation/texts/against_(policy|optimal)/text/(brier|ece|mae)": "{1} against {0}",
}
_EXPLOITABILITY = {r"evaluation/exact/exploitability": "exploitability", r"(.+)/nash_conv": "NashConv"}
_RATINGS = {r"league/(agent)/rating": "{0}", r"league/ratings/(.+)/rating": "{0}"}
_CHECKPOINT = "checkpoint("
MOST_RATED = 7
"""Members whose ratings are drawn together with the checkpoints'; of more, checkpoints are left out."""


def failures(metrics: Metrics) -> list[Point]:
    """Answers that could not be used, and games forfeited; opponents against whom there never was one are left out."""
    found = points(metrics, _FAILURES)
    happened = {point.curve for point in found if point.value}
    return [point for point in found if point.curve in happened or not point.curve.startswith("forfeits, ")]


def exploitability(metrics: Metrics) -> list[Point]:
    """How much a best-responding opponent wins from the greedy actor."""
    return points(metrics, _EXPLOITABILITY)


def verdict_errors(metrics: Metrics) -> list[Point]:
    """Brier score, calibration error and mean error of the critic's verdicts."""
    return points(metrics, _QUALITY)


def ratings(metrics: Metrics) -> list[Point]:
    """Ratings of a league's members, with their intervals: the agent's first."""
    found = points(metrics, _RATINGS)
    few = len({point.curve for point in found}) <= MOST_RATED
    return [point for point in found if few or not point.curve.startswith(_CHECKPOINT)]


def points(metrics: Metrics, names: Mapping[str, str]) -> list[Point]:
    """The numbers whose names fit one of `names`: pattern -> the curve's name, in which `{0}` is the first group.

    An interval is taken from the numbers called `low` and `high` beside it.
    """
    return [
        Point(entry["step"], *found)
        for pattern, curve in names.items()
        for entry in metrics
        for found in _fitting(entry["metrics"], re.compile(pattern), curve)
    ]


def _fitting(
    numbers: Mapping[str, Any], pattern: re.Pattern[str], curve: str
) -> Iterator[tuple[str, float, float, float]]:
    for name, value in numbers.items():
        if (match := pattern.fullmatch(name)) and _is_number(value):
            beside = name.rpartition("/")[0]
            low, high = (numbers.get(f"{beside}/{end}") for end in ("low", "high"))
            has_interval = name.endswith(("/share", "/rating")) and _is_number(low) and _is_number(high)
            ends = (float(low), float(high)) if has_interval else (float(value), float(value))  # type: ignore[arg-type]
            yield curve.format(*match.groups()), float(value), *ends


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- the optimum -------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=256)
def optimum(game: str, opponent: str) -> float | None:
    """The most games that can be won against an opponent, half of them in each seat; None where it is not known."""
    try:
        rules = make_from_spec(game)
        if rules.num_players != 2 or not is_small(game, SMALL):
            return None
        oracle, theirs = oracle_for(rules), make_opponent(opponent, rules)
        if not isinstance(oracle, TabularOracle) or not theirs.exact:
            return None
        seats = range(rules.num_players)
        return sum(oracle.best_response(theirs, seat, "wins").values.at_start(seat) for seat in seats) / len(seats)
    except (NLRLError, ValueError, LookupError):
        return None


def spec_of(run: Path) -> str | None:
    """The spec of the run's game; None where its config names none that is known here."""
    try:
        found = game_spec(run)
        return make(found[0], **found[1]).spec if found else None
    except (NLRLError, TypeError, ValueError):
        return None


def optima(run: Path, opponents: Sequence[str]) -> dict[str, float]:
    """The optimum against each opponent for which it is known."""
    spec = spec_of(run)
    found = {name: optimum(spec, name) for name in opponents} if spec else {}
    return {name: value for name, value in found.items() if value is not None}


# -- costs -------------------------------------------------------------------------------------------------------------
def spent(run: Path, metrics: Metrics) -> list[Spent]:
    """Tokens and environment steps by committed stage, and the seconds that each took."""
    rows = [
        Spent(entry["step"], name.removeprefix("seconds/"), "seconds", float(value))
        for entry in metrics
        for name, value in entry["metrics"].items()
        if name.startswith("seconds/") and _is_number(value)
    ]
    return rows + list(_budgets(run))


def _budgets(run: Path) -> Iterator[Spent]:
    for stage in RunFolder(run).stages():
        for unit, amount in _manifest_metrics(stage).get("budget", {}).items():
            if _is_number(amount) and amount:
                yield Spent(stage.iteration, stage.name, unit.replace("_", " "), float(amount))


def _manifest_metrics(stage: Any) -> dict[str, Any]:
    """Of a committed stage; empty where there is nothing that can be read."""
    try:
        found = stage.load()["metrics"] if stage.is_committed() else {}
        return found if isinstance(found, dict) else {}
    except (NLRLError, KeyError):
        return {}


def reliability(run: Path) -> dict[int, list[dict[str, Any]]]:
    """The bars of the reliability diagram that each evaluation kept, by iteration."""
    out: dict[int, list[dict[str, Any]]] = {}
    for stage in RunFolder(run).stages():
        if stage.name == "evaluation":
            texts = _manifest_metrics(stage).get("texts")
            bars = texts.get("reliability") if isinstance(texts, dict) else None
            if isinstance(bars, list) and bars:
                out[stage.iteration] = [bar for bar in bars if isinstance(bar, dict) and bar.get("count")]
    return out


def game_named(run: Path) -> Game[Any] | None:
    """The run's game; None where its config names none that is known here."""
    spec = spec_of(run)
    return make_from_spec(spec) if spec else None
