"""`nlrl solve GAME STATE`: the exact truth about a position."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nlrl.envs import make_from_spec
from nlrl.envs.oracle import oracle_for
from nlrl.errors import NLRLError


def solution(spec: str, moves: str) -> RenderableType:
    """The board, its value for the player to move, and value and regret of every legal move.

    Raises:
        NLRLError: a move is not legal where it stands.
    """
    game = make_from_spec(spec)
    state = game.initial_states()[0]
    for word in moves.split():
        action = game.parse_action(state, word)
        if action is None:
            legal = " ".join(game.action_text(state, a) for a in game.legal_actions(state))
            raise NLRLError(f"STATE: '{word}' is not a legal move there; legal: {legal or 'none, the game is over'}")
        state = game.apply(state, action).state
    if game.is_terminal(state):
        return Group(Text(game.to_text(state)), Text(f"The game is over; returns: {game.returns(state)}"))
    oracle = oracle_for(game)
    player = game.player_names[game.current_player(state)]
    table = Table(title=f"{player} to move; value {oracle.value(state):+.2f} under perfect play")
    for header in ("move", "value", "regret"):
        table.add_column(header, justify="right")
    for action, value in sorted(oracle.q_values(state).items(), key=lambda item: -item[1]):
        table.add_row(game.action_text(state, action), f"{value:+.2f}", f"{oracle.regret(state, action):.2f}")
    return Group(Text(game.to_text(state)), table)
