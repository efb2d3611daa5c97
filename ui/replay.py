"""A recorded game, ply by ply: what the Replay page shows and an export writes. Nothing here knows Streamlit.

1. Ply p is the position after p moves together with the decision that was made there: its prompt, its candidates, its
   exact values and its judgement are all about that one board. The last ply is the end.
2. Values are told from the first player's view wherever plies are compared (gauges, charts), and from the mover's view
   wherever moves of one position are (tables, texts).
3. A record that cannot be replayed to its end is shown as far as it goes, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nlrl.agents.language import NO_MOVE
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration import timings
from nlrl.orchestration.lines import replay
from nlrl.orchestration.records import Record
from nlrl.orchestration.timings import TurnTiming
from nlrl.ui.exact import NODES, SECONDS, Exact, exact_values
from nlrl.ui.game_records import find_game, game_of, iteration_of, records_about, stage_folder
from nlrl.ui.judgement import Accuracy, Judgement, accuracy, judge, next_blunder
from nlrl.ui.said import NEAREST, Said, nearest, policy_of, said_about


@dataclass(frozen=True)
class Ply:
    """One position, and the decision made there."""

    number: int
    state: Any
    player: int
    """Whose move it is; -1 where the game is over."""
    action: int | None
    """What was played; None where nothing was (the end, or a reply that named no legal move)."""
    move: str
    """The same as people write it; empty where nothing was played."""
    turn: Mapping[str, Any] | None
    """What the record keeps of the answer; None for players that said nothing."""
    exact: Exact
    judgement: Judgement | None
    said: Mapping[str, Said]
    policy: Mapping[int, float]
    """The policy's probabilities here, where the run tabulated it."""
    records: Sequence[Record]
    """What the run's records hold about this position."""
    explored: bool = False
    """Whether the move was drawn at random (`rollout.explore`), so that it is nobody's merit or blunder."""


@dataclass(frozen=True)
class Replay:
    """A game."""

    game: Game[Any]
    record: Record
    plies: tuple[Ply, ...]
    problem: str = ""
    """Why the game is not shown to its end; empty if it is."""
    run: Path | None = None
    stage: str = ""

    @cached_property
    def states(self) -> tuple[Any, ...]:
        return tuple(ply.state for ply in self.plies)

    @cached_property
    def timings(self) -> Sequence[TurnTiming]:
        """How long its answers took, where that was kept."""
        folder = stage_folder(self.run, self.stage) if self.run is not None else None
        return timings.read(folder, str(self.record.get("key", ""))) if folder is not None else ()

    @property
    def judgements(self) -> list[Judgement | None]:
        return [ply.judgement for ply in self.plies]

    @property
    def reasons(self) -> list[str]:
        """Why exact values are missing, each reason once."""
        return list(dict.fromkeys(ply.exact.reason for ply in self.plies if ply.exact.reason))

    def last_move(self, ply: int) -> int | None:
        """The action that led to a ply's position."""
        return self.plies[ply - 1].action if ply else None

    def accuracy(self, player: int) -> Accuracy:
        """How a player moved, where it was asked."""
        return accuracy(ply.judgement for ply in self.plies if ply.player == player and not ply.explored)

    def next_blunder(self, ply: int) -> int | None:
        return next_blunder(self.judgements, ply)

    def exact_value(self, ply: int) -> float | None:
        """The exact value from the first player's view; at the end, what the game was worth."""
        one = self.plies[ply]
        if one.player < 0:
            return self._final_value(one.state)
        return self._first_view(one.exact.value, one.player)

    def said_value(self, ply: int, source: str = NEAREST) -> float | None:
        """The value that texts give a position, from the first player's view."""
        said = nearest(self.plies[ply].said, source)
        return None if said is None else self._first_view(said.verdict, self.plies[ply].player)

    def player_of(self, player: int) -> str:
        """Who played: `X (minimax)`."""
        if player < 0:
            return "nobody"
        who = who_plays(self.record, player)
        return f"{self.game.player_names[player]} ({who})" if who else self.game.player_names[player]

    def title(self, ply: int) -> str:
        """`Move 4, X (random): 7` or how the game ended."""
        one = self.plies[ply]
        if one.player < 0 or (one.action is None and one.judgement is None):
            return f"After {ply} moves: {self.problem or self.result}"
        drawn = ", drawn at random" if one.explored else ""
        return f"Move {ply + 1}, {self.player_of(one.player)}: {one.move or 'no legal move'}{drawn}"

    @property
    def result(self) -> str:
        """How the record says it ended, and for whom."""
        result, seat = str(self.record.get("result", "unknown")), self.record.get("seat", 0)
        of = self.game.player_names[seat] if isinstance(seat, int) and 0 <= seat < self.game.num_players else ""
        return f"{result} for {of}" if of and self.game.num_players > 1 else result

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _first_view(self, verdict: float | None, player: int) -> float | None:
        return None if verdict is None else (-verdict if player == 1 else verdict) + 0.0

    def _final_value(self, state: Any) -> float | None:
        if self.game.num_players == 1:
            return 1.0 if self.game.won(state, 0) else -1.0
        return max(-1.0, min(1.0, self.game.returns(state)[0]))


