"""The prompts for chat models are complete, their examples true, and they show evidence only to those who have it."""

from __future__ import annotations

import pytest

from nlrl.agents.metrics import check_claims, find_leaks
from nlrl.agents.parser import parse_evaluation, parse_move
from nlrl.agents.prompts import load_templates
from nlrl.envs import make

GAME = make("tictactoe")
EXAMPLE = "5 1 3"
"""O on 3 and 5, X on 1, X to move: O wins at 7. The position of the worked examples in the instruct prompts."""


def position(moves: str):
    state = GAME.initial_states()[0]
    for move in moves.split():
        state = GAME.apply(state, int(move) - 1).state
    return state


CASE = {
    "board": GAME.to_text(position(EXAMPLE)),
    "player": "X",
    "opponent": "O",
    "legal": "2 4 6 7 8 9",
    "action": "7",
    "samples": "game 1: X7 O4 X9 O6, O won by 4-5-6",
    "transition": "X7 O4",
    "successor": "I put O at +0.10, a little better.",
    "candidates": "move 7: I put X at -0.10, a little worse.",
    "critique": "I put X at -0.10, a little worse.",
}
INSTRUCT = load_templates("tictactoe", "instruct")


@pytest.mark.parametrize("role", INSTRUCT)
def test_instruct_prompt_shows_a_true_example_that_parses(role):
    system, user = INSTRUCT[role].messages(**CASE)
    assert CASE["board"] in user.content
    assert "{" not in system.content + user.content
    example = system.content.rpartition("A good answer:\n")[2]
    if role in ("policy", "improvement", "refinement"):
        assert parse_move(example, GAME, position(EXAMPLE)) == 6
    else:
        assert isinstance(parse_evaluation(example), float)
    action = 6 if role in ("q", "g1_games", "g1_outlooks") else None
    claims = check_claims(example, GAME, position(EXAMPLE), action)
    assert claims
    assert all(claim.true for claim in claims), claims
    assert find_leaks(example) == []


def test_instruct_prompts_exist_for_every_role_and_hide_evidence_from_actor_and_critic():
    roles = {"policy", "v", "q", "g1_games", "g1_games_v", "g1_outlooks", "g1_outlooks_v", "g2", "improvement"}
    assert roles | {"refinement"} == set(INSTRUCT)
    for role in ("policy", "v", "q"):
        assert find_leaks("\n".join(message.content for message in INSTRUCT[role].messages(**CASE))) == []
