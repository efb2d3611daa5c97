"""A whole game as readable text: what the rules say at every step.

A stored playthrough makes a change of rules a visible difference. `python -m nlrl.envs.playthrough tictactoe 1` prints
one.
"""

from __future__ import annotations

import sys
from typing import Any

from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.random import Rng


def playthrough(game: Game[Any], seed: int) -> str:
    """One uniformly random game of `game`, with everything that the rules say about each state."""
    rng = Rng("playthrough", seed)
    state, totals, parts = game.initial_state(rng), [0.0] * game.num_players, [_head(game, seed)]
    for number in range(1, game.max_length + 1):
        parts.append(_describe(game, state))
        if game.is_terminal(state):
            break
        player, action = game.current_player(state), rng.choice(game.legal_actions(state))
        step = game.apply(state, action, rng)
        move = f"{game.player_names[player]} plays {game.action_text(state, action)} (action {action})"
        parts.append(f"Move {number}: {move}; rewards {step.rewards}")
        totals = [total + reward for total, reward in zip(totals, step.rewards, strict=True)]
        state = step.state
    else:
        parts.append(_describe(game, state))
        if not game.is_terminal(state):
            parts.append(f"Cut after {game.max_length} actions; truncation reward {game.truncation_reward}")
            totals = [total + game.truncation_reward for total in totals]
    return "\n\n".join([*parts, f"Sum of rewards: {tuple(totals)}"]) + "\n"


def _head(game: Game[Any], seed: int) -> str:
    facts = {
        "game": game.spec,
        "players": ", ".join(game.player_names),
        "actions": game.num_actions,
        "longest game": game.max_length,
        "returns from, to": game.value_range,
        "seed": seed,
    }
    return "\n".join(f"{key}: {value}" for key, value in facts.items())


def _describe(game: Game[Any], state: Any) -> str:
    lines = [game.to_text(state), *_observations(game, state), f"state: {state}"]
    if game.is_terminal(state):
        lines.append(f"terminal; returns {game.returns(state)}")
    else:
        moves = " ".join(game.action_text(state, action) for action in game.legal_actions(state))
        lines.append(f"to move: {game.player_names[game.current_player(state)]}; legal: {moves}")
    return "\n".join(lines)


def _observations(game: Game[Any], state: Any) -> list[str]:
    """What each player is told, where that is not the whole state."""
    told = [(name, game.observation_text(state, player)) for player, name in enumerate(game.player_names)]
    return [f"{name} is told:\n{_indented(text)}" for name, text in told if text != game.to_text(state)]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))


if __name__ == "__main__":
    sys.stdout.write(playthrough(make_from_spec(sys.argv[1]), int(sys.argv[2])))
