"""Sets of positions from games of given players: without doubles, split once into what is held out and what is trained
on (arXiv 2411.14251, appendix C.2.2).

1. Every ordered pair of the players plays equally many games; each position in which there was a move to make is taken
   once. Players are named as opponents are (`nlrl.envs.opponents`), so no language is needed.
2. All positions are shuffled with `split_seed`; the first `held_out` are held out, the others are for training. A
   training set of n positions is the first n of those, so smaller ones are parts of larger ones.
3. A set is kept in a folder, as one file named by a hash of its description: equal descriptions are equal sets, on
   every machine. What has been made is read back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_json_atomic
from nlrl.orchestration.section import Section

FOLDER = "state_sets"
_FORMAT = 1


def mcts_grid(simulations: Sequence[int], rollouts: Sequence[int]) -> tuple[str, ...]:
    """The names of search players of many strengths."""
    return tuple(f"mcts({s},{r})" for s, r in product(simulations, rollouts))


PAPER_PLAYERS = mcts_grid((2, 10, 100, 1000), (1, 10, 100))
"""Those of the paper's code; its 144 pairs played 300 games each."""


class StateSetConfig(Section):
    """A set of positions."""

    players: tuple[str, ...] = mcts_grid((2, 10, 100), (1, 10))
    """Who plays: opponents by name, each against each (and itself) in both seats."""
    games_per_pair: int = Field(default=200, gt=0)
    """Games of each ordered pair."""
    seed: int = Field(default=0, ge=0)
    """Of the games."""
    held_out: int = Field(default=3000, ge=0)
    """Positions that are never trained on."""
    split_seed: int = Field(default=42, ge=0)
    """Decides which."""
    train: int | None = Field(default=None, gt=0)
    """Positions to train on; all there are if not given. The paper's subsets: 400, 2000, 10000, 45000."""


class StateSet(NamedTuple):
    """Positions of one game; none is terminal."""

    game: Game[Any]
    held_out: tuple[Any, ...]
    train: tuple[Any, ...]
    games: int
    """Played for it."""
    plies: int
    """Moves in them."""
    path: Path
    """The file."""


def state_set(spec: str, config: StateSetConfig, folder: Path, workers: int = 1) -> StateSet:
    """Reads a set from `folder/state_sets`, or makes it and keeps it there.

    Args:
        workers: processes that play; the set does not depend on them.

    Raises:
        NLRLError: a player is unknown, the games had too few positions for the split, or the file is damaged.
    """
    game = make_from_spec(spec)
    for name in config.players:
        make_opponent(name, game)  # refused before anything is played
    path = folder / FOLDER / f"{set_hash(game.spec, config)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, _played(game, config, workers))
    return _split(game, config, _read(path), path)


def set_hash(spec: str, config: StateSetConfig) -> str:
    """Sixteen hexadecimal digits that name the games of a set. How they are split is not part of it."""
    return hashlib.sha256(json.dumps(_description(spec, config), sort_keys=True).encode()).hexdigest()[:16]


def exact_values(game: Game[Any], states: Sequence[Any]) -> list[float]:
    """The value of each state for its player to move, under perfect play.

    Raises:
        NLRLError: the game has no oracle, or a position is too hard for it.
    """
    oracle = oracle_for(game)
    return [oracle.value(state) for state in states]


def _description(spec: str, config: StateSetConfig) -> dict[str, Any]:
    played = {"players": list(config.players), "games_per_pair": config.games_per_pair, "seed": config.seed}
    return {"format": _FORMAT, "game": spec, **played}


# -- making a set ------------------------------------------------------------------------------------------------------
def _played(game: Game[Any], config: StateSetConfig, workers: int) -> dict[str, Any]:
    """What the file holds: the positions as text, in the order in which they first came up."""
    seats = range(len(config.players))
    pairs = list(product(seats, seats))
    play = partial(_play_pair, game.spec, config)
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            results = list(pool.map(play, pairs))
    else:
        results = [play(pair) for pair in pairs]
    states = dict.fromkeys(chain.from_iterable(found for found, _ in results))
    counts = {"games": config.games_per_pair * len(pairs), "plies": sum(plies for _, plies in results)}
    return {"description": _description(game.spec, config), **counts, "states": list(states)}


def _play_pair(spec: str, config: StateSetConfig, pair: tuple[int, int]) -> tuple[list[str], int]:
    """The positions of one pair's games, and how many moves were made in them."""
    game = make_from_spec(spec)
    players = [make_opponent(config.players[index], game) for index in pair]
    found: dict[Any, None] = {}
    plies = 0
    for number in range(config.games_per_pair):
        rng = Rng("state set", config.seed, *pair, number)
        for state in _positions(game, players, rng):
            found[state] = None
            plies += 1
    return [game.to_text(state) for state in found], plies


def _positions(game: Game[Any], players: Sequence[Opponent], rng: Rng) -> Iterator[Any]:
    """The positions of one game in which somebody has to move."""
    state = game.initial_state(rng)
    for _ in range(game.max_length):
        if game.is_terminal(state):
            return
        yield state
        (move,) = players[game.current_player(state)].choose([state], [rng])
        if move is None:  # a forfeit
            return
        state = game.apply(state, move, rng).state


# -- reading it --------------------------------------------------------------------------------------------------------
def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        return {key: content[key] for key in ("states", "games", "plies")}
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise NLRLError(f"{path}: no readable set of positions ({error}); delete it to make it again") from error


def _split(game: Game[Any], config: StateSetConfig, content: dict[str, Any], path: Path) -> StateSet:
    texts = Rng("split", config.split_seed).shuffled(content["states"])
    held_out, train = texts[: config.held_out], texts[config.held_out :]
    wanted = config.train or 1
    if len(held_out) < config.held_out or len(train) < wanted:
        raise NLRLError(
            f"{game.spec}: {content['games']:,} games had {len(texts):,} different positions, which is not enough to "
            f"hold out {config.held_out:,} and train on {wanted:,}; raise games_per_pair or lower the numbers"
        )
    read = game.parse_text
    chosen = train if config.train is None else train[: config.train]
    parts = (tuple(map(read, held_out)), tuple(map(read, chosen)))
    return StateSet(game, *parts, content["games"], content["plies"], path)
