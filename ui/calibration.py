"""Are the critic's verdicts true, and when in a game? Read from the records of one iteration.

What the critic said of the candidates of each choice (`improvement` records) is compared with exact values: of the
policy that it judges, where the run tabulated that policy and the game is small, otherwise of best play.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.agents.metrics.verdicts import VerdictTable
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.exact import action_values, exact_play, is_small, optimal_values
from nlrl.orchestration.players import SELF
from nlrl.orchestration.records import Record
from nlrl.orchestration.run_folder import RunFolder
from nlrl.ui.learning import SMALL, game_named
from nlrl.ui.library import read_config
from nlrl.ui.reading import read_stage
from nlrl.ui.said import candidates_of

MOST = 4000
"""Verdicts that are compared, at most."""
PHASES = ("opening", "middle", "end")
"""Thirds of the longest game that the records know."""


class Judged(NamedTuple):
    """One verdict beside the truth, both in [-1, 1] from the mover's view."""

    ply: int
    phase: str
    verdict: float
    exact: float


class PhaseScore(NamedTuple):
    """How true verdicts are in one phase of the game."""

    phase: str
    verdicts: int
    brier: float
    mae: float


class Calibration(NamedTuple):
    """Verdicts of one iteration beside the truth."""

    against: str
    """"policy" or "optimal"."""
    judged: list[Judged]

    @property
    def bars(self) -> list[dict[str, Any]]:
        """Of the reliability diagram, those that hold something: `calibration.Bin` as dicts."""
        table = VerdictTable([one.verdict for one in self.judged], [one.exact for one in self.judged])
        return [bar._asdict() for bar in table.reliability() if bar.count]

    @property
    def phases(self) -> list[PhaseScore]:
        """Brier score ((v - q) / 2)^2 and mean error by phase."""
        out = []
        for phase in PHASES:
            errors = [one.verdict - one.exact for one in self.judged if one.phase == phase]
            if errors:
                n = len(errors)
                out.append(PhaseScore(phase, n, sum((e / 2) ** 2 for e in errors) / n, sum(map(abs, errors)) / n))
        return out


def calibration(run: Path, iteration: int) -> Calibration | None:
    """The verdicts of an iteration; None where there are none, or nothing exact to compare them with.

    Raises:
        NLRLError: a record file is damaged before its last line.
    """
    game = game_named(run)
    said = list(_said(game, _records(run, iteration, "improvement")))[:MOST] if game else []
    if not game or not said:
        return None
    pairs = list(dict.fromkeys((state, action) for _, state, action, _ in said))
    against, exact = "policy", _policy_values(run, iteration, game, pairs)
    if not exact:
        against, exact = "optimal", optimal_values(game, dict.fromkeys(state for state, _ in pairs))
    longest = max(ply for ply, *_ in said) + 1
    judged = [
        Judged(ply, PHASES[min(3 * ply // longest, 2)], verdict, exact[state, action])
        for ply, state, action, verdict in said
        if (state, action) in exact
    ]
    return Calibration(against, judged) if judged else None


def _said(game: Game[Any], records: Sequence[Record]) -> list[tuple[int, Any, int, float]]:
    """(ply, state, action, verdict) of every candidate that can be read."""
    out = []
    for record in records:
        try:
            state = game.parse_text(record["state"])
            legal = set(game.legal_actions(state))
            ply = int(record.get("ply", 0))
        except (ValueError, KeyError, TypeError, IndexError):
            continue
        out += [(ply, state, one["action"], one["verdict"]) for one in candidates_of(record) if one["action"] in legal]
    return out


def _policy_values(
    run: Path, iteration: int, game: Game[Any], pairs: Sequence[tuple[Any, int]]
) -> dict[tuple[Any, int], float]:
    """Exact values of the run's tabulated policy against its opponents, of those pairs from which the table knows all
    that can follow; empty where something else is missing."""
    opponents = _opponents(run, game)
    if opponents is None or not is_small(game.spec, SMALL):
        return {}
    try:
        table = {game.parse_text(r["state"]): _moves(r["moves"]) for r in _records(run, iteration, "policy")}
        if game.num_players == 1:
            horizon = read_config(run).get("targets.horizon", "full")
            return action_values(game, table, [], pairs, horizon) if table else {}
    except (KeyError, ValueError, AttributeError, TypeError):
        return {}
    return _known_values(game, table, opponents, pairs) if table else {}


def _known_values(
    game: Game[Any],
    table: dict[Any, Counter[int | None]],
    opponents: Sequence[Opponent | None],
    pairs: Sequence[tuple[Any, int]],
) -> dict[tuple[Any, int], float]:
    plays = [[exact_play(game, table, seat, opponent) for opponent in opponents] for seat in range(game.num_players)]
    found = {}
    for state, action in pairs:
        try:
            values = [play.after(state, action).value for play in plays[game.current_player(state)]]
        except KeyError:
            continue  # the run tabulated its policy from a sample of positions on
        found[state, action] = sum(values) / len(values)
    return found


def _moves(counts: dict[str, int]) -> Counter[int | None]:
    return Counter({None if move == "forfeit" else int(move): n for move, n in counts.items()})


def _opponents(run: Path, game: Game[Any]) -> list[Opponent | None] | None:
    """The rollout's opponents, None among them for the policy itself; None if one of them is not exact."""
    if game.num_players == 1:
        return []
    names = read_config(run).get("rollout.opponents") or ["random"]
    try:
        found = [None if name == SELF else make_opponent(name, game) for name in names]
    except (NLRLError, AttributeError, TypeError):
        return None
    return found if all(opponent is None or opponent.exact for opponent in found) else None


def _records(run: Path, iteration: int, name: str) -> list[Record]:
    folder = RunFolder(run).stage(iteration, name).dir
    return [r for r in read_stage(folder) if r["kind"] == name] if folder.is_dir() else []
