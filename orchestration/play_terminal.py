"""`nlrl play`: a person against an agent that argues, on the terminal."""

from __future__ import annotations

from typing import Any

from nlrl.agents.asking import ask
from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.language_model import Sampling
from nlrl.envs import make_from_spec
from nlrl.errors import NLRLError
from nlrl.orchestration.evaluate_agent import agent_config
from nlrl.orchestration.models import open_model
from nlrl.orchestration.printable import printable


def play_terminal(spec: str, agent: str, seat: int, read: Any = input, write: Any = print) -> str:
    """Plays one game; returns how it ended for the person: won, lost or drawn.

    Args:
        seat: the person's; 0 moves first.

    Raises:
        NLRLError: no such seat.
    """
    game, config = make_from_spec(spec), agent_config(agent)
    if seat not in range(game.num_players):
        raise NLRLError(f"seat: {seat} is not a seat of {spec}; there are {game.num_players}, from 0")
    model, role = open_model(config), Roles(game, config.prompt_style).policy
    state = game.initial_states()[0]
    while not game.is_terminal(state):
        write("\n" + game.to_text(state) + "\n")
        if game.current_player(state) == seat:
            action = _ask_person(game, state, read, write)
        else:
            reply = ask(model, role, [StateInput(state)], Sampling(temperature=0.0, max_tokens=config.max_tokens))[0]
            write(f"{role.language.player(state)}: {printable(reply.completion.text)}")
            if reply.output is None:
                write("That is no legal move: the agent forfeits.")
                return "won"
            action = reply.output.action
        state = game.apply(state, action).state
    value = game.returns(state)[seat]
    result = "won" if value > 0 else "lost" if value < 0 else "drawn"
    write("\n" + game.to_text(state) + f"\n\nYou {'have ' + result if result != 'drawn' else 'drew'}.")
    return result


def _ask_person(game: Any, state: Any, read: Any, write: Any) -> int:
    while True:
        legal = " ".join(game.action_text(state, action) for action in game.legal_actions(state))
        action = game.parse_action(state, read(f"your move ({legal}): ").strip())
        if action is not None:
            return action
        write("That is not a legal move.")
