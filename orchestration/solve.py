"""`nlrl solve GAME STATE`: the exact truth about a position."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nlrl.envs import Game, make_from_spec
from nlrl.envs.oracle import Oracle, oracle_for
from nlrl.errors import NLRLError


def solution(spec: str, text: str = "", save: bool = False) -> RenderableType:
    """The board, its value for the player to move, the best moves, the distance to the end, and value and regret of
    every legal move.

    `text` is the moves from the (first) start, with commas between them where they hold spaces; or a board as
    `Game.to_text` writes it, with its lines separated by newlines or by `/`. With `save`, an oracle that keeps a table
    of solved positions writes it, for the next time.

    Raises:
        NLRLError: a move is not legal where it stands, the board is none of this game, the position is too hard, or
            there is nothing to save.
    """
    game = make_from_spec(spec)
    state = _read_state(game, text)
    parts: list[RenderableType] = [Text(game.to_text(state))]
    if game.is_terminal(state):
        parts.append(Text(f"The game is over; returns: {game.returns(state)}"))
    else:
        parts += _judgement(oracle_for(game), state)
    if save:
        parts.append(Text(f"The solved positions are in {_save(game)}"))
    return Group(*parts)


def _read_state(game: Game[Any], text: str) -> Any:
    if "\n" not in text and "/" not in text:
        return _play(game, text)
    lines = text.split("\n") if "\n" in text else text.split("/")
    try:
        return game.parse_text("\n".join(lines))
    except ValueError as error:
        raise NLRLError(f"STATE: no board of {game.spec}: {error}") from error


def _play(game: Game[Any], moves: str) -> Any:
    state = game.initial_states()[0]
    if not moves.strip():
        return state
    for word in moves.split(",") if "," in moves or _spaced(game, state) else moves.split():
        word = word.strip()
        action = game.parse_action(state, word)
        if action is None:
            legal = " ".join(game.action_text(state, a) for a in game.legal_actions(state))
            raise NLRLError(f"STATE: '{word}' is not a legal move there; legal: {legal or 'none, the game is over'}")
        outcomes = list(game.transitions(state, action))
        if len(outcomes) != 1:
            raise NLRLError(f"STATE: '{word}' can lead to {len(outcomes)} positions there; give the board instead")
        state = outcomes[0].state
    return state


def _spaced(game: Game[Any], state: Any) -> bool:
    """Whether a move is written with a space in it."""
    return any(" " in game.action_text(state, action) for action in game.legal_actions(state))


def _judgement(oracle: Oracle[Any], state: Any) -> list[RenderableType]:
    game, q_values, best = oracle.game, oracle.q_values(state), oracle.best_actions(state)
    player, distance = game.player_names[game.current_player(state)], oracle.distance(state)
    names = "every move" if len(best) == len(q_values) else " ".join(game.action_text(state, a) for a in best)
    length = "not computed" if distance is None else f"{distance} moves"
    table = Table("move", "value", "regret")
    for action, value in sorted(q_values.items(), key=lambda item: -item[1]):
        table.add_row(game.action_text(state, action), f"{value:+.2f}", f"{oracle.regret(state, action):.2f}")
    lines = (
        f"{player} to move; value {oracle.value(state):+.2f} under perfect play",
        f"Best: {names}",
        f"Distance to the end under best play: {length}",
    )
    return [*map(Text, lines), table]


def _save(game: Game[Any]) -> Any:
    save = getattr(oracle_for(game), "save", None)
    if save is None:
        raise NLRLError(f"{game.spec} is solved anew each time; there is no table to save")
    return save()
