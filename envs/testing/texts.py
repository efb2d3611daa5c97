"""Checks of what people and models see: text of states, views of players, text of moves, pictures."""

from __future__ import annotations

import pickle
import xml.etree.ElementTree as ET
from functools import partial
from typing import Any

from nlrl.envs.game import Game
from nlrl.envs.testing.report import require, require_value_error
from nlrl.envs.testing.sample import Playout, Sample

_JUNK = ("", " ", "0", "-1", "99", "nonsense", "best_move")


def state_texts(sample: Sample) -> None:
    for state in sample.states():
        _check_text(sample.game, state)


def _check_text(game: Game[Any], state: Any) -> None:
    text = game.to_text(state)
    require(bool(text) and not text.endswith("\n"), "to_text must be non-empty, without a trailing newline", state)
    try:
        read = game.parse_text(text)
    except ValueError as error:
        raise AssertionError(f"parse_text must read what to_text wrote ({error}), in state {state!r}") from error
    require(read == state, f"parse_text must give the state back, not {read!r}", state)
    for junk in ("", "nonsense", text + "\n" + text):
        require_value_error(partial(game.parse_text, junk), f"parse_text must refuse {junk!r}", state)


def views(sample: Sample) -> None:
    """Every player has a view of every state, and it depends on nothing but the state."""
    game, again = sample.game, sample.make()
    for state in reversed(list(sample.states())):  # not in the order of play: a view must depend on the state alone
        copy = pickle.loads(pickle.dumps(state))
        for player in range(game.num_players):
            view = game.observation_text(state, player)
            require(
                isinstance(view, str) and bool(view), f"observation_text must show player {player} something", state
            )
            for other, how in ((game, "when asked again"), (again, "in another instance of the game")):
                same = other.observation_text(copy, player) == view
                require(same, f"observation_text of player {player} must be the same {how}", state)
    for player in range(game.num_players):
        _check_hiding(sample, player)


def _check_hiding(sample: Sample, player: int) -> None:
    """Where a view leaves something out, no view before the end may hold the whole text: that would give it away."""
    game = sample.game
    shown = {state: game.to_text(state) in game.observation_text(state, player) for state in sample.ongoing()}
    for state, whole in shown.items():
        promise = f"observation_text hides something from player {player} elsewhere, so it must not hold all of to_text"
        require(not whole or all(shown.values()), promise, state)


def move_texts(sample: Sample) -> None:
    for playout in sample.playouts:
        texts = {*_JUNK, *(text for state in playout.states for text in _move_texts(sample.game, state))}
        for state in dict.fromkeys(playout.states):
            _check_moves(sample.game, state, texts)


def _move_texts(game: Game[Any], state: Any) -> dict[str, int]:
    return {game.action_text(state, action): action for action in game.legal_actions(state)}


def _check_moves(game: Game[Any], state: Any, texts: set[str]) -> None:
    """`texts`: everything that might be taken for a move; only those of legal moves may be."""
    named = _move_texts(game, state)
    require(len(named) == len(game.legal_actions(state)), "legal actions must have different texts", state)
    for text, action in named.items():
        require(game.parse_action(state, text) == action, f"parse_action must read {text!r}", state)
    for text in {*texts, *(f"{text} or so" for text in named), *(text + text for text in named)} - named.keys():
        require(game.parse_action(state, text) is None, f"parse_action must refuse {text!r}", state)


def pictures(sample: Sample) -> None:
    for playout in sample.playouts[:10]:
        _check_pictures(sample.game, playout)


def _check_pictures(game: Game[Any], playout: Playout) -> None:
    """Pictures of the position alone, after the move that led to it, and with candidates and labels."""
    for number, state in enumerate(playout.states):
        legal = game.legal_actions(state)
        weights, marks = {a: 1 / len(legal) for a in legal}, {a: "<&>\"'\x00\ud800" for a in legal}
        last = playout.actions[number - 1] if number else None
        _check_svg(game.render_svg(state), state)
        _check_svg(game.render_svg(state, last, weights, marks), state)


def _check_svg(picture: str, state: Any) -> None:
    try:
        root = ET.fromstring(picture)
    except (ET.ParseError, ValueError) as error:
        raise AssertionError(f"render_svg must be well-formed ({error}), in state {state!r}") from error
    require(root.tag == "{http://www.w3.org/2000/svg}svg", "render_svg must be an <svg> element", state)
    outside = [e for e in root.iter() if any(name.endswith("href") for name in e.attrib) or "script" in e.tag]
    require(not outside, "render_svg must be self-contained, without links or scripts", state)
