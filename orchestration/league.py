"""Leagues: named players and checkpoints meet each other in seat-swapped pairs and are rated.

    LEAGUE/config.toml                          game, seed, pairs; the members so far
    LEAGUE/iterations/001/matches/...           the games of the first round, as a run keeps its stages
    LEAGUE/ratings.json                         ratings of all rounds together

1. A round plays the meetings that are still owed: calling again with more members plays theirs against everybody and
   repeats nothing; calling again after a kill finishes the round.
2. A game's course depends on (seed, the two names, number of the pair) and nothing else. Both games of a pair have the
   same seed.
3. Members are named as opponents are (`envs/opponents.py`), frozen agents among them: `agent(runs/a,iteration=3)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from rich.table import Table

from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.envs.random import Rng, derive_seed
from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_json_atomic
from nlrl.orchestration.config import RolloutConfig, to_toml
from nlrl.orchestration.frozen import agent_maker, open_frozen, sources, unopened
from nlrl.orchestration.league_config import different
from nlrl.orchestration.progress import progress
from nlrl.orchestration.ratings import Meeting, Rating, rate
from nlrl.orchestration.records import record_key
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.section import Section
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.statistics import Interval

NAME = "matches"
RATINGS_FILE = "ratings.json"
AT_ONCE = 512
POINTS = {"win": 1.0, "draw": 0.5, "loss": 0.0}


class LeagueConfig(Section):
    """A league."""

    game: str = "tictactoe"
    """The game's name, with its parameters in brackets."""
    members: tuple[str, ...] = Field(min_length=2)
    """Names of opponents; more may be added when a league goes on."""
    pairs: int = Field(default=50, gt=0)
    """Seat-swapped pairs of games between each two members."""
    seed: int = Field(default=0, ge=0)
    samples: int = Field(default=8, gt=0)
    """Answers kept for a state of an agent that samples."""
    anchor: str | None = None
    """The member whose rating is 0; by default the average is."""

    @field_validator("members")
    @classmethod
    def _different(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        return different(members)


@dataclass(slots=True)
class Match:
    """One game on its way."""

    key: str
    players: tuple[str, str]
    """By seat."""
    pair: int
    seed: int
    state: Any
    rng: Rng
    actions: list[int] = field(default_factory=list)
    forfeited: int | None = None
    """The seat that gave no legal move."""


def run_league(config: LeagueConfig, out: str | Path) -> list[Rating]:
    """Plays what is owed and rates everybody; returns the ratings, the strongest first.

    Raises:
        NLRLError: a member is unknown or cannot be opened, the game is for one player, another league is in the folder.
    """
    game = make_from_spec(config.game)
    _check(config, game)
    values = config.model_dump(mode="json", exclude_none=True)
    folder = RunFolder.open(out, values, to_toml(config), ignore=("members", "anchor"))
    try:
        known = set(_records(folder))
        owed = [match for match in matches(config, game) if match.key not in known]
        if owed or any(not stage.is_committed() for stage in folder.stages()):
            _round(config, game, folder, owed)
        ratings = rate(meetings(_records(folder).values()), config.anchor)
        write_ratings(folder.path / RATINGS_FILE, game, ratings)
    finally:
        folder.close()
    return ratings


def matches(config: LeagueConfig, game: Game[Any]) -> list[Match]:
    """All games of a league, those of a pair beside each other."""
    out = []
    for one, other in combinations(sorted(config.members), 2):
        for pair in range(config.pairs):
            seed = derive_seed("match", game.spec, config.seed, one, other, pair)
            for players in ((one, other), (other, one)):
                key = record_key("match", game.spec, config.seed, *players, pair)
                rng = Rng(seed)
                out.append(Match(key, players, pair, seed, game.initial_state(rng), rng))
    return out


def play_matches(game: Game[Any], found: Sequence[Match], players: Mapping[str, Opponent]) -> None:
    """Plays games to their ends, in place; each player is asked for all games that wait for it at once."""
    waiting = list(found)
    while waiting := [m for m in waiting if m.forfeited is None and not game.is_terminal(m.state)]:
        asked: dict[str, list[Match]] = {}
        for match in waiting:
            asked.setdefault(match.players[game.current_player(match.state)], []).append(match)
        for name, group in asked.items():
            moves = players[name].choose([match.state for match in group], [match.rng for match in group])
            for match, move in zip(group, moves, strict=True):
                if move is None:
                    match.forfeited = game.current_player(match.state)
                else:
                    match.actions.append(move)
                    match.state = game.apply(match.state, move, match.rng).state


def meetings(records: Iterable[Mapping[str, Any]]) -> list[Meeting]:
    """Both games of each pair as one, for ratings."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for record in records:
        first, second = record["players"]
        points = POINTS[record["result"]]
        one, other = sorted((first, second))
        found.setdefault((one, other, record["pair"]), []).append(points if first == one else 1.0 - points)
    return [Meeting(one, other, sum(points), len(points)) for (one, other, _), points in sorted(found.items())]


def write_ratings(path: Path, game: Game[Any], ratings: Sequence[Rating]) -> None:
    """Saves the ratings of a league."""
    rows = [{"name": rating.name} | figures(rating) for rating in ratings]
    write_json_atomic(path, {"game": game.spec, "ratings": rows})


def read_ratings(path: Path) -> list[Rating]:
    """What `write_ratings` wrote.

    Raises:
        NLRLError: no such file, or something else stands in it.
    """
    try:
        rows = json.loads(path.read_bytes())["ratings"]
        return [Rating(r["name"], r["rating"], Interval(r["low"], r["high"]), r["games"], r["score"]) for r in rows]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise NLRLError(f"{path}: no ratings of a league ({error}); delete it and rate again") from None


def table(ratings: Sequence[Rating], title: str) -> Table:
    """Ratings for people."""
    shown = Table(title=title)
    for header in ("player", "rating", "95 % interval", "score", "games"):
        shown.add_column(header, justify="left" if header == "player" else "right")
    for row in ratings:
        interval = f"{row.interval.low:+.0f} to {row.interval.high:+.0f}"
        shown.add_row(row.name, f"{row.rating:+.0f}", interval, f"{row.score:.3f}", str(row.games))
    return shown


def _check(config: LeagueConfig, game: Game[Any]) -> None:
    """Refuses before a model is opened."""
    if game.num_players != 2:
        raise NLRLError(f"game: a league is for games for two; {game.spec} is for {game.num_players}")
    if config.anchor is not None and config.anchor not in config.members:
        raise NLRLError(f"anchor: '{config.anchor}' is not a member; they are {', '.join(config.members)}")
    for name in config.members:
        try:
            make_opponent(name, game, unopened(game, _rollout(config), config.seed))
        except NLRLError as error:
            raise NLRLError(f"members: {error}") from None


def _rollout(config: LeagueConfig) -> RolloutConfig:
    return RolloutConfig(samples_per_state=config.samples, samples_at_start=config.samples)


def _players(config: LeagueConfig, game: Game[Any], names: set[str]) -> dict[str, Opponent]:
    opened = {source: open_frozen(source) for source in sources(names)}
    agents = agent_maker(opened.__getitem__, _rollout(config), config.seed)
    return {name: make_opponent(name, game, agents) for name in sorted(names)}


def _records(folder: RunFolder) -> dict[str, dict[str, Any]]:
    return {record["key"]: record for stage in folder.stages() for record in stage.records()}


def _round(config: LeagueConfig, game: Game[Any], folder: RunFolder, owed: list[Match]) -> None:
    committed = [stage.iteration for stage in folder.stages() if stage.is_committed()]
    stage = folder.stage(max(committed, default=0) + 1, NAME)
    players = _players(config, game, {name for match in owed for name in match.players})
    with stage.writer("games") as writer, progress(f"league: {len(players)} players", len(owed)) as bar:
        for group in chunks(owed, AT_ONCE):
            writer.write_many(played(game, group, players))
            writer.flush()
            bar.advance(len(group))
    met = [record["players"] for record in stage.records()]
    stage.commit({"games": len(met), "players": len({name for names in met for name in names})})


def played(game: Game[Any], group: Sequence[Match], players: Mapping[str, Opponent]) -> list[dict[str, Any]]:
    """The records of games, which are played now."""
    starts = [game.to_text(match.state) for match in group]
    play_matches(game, group, players)
    return [_record(game, match, start) for match, start in zip(group, starts, strict=True)]


def _record(game: Game[Any], match: Match, start: str) -> dict[str, Any]:
    value = game.returns(match.state)[0] if match.forfeited is None else 1.0 if match.forfeited else -1.0
    return {
        "schema": 1,
        "kind": "match",
        "key": match.key,
        "game": game.spec,
        "players": list(match.players),
        "pair": match.pair,
        "seed": match.seed,
        "start": start,
        "actions": match.actions,
        "result": "win" if value > 0 else "loss" if value < 0 else "draw",
        "forfeited": match.forfeited,
    }


def figures(rating: Rating) -> dict[str, Any]:
    """A rating in numbers."""
    return {
        "rating": round(rating.rating, 2),
        "low": round(rating.interval.low, 2),
        "high": round(rating.interval.high, 2),
        "games": rating.games,
        "score": round(rating.score, 6),
    }
