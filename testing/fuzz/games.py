"""Boards, moves and names of games and opponents."""

from __future__ import annotations

from contextlib import suppress

from nlrl.envs import make_from_spec
from nlrl.envs.opponents import make_opponent
from nlrl.envs.spec import parse_call
from nlrl.errors import NLRLError
from nlrl.testing.fuzz import holds, target
from nlrl.testing.fuzz.texts import GAMES, positions, text_of

_OPPONENTS = (
    "random",
    "minimax(3)",
    "mcts(8,2)",
    "epsilon(0.25,minimax)",
    "mixture(1,random,2,epsilon(0.5,first-move))",
    "agent(runs/first,iteration=3,temperature=1)",
)
_MOST_CELLS = 100
"""Larger boards are what somebody asks for, not what somebody slips in."""


def _boards() -> list[bytes]:
    return [game.to_text(state).encode() for game, state in positions()]


@target("boards", _boards)
def boards(data: bytes) -> None:
    """A text that is read is a state whose own text reads back equal, and which can be played and drawn."""
    text = text_of(data)
    for game, _ in positions()[::2]:
        try:
            state = game.parse_text(text)
        except ValueError:  # what `Game.parse_text` promises
            continue
        holds(game.parse_text(game.to_text(state)) == state, f"{game.spec}: {text!r} reads back as another state")
        game.render_svg(state)
        for action in game.legal_actions(state):
            game.transitions(state, action)


def _moves() -> list[bytes]:
    return [game.action_text(state, game.legal_actions(state)[0]).encode() for game, state in positions()]


@target("actions", _moves)
def actions(data: bytes) -> None:
    text = text_of(data)
    for game, state in positions():
        action = game.parse_action(state, text)
        holds(action is None or action in game.legal_actions(state), f"{game.spec}: {text!r} is {action!r}")
        with suppress(ValueError):  # what `Game.transitions` promises
            game.transitions(state, int.from_bytes(data[:2], "big", signed=True))


@target("game specs", lambda: [spec.encode() for spec in GAMES], NLRLError, slow=True)
def game_specs(data: bytes) -> None:
    spec = text_of(data)
    call = parse_call(spec)
    sizes = [value for value in call.kwargs.values() if isinstance(value, int | float)]
    if all(abs(size) <= _MOST_CELLS for size in sizes) and len(spec) < 400:
        game = make_from_spec(spec)
        holds(make_from_spec(game.spec).spec == game.spec, f"{spec!r} has a spec that makes another game: {game.spec}")


@target("opponents", lambda: [name.encode() for name in _OPPONENTS], NLRLError, slow=True)
def opponents(data: bytes) -> None:
    game, _ = positions()[0]
    opponent = make_opponent(text_of(data), game)
    holds(bool(opponent.name), "an opponent without a name")