def who_plays(record: Record, player: int) -> str:
    """Who a record says sat there: "policy", "person", an opponent, a league's member; empty where it does not say."""
    players = record.get("players")
    if isinstance(players, list) and player < len(players):
        return str(players[player])
    if record.get("person") == player:
        return "person"
    if "seat" not in record:
        return ""
    return "policy" if record["seat"] == player else str(record.get("opponent", ""))


# -- loading -----------------------------------------------------------------------------------------------------------
def load_replay(run: Path, stage: str, key: str, seconds: float = SECONDS, nodes: int = NODES) -> Replay:
    """A game of a run, with all that its iteration's records say about its positions.

    Args:
        stage: as in links, `003/rollout`.
        seconds: at most, for exact values.

    Raises:
        NLRLError: there is no such stage or game, or the record is no game.
    """
    folder = stage_folder(run, stage)
    record = None if folder is None else find_game(folder, key)
    if record is None:
        raise NLRLError(f"there is no game {key!r} in stage {stage!r} of {run.name}")
    game = game_of(run, record)
    states, _, _ = _states(game, record)
    about = records_about(run, iteration_of(stage), {game.to_text(state) for state in states})
    return make_replay(game, record, about, run=run, stage=stage, seconds=seconds, nodes=nodes)


def make_replay(
    game: Game[Any],
    record: Record,
    about: Mapping[str, Sequence[Record]] | None = None,
    run: Path | None = None,
    stage: str = "",
    seconds: float = SECONDS,
    nodes: int = NODES,
) -> Replay:
    """A game from its record.

    Args:
        about: records about its positions, by position.

    Raises:
        NLRLError: the record is no game.
    """
    states, actions, problem = _states(game, record)
    exact = exact_values(game, states, seconds, nodes)
    turns, explored = _turns(record), record.get("explored")
    plies = tuple(
        _ply(
            game,
            at,
            state,
            actions,
            turns.get(at),
            exact[at],
            (about or {}).get(game.to_text(state), ()),
            at == len(states) - 1 and record.get("forfeited") is not None,
            isinstance(explored, list) and at in explored,
        )
        for at, state in enumerate(states)
    )
    return Replay(game, record, plies, problem, run, stage)


def _ply(
    game: Game[Any],
    number: int,
    state: Any,
    actions: Sequence[int],
    turn: Mapping[str, Any] | None,
    exact: Exact,
    records: Sequence[Record],
    forfeits: bool = False,
    explored: bool = False,
) -> Ply:
    played = number < len(actions)
    action = actions[number] if played and actions[number] != NO_MOVE else None
    player = game.current_player(state)
    failed = player >= 0 and action is None and (played or turn is not None or forfeits)
    judgement = judge(game, state, action, exact) if action is not None or failed else None
    move = "" if action is None else game.action_text(state, action)
    said = said_about(game, state, action, turn, records) if player >= 0 else {}
    policy = policy_of(records, game.legal_actions(state))
    return Ply(number, state, player, action, move, turn, exact, judgement, said, policy, records, explored)


def _states(game: Game[Any], record: Record) -> tuple[list[Any], list[int], str]:
    """The positions, the actions between them, and why not all are there."""
    start, actions, outcomes = record.get("start"), record.get("actions"), record.get("outcomes")
    if not isinstance(start, str) or not isinstance(actions, list):
        raise NLRLError("this record is no game: it has no start or no actions")
    try:
        states = [game.parse_text(start)]
    except (ValueError, IndexError) as error:
        raise NLRLError(f"the game's start cannot be read: {error}") from error
    for at, action in enumerate(actions):
        try:
            chance = None if outcomes is None else [outcomes[at]]
            states.append(replay(game, states[-1], [action], chance).end)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            return states, actions[:at], f"shown up to move {at}: {error}"
    return states, actions, ""


def _turns(record: Record) -> dict[int, Mapping[str, Any]]:
    listed = record.get("turns")
    return {
        turn["ply"]: turn
        for turn in (listed if isinstance(listed, list) else [])
        if isinstance(turn, dict) and isinstance(turn.get("ply"), int) and isinstance(turn.get("reply"), str)
    }
