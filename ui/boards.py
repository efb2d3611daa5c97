"""The positions that a record is about, with what was thought of them: what the records browser draws."""

from __future__ import annotations

from typing import Any, NamedTuple

from nlrl.envs.game import Game
from nlrl.orchestration.records import Record


class Position(NamedTuple):
    """One board of a record."""

    caption: str
    svg: str
    text: str = ""
    """What was said here, as the model wrote it."""


def positions(game: Game[Any], record: Record) -> list[Position]:
    """The boards of a record: every position of a game, otherwise the one state. Empty for other records.

    Raises:
        ValueError: a state or a move that is not one of this game.
    """
    if "start" in record and "actions" in record:
        return _game_positions(game, record)
    if "state" in record:
        return [_state_position(game, record)]
    return []


def _game_positions(game: Game[Any], record: Record) -> list[Position]:
    said = {turn["ply"]: turn["reply"] for turn in record.get("turns", [])}
    state, last = game.parse_text(record["start"]), None
    out = [Position("start", game.render_svg(state))]
    for ply, action in enumerate(record["actions"]):
        caption = f"{ply + 1}. {_name(game, game.current_player(state))}: {game.action_text(state, action)}"
        step = game.transitions(state, action)
        if len(step) != 1:
            return out  # chance had a say, and the record does not keep what it said
        state, last = step[0].state, action
        out.append(Position(caption, game.render_svg(state, last), said.get(ply, "")))
    if len(record["actions"]) in said:
        out.append(Position("forfeit", game.render_svg(state, last), said[len(record["actions"])]))
    return out


def _state_position(game: Game[Any], record: Record) -> Position:
    state, legal = game.parse_text(record["state"]), set(game.legal_actions(game.parse_text(record["state"])))
    opinions = record.get("candidates") or record.get("evaluations") or []
    verdicts = {c["action"]: c["verdict"] for c in opinions if c["verdict"] is not None and c["action"] in legal}
    chosen = record.get("action")
    svg = game.render_svg(
        state,
        arrows={chosen: 1.0} if chosen in legal else None,
        marks={action: f"{verdict:+.2f}" for action, verdict in verdicts.items()},
    )
    caption = (
        "" if chosen not in legal else f"{_name(game, game.current_player(state))}: {game.action_text(state, chosen)}"
    )
    texts = [f"{game.action_text(state, c['action'])}: {c.get('text')}" for c in opinions if c["action"] in legal]
    return Position(caption, svg, "\n".join([*texts, record.get("text") or record.get("argument") or ""]))


def _name(game: Game[Any], player: int) -> str:
    return game.player_names[player] if player >= 0 else "nobody"
